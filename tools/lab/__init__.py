"""What stands in for the world around the product, in the demo, the drills, the benches and the tests: registries and
mirrors on loopback, images, long logs, and what counts their traffic and looks into their results."""

from pathlib import Path

PROJECT = Path(__file__).resolve().parents[2]
"""The directory that tools/ is in."""
