"""Methods for training from scratch, and for training on."""
