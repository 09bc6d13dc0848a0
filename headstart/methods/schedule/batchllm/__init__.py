"""BatchLLM: an offline job planned as a whole."""
