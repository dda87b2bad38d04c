"""What the engine knows of storage: plain data, and protocols of at most six methods."""
