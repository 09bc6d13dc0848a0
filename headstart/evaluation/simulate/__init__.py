"""Serving, simulated: the engine's own schedulers and cache on a clock that a cost model moves."""
