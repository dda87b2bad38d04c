"""Layers and snapshots on this disk: laid out, sealed, checked, written entry by entry, packed again."""
