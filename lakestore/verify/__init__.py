"""Verify: re-check every promise against the bytes, without trusting the catalog."""
