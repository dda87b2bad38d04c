"""Load: what the command does when there is very much of something.

A short form of each scenario is in the test suite, the whole ones are run by tools/drills/load.
"""
