"""The scoring server: one reward model behind HTTP, for guards on other machines and for clients of other scoring servers."""
