"""Keeping and reusing keys and values."""
