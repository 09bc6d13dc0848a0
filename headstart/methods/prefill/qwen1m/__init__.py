"""Qwen2.5-1M (arXiv 2501.15383): dual chunk attention, sparse prefill over it, and budgets refined by recall."""
