"""Queries over every tier: pin a snapshot, plan which files can matter, run it in DuckDB."""
