"""Tests against heavy real servers; each has a make target of its own: live-vllm, live-transformers, live-llama."""
