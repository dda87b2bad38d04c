"""What a build may use, do and give out, as a file says: read, decided purely, and kept to."""
