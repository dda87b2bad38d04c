"""The file of a policy, read strictly: what is not understood is an error, and says in which line.

    [[rule]]
    name = "our registries"
    kind = "images"
    allow = ["registry.example", "docker.io/library/*"]
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping, Sequence
from typing import Any

from engine.policy.hosts import authority_form
from engine.policy.rules import SPEAKS, Policy, Rule
from storage.digest import Digest, sha256
from storage.errors import InputError
from storage.signing.notes import Verifier

LIMIT = 1 << 20
"""Bytes of a policy at most."""
RULES = 1000
_HEAD = re.compile(r"\s*\[\[\s*rule\s*\]\]\s*(?:#.*)?")
_PLACES = frozenset({"images", "urls", "git", "caches", "exports"})
"""Kinds of rules whose lists are patterns of places; `images` of all kinds are those, too."""
_PLACE_HOST = re.compile(r"(?:\[[^\[\]@]+\]|[^\[\]@:]+)(?::[0-9]+)?|[0-9A-Fa-f:.]+|[^@]*[*?][^@]*")
_FILES = frozenset({"local", "tar", "oci", "docker"})
_AGE = re.compile(r"(\d{1,6})(m|h|d|w)")
_UNITS = {"m": 60, "h": 3600, "d": 86_400, "w": 604_800}
_WORDS = {
    "network": ("host", "none"), "privileges": ("security.insecure",), "urls": ("http", "https"),
    "git": ("http", "https", "ssh", "git"),
}  # fmt: skip
_LISTS = {"allow", "deny"}
_KEYS: Mapping[str, frozenset[str]] = {
    "images": frozenset(_LISTS), "digests": frozenset({"images", "digests"}), "age": frozenset({"images", "max"}),
    "signatures": frozenset({"images", "keys"}), "urls": frozenset({*_LISTS, "schemes"}),
    "git": frozenset({*_LISTS, "schemes"}), "network": frozenset({"allow"}), "privileges": frozenset({"allow"}),
    "secrets": frozenset(_LISTS), "ssh": frozenset(_LISTS), "caches": frozenset(_LISTS),
    "layers": frozenset({"fetch"}), "exports": frozenset(_LISTS),
}  # fmt: skip
"""What a rule of each kind takes beside `name` and `kind`."""
_NEEDED = {"age": ("max",), "signatures": ("keys",), "network": ("allow",), "privileges": ("allow",)}


def parse_policy(text: bytes, file: str) -> Policy:
    """The policy that `text` is, called `file` for people. Raises InputError with the line."""
    if len(text) > LIMIT:
        raise InputError(f"a policy has at most {LIMIT} bytes", where=file)
    try:
        written = text.decode()
        data = tomllib.loads(written)
    except UnicodeDecodeError as error:
        raise InputError("the policy is not UTF-8 text", where=file) from error
    except (ValueError, RecursionError) as error:  # a number of 5,000 digits is a ValueError, and no TOMLDecodeError
        told = re.fullmatch(r"(?s)(.*) \(at (?:line (\d+), column \d+|end of document)\)", str(error))
        line = told[2] if told and told[2] else str(written.count("\n") + 1)
        raise InputError(f"not TOML: {told[1] if told else error}", where=f"{file}:{line}") from error
    lines = written.split("\n")
    if '"""' in written or "'''" in written:
        # reason: without them a line that looks like the head of a rule is one
        number = next(n for n, line in enumerate(lines, 1) if '"""' in line or "'''" in line)
        raise InputError("a policy has no strings of several lines", where=f"{file}:{number}")
    heads = [number for number, line in enumerate(lines, 1) if _HEAD.fullmatch(line.rstrip("\r"))]
    unknown = sorted(data.keys() - {"rule"})
    if unknown:
        where = f"{file}:{_line_of(lines, unknown[0], 1, len(lines))}"
        hint = "a policy is made of tables headed [[rule]]"
        raise InputError(f"unknown key {unknown[0][:40]!r}", where=where, hint=hint)
    rules = data.get("rule")
    if not isinstance(rules, list) or not heads or len(rules) != len(heads):
        raise InputError("a policy is made of tables headed [[rule]]", where=f"{file}:1", hint="see docs/policy.md")
    if len(rules) > RULES:
        raise InputError(f"a policy has at most {RULES} rules", where=f"{file}:{heads[RULES]}")
    ends = [*(head - 1 for head in heads[1:]), len(lines)]
    made = tuple(
        _Reader(rule, file, lines, head, end).rule() for rule, head, end in zip(rules, heads, ends, strict=True)
    )
    seen: dict[str, int] = {}
    for one in made:
        if one.name in seen:
            where = f"{file}:{one.line}"
            raise InputError(f"the rule of line {seen[one.name]} is called {one.name!r}, too", where=where)
        seen[one.name] = one.line
    return Policy(file, str(sha256(text)), text, made)


class _Reader:
    """Reads one table."""

    def __init__(self, data: Mapping[str, Any], file: str, lines: Sequence[str], head: int, end: int) -> None:
        self.data, self.file, self.lines, self.head, self.end = data, file, lines, head, end
        self.kind = ""

    def rule(self) -> Rule:
        """The rule. Raises InputError."""
        name = self._text("name")
        if not name.strip() or len(name) > 100 or not name.isprintable():
            raise self._bad("name", "a rule's name is up to 100 printable characters")
        self.kind = kind = self._text("kind")
        if kind not in SPEAKS:
            raise self._bad("kind", f"no kind of rule is called {kind[:40]!r}", f"there are {', '.join(SPEAKS)}")
        takes = _KEYS[kind]
        for key in self.data:
            if key not in takes | {"name", "kind"}:
                hint = f"a rule of kind {kind} takes {', '.join(sorted(takes))}"
                raise self._bad(key, f"unknown key {key[:40]!r}", hint)
        for key in _NEEDED.get(kind, ()):
            if key not in self.data:
                raise self._bad("kind", f"a rule of kind {kind} needs {key}")
        if takes >= _LISTS and not self.data.keys() & takes:
            raise self._bad("kind", f"it forbids nothing: a rule of kind {kind} needs {' or '.join(sorted(takes))}")
        return Rule(
            name, kind, self.head,
            allow=self._listed("allow") if "allow" in self.data else None, deny=self._listed("deny"),
            images=self._places("images", self._strings("images", filled=True)), digests=self._digests(),
            keys=self._verifiers(), schemes=self._strings("schemes", _WORDS.get(kind), filled=True),
            max_age=self._age(), fetch=self._flag("fetch"),
        )  # fmt: skip

    def _text(self, key: str) -> str:
        value = self.data.get(key)
        if not isinstance(value, str):
            raise self._bad(key, f"a rule needs {key}, a string" if value is None else f"{key} is not a string")
        return value

    def _listed(self, key: str) -> tuple[str, ...]:
        found = self._strings(key, _WORDS.get(self.kind) if self.kind in ("network", "privileges") else None)
        return self._places(key, found) if self.kind in _PLACES else found

    def _places(self, key: str, patterns: tuple[str, ...]) -> tuple[str, ...]:
        """`patterns`, each of which may fit something: one that cannot would forbid nothing without a word."""
        for pattern in patterns:
            what, hint = _unfit(pattern, of_images=key == "images" or self.kind not in ("urls", "git"))
            if what:
                raise self._bad(key, f"{pattern[:60]!r} fits nothing: {what}", hint)
        return patterns

    def _strings(self, key: str, words: Sequence[str] | None = None, *, filled: bool = False) -> tuple[str, ...]:
        """A list; of `words` only, if given; `filled`: it is not empty, as an empty one would lift the rule."""
        value = self.data.get(key)
        if value is None:
            return ()
        if not isinstance(value, list) or not all(isinstance(item, str) and item for item in value):
            raise self._bad(key, f"{key} is not a list of strings")
        if filled and not value:
            raise self._bad(key, f"{key} is empty", "leave it out")
        for item in value:
            if len(item) > 1000 or not item.isprintable():
                raise self._bad(key, "a pattern has up to 1000 printable characters")
            if words is not None and item not in words:
                raise self._bad(key, f"{item[:60]!r} cannot stand in {key}", f"it may be {', '.join(words)}")
        return tuple(value)

    def _digests(self) -> tuple[str, ...]:
        found = self._strings("digests", filled=True)
        for item in found:
            try:
                Digest(item)
            except InputError as error:
                raise self._bad("digests", f"{item[:80]!r} is not a digest", error.hint) from error
        return found

    def _verifiers(self) -> tuple[str, ...]:
        found = self._strings("keys", filled=True)
        try:
            return tuple(str(Verifier.parse(item)) for item in found)
        except InputError as error:
            raise self._bad("keys", error.what, error.hint) from error

    def _age(self) -> int:
        if "max" not in self.data:
            return 0
        matched = _AGE.fullmatch(self._text("max"))
        if matched is None:
            raise self._bad("max", "max is not an age", "write 90m, 12h, 30d or 8w")
        return int(matched[1]) * _UNITS[matched[2]] * 1_000_000_000

    def _flag(self, key: str) -> bool:
        value = self.data.get(key, False)
        if not isinstance(value, bool):
            raise self._bad(key, f"{key} is not true or false")
        return value

    def _bad(self, key: str, what: str, hint: str = "") -> InputError:
        line = _line_of(self.lines, key, self.head, self.end)
        return InputError(what, where=f"{self.file}:{line}", hint=hint or "see docs/policy.md")


def _unfit(pattern: str, *, of_images: bool) -> tuple[str, str]:
    """Why `pattern` fits no place, and what to do; "" for one that may."""
    host, slash, path = pattern.partition("/")
    if "://" in pattern:
        return "a pattern has no scheme", "write host/path, and the scheme in schemes"
    if not _PLACE_HOST.fullmatch(host):
        return "it does not begin with a host", "write host[:port]/path, without a user"
    if any(part in (".", "..") for part in path.split("/")) or "//" in slash + path:
        return "places are known without '.', '..' and empty parts", "write the path that it leads to"
    if not of_images or host == "oci-layout" or (host in _FILES and not slash):
        return "", ""
    if ":" in path or "@" in path:
        return "an image is known by its repository", "leave tag and digest out; a rule of kind digests has digests"
    if not re.search(r"[.:*?\[A-Z]|^localhost$", authority_form(host)):
        return f"{host[:60]!r} is no registry", "Docker Hub's are docker.io/library/debian"
    return "", ""


def _line_of(lines: Sequence[str], key: str, first: int, last: int) -> int:
    """The line of `key` within, `first` when there is none."""
    quoted = re.escape(key)
    found = re.compile(rf"\s*(?:\[+\s*)?(?:{quoted}|\"{quoted}\"|'{quoted}')\s*[=.\]].*")
    return next((n for n in range(first, last + 1) if found.fullmatch(lines[n - 1].rstrip("\r"))), first)
