"""Refs and the only door to their bytes."""
