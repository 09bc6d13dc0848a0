"""LServe (arXiv 2502.14866): streaming and retrieval heads, the pages that the latter read, and their calibration."""
