"""The scoring server: one reward model behind HTTP, for guards on other machines and for clients of other scoring servers."""

#: Where a token is read from: an argument would show in the list of processes.
TOKEN = "BONMINI_GUARD_TOKEN"
