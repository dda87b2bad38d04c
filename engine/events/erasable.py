"""Which values of facts somebody may have to erase."""

from __future__ import annotations

from collections.abc import Sequence
from fnmatch import fnmatchcase

from engine.events.builds import BuildStarted, VertexOutput
from engine.events.fact import Fact

SENSITIVE = ("*PASSWORD*", "*PASSWD*", "*TOKEN*", "*SECRET*", "*KEY*", "*CREDENTIAL*", "*AUTH*")
"""Patterns of the names of build args whose values are stored apart, in upper or lower case."""
_MANY = 500  # detached values an event


def is_sensitive(name: str, patterns: Sequence[str]) -> bool:
    """Does the name of a build arg match one of `patterns`, in upper or lower case?"""
    return any(fnmatchcase(name.upper(), pattern.upper()) for pattern in patterns)


def detached(fact: Fact, sensitive: Sequence[str] = SENSITIVE) -> tuple[str, ...]:
    """Where in the data of `fact` are values that somebody may have to erase (see NewEvent.detached): what a step
    printed, and build args whose names match one of `sensitive`, in upper or lower case."""
    if isinstance(fact, VertexOutput):
        return ("/text",)
    if not isinstance(fact, BuildStarted) or not isinstance(args := fact.options.get("args"), dict):
        return ()
    names = [name for name in args if is_sensitive(name, sensitive)]
    if len(names) > _MANY:
        return ("/options/args",)
    return tuple("/options/args/" + name.replace("~", "~0").replace("/", "~1") for name in names)
