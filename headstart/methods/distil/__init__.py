"""Methods that make a smaller or faster model from a larger one."""
