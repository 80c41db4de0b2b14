"""Wall time of ways to spend 32 draws: alone on an idle machine, and with many requests at once."""
