"""The demonstration: a web shop's message desk on a real language model, offline."""
