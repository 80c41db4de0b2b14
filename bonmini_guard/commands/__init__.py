"""The sub-commands of ``bonmini-guard``, one a file."""
