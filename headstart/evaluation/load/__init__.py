"""Load on a server over HTTP: requests that arrive as in life, and what becomes of each."""
