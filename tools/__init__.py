"""The command line and everything that names concrete classes."""
