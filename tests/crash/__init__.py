"""Crashes at every event, for real: `python -m tests.crash`, what is found written in docs/crashes.md."""
