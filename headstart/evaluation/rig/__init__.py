"""A small rig for training methods: a byte-level Llama that trains in under a minute, beside a well tuned baseline."""
