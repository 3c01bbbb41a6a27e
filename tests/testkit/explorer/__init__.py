"""Every interleaving of a few runners, producers and operators, with every promise checked.

    PYTHONPATH=tests python -m testkit.explorer

A program is async code of the package: a run, a restore from quarantine, a repair. It meets the
others only in the store, so a schedule is a sequence of store requests, and each request is atomic.
Each scenario is small: one to three files, two or three programs. But all of its schedules are
explored: every order of the requests, a crash of every program at every step, and in most of them a
request whose answer is lost.

* `store`: the store of a program, whose requests wait for the explorer.
* `programs`: what a program does after each sequence of answers.
* `worlds`: the objects at one moment.
* `search`: visits every state that the programs can reach.
* `invariants`: the promises.
* `scenarios`: what is explored.
* `mutations`: the package with one step taken away; the explorer must find each.
"""
