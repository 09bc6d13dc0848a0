"""MInference (arXiv 2407.02490): sparse prefill with a pattern for each head."""
