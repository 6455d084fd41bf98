"""What the paper's tables hold, and the runs that make them again."""
