"""Reward models elsewhere, a file a kind: what a server is asked for scores, what a model is asked for verdicts."""
