"""SwiftKV (arXiv 2410.03960): the form of the network, serving it, and the distillation that makes it."""
