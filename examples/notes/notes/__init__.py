"""Keeps short notes, on the command line and over HTTP."""
