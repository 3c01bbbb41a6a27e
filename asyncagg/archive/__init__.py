"""The archive: find counted files, in packs or as objects, and restore them."""
