"""Caches elsewhere: BuildKit's cache format, what we add to it, and moving both in and out."""
