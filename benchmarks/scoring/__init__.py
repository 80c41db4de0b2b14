"""How fast candidates are scored, next to what people would use otherwise."""
