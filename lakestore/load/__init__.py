"""Load: rows from anywhere straight into cold files, chunk by chunk, each row exactly once."""
