"""Rules, and what they decide. Pure: the same policy, subject and time give the same decision.

A rule speaks of subjects of some kinds, of images only where `images` fits. A subject is let in when no rule that
speaks of it objects: rules can only forbid, so that another policy on top makes nothing possible.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from engine.policy.subjects import Kind, Subject, pattern_form
from engine.record import Record

DAY = 86_400_000_000_000
_AHEAD = 300_000_000_000
"""How far an image's time may lie ahead of this clock, in ns: clocks differ a little."""


class Rule(Record):
    """One rule: of `kind` (a key of SPEAKS), at `line` of its file, called `name`. What the others mean depends on the
    kind: docs/policy.md."""

    name: str
    kind: str
    line: int
    allow: tuple[str, ...] | None = None
    deny: tuple[str, ...] = ()
    images: tuple[str, ...] = ()
    digests: tuple[str, ...] = ()
    keys: tuple[str, ...] = ()
    schemes: tuple[str, ...] = ()
    max_age: int = 0
    fetch: bool = False


SPEAKS: Mapping[str, Kind] = {
    "images": "image", "digests": "pin", "age": "created", "signatures": "signature", "urls": "url", "git": "git",
    "network": "network", "privileges": "privilege", "secrets": "secret", "ssh": "ssh", "caches": "cache",
    "layers": "layer", "exports": "export",
}  # fmt: skip
"""The kind of subject that each kind of rule speaks of."""


@dataclass(frozen=True, slots=True)
class Decision:
    """What a policy says of one subject: `rules` that speak of it, by name; `against`: the first that objects, None
    when it is allowed; `detail`: why, and `remedy`: what to do."""

    rules: tuple[str, ...]
    against: Rule | None = None
    detail: str = ""
    remedy: str = ""


@dataclass(frozen=True, slots=True)
class Policy:
    """What one file says. `file`: as it was named; `text`: all of it; `digest` of that."""

    file: str
    digest: str
    text: bytes
    rules: tuple[Rule, ...]

    def speaking(self, subject: Subject) -> list[Rule]:
        """The rules that speak of `subject`."""
        return [
            rule
            for rule in self.rules
            if SPEAKS[rule.kind] == subject.kind
            and (not rule.images or any(_fits_place(one, subject) for one in rule.images))
        ]

    def decide(self, subject: Subject, now: int) -> Decision | None:
        """What the rules say of `subject` at `now` (UTC ns); None when none speaks of it."""
        rules = self.speaking(subject)
        if not rules:
            return None
        names = tuple(rule.name for rule in rules)
        for rule in rules:
            objection = _objection(rule, subject, now)
            if objection is not None:
                return Decision(names, rule, *objection)
        return Decision(names)

    def keys(self, subject: Subject) -> tuple[str, ...]:
        """The verifier keys that may vouch for the image `subject` (of kind `signature`)."""
        return tuple(dict.fromkeys(key for rule in self.speaking(subject) for key in rule.keys))

    def has(self, kind: str) -> bool:
        """Is there a rule of `kind`?"""
        return any(rule.kind == kind for rule in self.rules)

    @property
    def fetches(self) -> bool:
        """Are layers that were never verified here to be fetched before an export?"""
        return any(rule.kind == "layers" and rule.fetch for rule in self.rules)


def _objection(rule: Rule, subject: Subject, now: int) -> tuple[str, str] | None:
    """Why `rule` does not let `subject` in, and what to do; None when it does."""
    match rule.kind:
        case "digests":
            return _unpinned(rule, subject)
        case "age":
            return _too_old(rule, subject, now)
        case "signatures":
            if not set(rule.keys) & set(subject.signers):
                names = ", ".join(key.partition("+")[0] for key in rule.keys)
                return f"nothing that {names} signed vouches for it", "have it signed, or use an image that is"
            return None
        case "layers":
            if not subject.verified:
                return "it was never byte-verified here", "set fetch = true in the rule to have it fetched and checked"
            return None
    return _unlisted(rule, subject)


def _unlisted(rule: Rule, subject: Subject) -> tuple[str, str] | None:
    fits = _fits_place if subject.kind in ("image", "url", "git", "cache", "export") else _fits_word
    for pattern in rule.deny:
        if fits(pattern, subject):
            return f"{pattern!r} is denied", "use another one"
    if rule.allow is not None and not any(fits(pattern, subject) for pattern in rule.allow):
        return "it is not allowed", f"allowed: {_listed(rule.allow)}"
    if rule.schemes and subject.scheme not in rule.schemes:
        return f"{subject.scheme} is not allowed", f"use {_listed(rule.schemes)}"
    return None


def _unpinned(rule: Rule, subject: Subject) -> tuple[str, str] | None:
    if rule.digests:
        if subject.digest in rule.digests:
            return None
        return f"its digest {subject.digest} is not on the list", "review the image, and add its digest to the rule"
    if subject.pinned:
        return None
    return "it is named without a digest", f"write {subject.shown.partition('@')[0]}@{subject.digest}"


def _too_old(rule: Rule, subject: Subject, now: int) -> tuple[str, str] | None:
    if not subject.created:
        return "it does not say when it was made", "use an image whose config says it"
    age = now - subject.created
    if age < -_AHEAD:
        return "it says that it was made in the future", "mend this clock, or use another image"
    if age > rule.max_age:
        days = f"{age / DAY:.1f} days old, and may be {rule.max_age / DAY:.4g}"
        return f"it is {days}", "use a newer one"
    return None


def _listed(patterns: tuple[str, ...]) -> str:
    shown = ", ".join(patterns[:5]) + (", …" if len(patterns) > 5 else "")
    return shown or "none"


# ---------------------------------------------------------------- patterns


def place_fits(pattern: str, name: str) -> bool:
    """Does `host/path` fit? `*` and `?` stay between two slashes, `**` does not; a pattern without a slash is a host
    with all that it has, or a word as `local`."""
    return _fits(pattern, name if "/" in pattern else name.partition("/")[0])


def _fits_place(pattern: str, subject: Subject) -> bool:
    pattern = pattern_form(pattern, subject.kind)
    return any(place_fits(pattern, name) for name in subject.places)


def _fits_word(pattern: str, subject: Subject) -> bool:
    """`*` stands for anything."""
    return _fits(pattern.replace("*", "**"), subject.name)


def _fits(pattern: str, name: str) -> bool:
    # reason for no regular expression: a pattern of several stars would take for ever on a hostile name
    reached = {0}
    for part in re.findall(r"\*+|\?|[^*?]+", pattern):
        if part == "?":
            reached = {at + 1 for at in reached if at < len(name) and name[at] != "/"}
        elif part[0] != "*":
            reached = {at + len(part) for at in reached if name.startswith(part, at)}
        elif reached:
            reached = _beyond(reached, name, slashes=len(part) > 1)
    return len(name) in reached


def _beyond(reached: set[int], name: str, *, slashes: bool) -> set[int]:
    """Where a star leads to from the places `reached`."""
    found, on = set(), False
    for at in range(min(reached), len(name) + 1):
        on = at in reached or (on and (slashes or name[at - 1] != "/"))
        if on:
            found.add(at)
    return found
