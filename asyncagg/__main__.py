"""``python -m asyncagg``: the command line."""

from asyncagg.cli import main

main()
