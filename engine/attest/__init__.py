"""Attestations: what is said of an image, by whom, and where it is attached."""
