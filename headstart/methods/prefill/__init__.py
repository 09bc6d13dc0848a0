"""Methods for reading the prompt."""
