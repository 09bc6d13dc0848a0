"""Prepacking: short prompts share the rows of a rectangular batch."""
