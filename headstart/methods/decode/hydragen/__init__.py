"""Hydragen: shared prefixes are read once for all sequences of a decode step."""
