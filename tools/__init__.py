"""The command line and everything that names concrete classes."""

__version__ = "0.1.0"
