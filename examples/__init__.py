"""Runnable examples: ``python -m examples.rag_guardrail`` and so on, from the repository's root."""
