"""What measures the rest: machine peaks, side-by-side benchmarks, the ledger."""
