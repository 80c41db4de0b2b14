"""Logs: one reader of rows, one way to add to a file of them. Nothing here needs more than the core's dependencies."""
