"""Methods that keep and reuse keys and values."""
