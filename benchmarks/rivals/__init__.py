"""Stopping rules of other works beside ours, on the same draws: ``python -m benchmarks.rivals``."""
