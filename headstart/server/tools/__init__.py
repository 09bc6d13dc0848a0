"""Functions that a model may call: how each family of models writes a call, and how it is read back."""
