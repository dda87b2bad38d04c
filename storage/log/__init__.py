"""The event log: one SQLite file, what stands in it, and who reads and writes it."""
