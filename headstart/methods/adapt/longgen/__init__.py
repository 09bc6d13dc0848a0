"""LongGen (arXiv 2410.01485): the form of the network, serving it, and the training that makes it."""
