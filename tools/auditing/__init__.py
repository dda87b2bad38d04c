"""Auditing a root: what the log proves, and whether it holds."""
