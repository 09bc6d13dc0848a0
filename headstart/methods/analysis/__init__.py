"""Methods that measure and plan."""
