"""Rebuild: make the catalog again from the files that it names."""
