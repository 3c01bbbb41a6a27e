"""Packs: ZIP archives of counted run files."""
