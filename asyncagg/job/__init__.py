"""The scheduled job: list, plan, fetch, fold, commit, archive. Only `job` knows the order."""
