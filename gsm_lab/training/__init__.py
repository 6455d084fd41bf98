"""A run: its settings, the loop that trains it, its history, and what is kept of it on disk."""
