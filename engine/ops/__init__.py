"""What a vertex does."""
