"""One file (or one folder) per paper, grouped by stage of a model's life, and the registry."""
