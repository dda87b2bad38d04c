"""Tars of layers: read, written, laid out, and named entry by entry."""
