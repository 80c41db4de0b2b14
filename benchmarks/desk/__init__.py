"""The message desk: a guard on a real language model, judged by a check."""
