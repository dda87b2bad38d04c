"""Deterministic simulation: the engine on a virtual clock, with registries and disks in memory, under faults.

Everything that could go one way or the other is drawn from one seed (chance.py), so a run can be repeated, and shrunk.
"""
