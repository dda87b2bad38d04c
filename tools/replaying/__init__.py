"""Bundles, and replaying what they hold."""
