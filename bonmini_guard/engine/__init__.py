"""Effects: one request, what limits, contains and records it, and what generators and scorers are."""
