"""Credentials for registries: where docker and its helpers keep them, found and kept."""
