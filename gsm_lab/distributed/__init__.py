"""Runs over several processes: how they join, and where the model and its batches then are."""
