"""The gateway: guards behind OpenAI's chat protocol, for whoever is not in Python."""
