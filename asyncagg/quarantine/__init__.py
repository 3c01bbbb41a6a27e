"""Quarantine: list and inspect the files that could not be counted, and restore fixed ones."""
