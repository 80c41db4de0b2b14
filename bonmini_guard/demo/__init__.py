"""The offline demonstration and its bundled models."""
