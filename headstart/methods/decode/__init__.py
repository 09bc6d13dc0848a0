"""Methods for writing the answer."""
