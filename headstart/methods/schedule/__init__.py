"""Methods that decide which tokens run in the next step."""
