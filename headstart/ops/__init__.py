"""One file per numerical operation: a plain reference, the fast paths, one dispatcher."""
