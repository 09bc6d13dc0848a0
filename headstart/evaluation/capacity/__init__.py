"""Capacity: the highest rate of a load at which the tails of its latencies still meet their targets."""
