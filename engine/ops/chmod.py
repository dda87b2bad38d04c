"""`--chmod`: an octal mode, or a symbolic one as in chmod(1). Source: POSIX, chmod, "Extended description"; BuildKit
for the umask that counts where nobody is named."""

from __future__ import annotations

import re
from dataclasses import dataclass

from engine.errors import InputError

UMASK = 0o022
_WHO = {"u": 0o4700, "g": 0o2070, "o": 0o1007, "a": 0o7777}
_BITS = {"r": 0o444, "w": 0o222, "x": 0o111, "s": 0o6000, "t": 0o1000}
_SHIFT = {"u": 6, "g": 3, "o": 0}
_CLAUSE = re.compile(r"([ugoa]*)((?:[-+=](?:[ugo]|[rwxXst]*))+)")
_ACTION = re.compile(r"([-+=])([ugo]|[rwxXst]*)")


@dataclass(frozen=True, slots=True)
class Chmod:
    """`octal` bits, or `actions`: the mask of who, the operator, the permissions."""

    octal: int | None = None
    actions: tuple[tuple[int, str, str], ...] = ()

    def apply(self, mode: int, *, is_dir: bool) -> int:
        """The twelve bits that something with the bits `mode` gets."""
        if self.octal is not None:
            return self.octal
        new = mode
        for who, operator, permissions in self.actions:
            bits = self._bits(new, permissions, searches=is_dir or bool(mode & 0o111))
            bits &= who or 0o7777 & ~UMASK
            kept = {"=": new & ~(who or 0o7777), "+": new, "-": new & ~bits}[operator]
            new = kept if operator == "-" else kept | bits
        return new

    @staticmethod
    def _bits(mode: int, permissions: str, *, searches: bool) -> int:
        if permissions in _SHIFT:
            return (mode >> _SHIFT[permissions] & 0o7) * 0o111
        bits = 0
        for letter in permissions:
            bits |= (0o111 if searches else 0) if letter == "X" else _BITS[letter]
        return bits


def parse_chmod(text: str) -> Chmod | None:
    """What `text` says, None for "". Raises InputError."""
    if not text:
        return None
    if re.fullmatch("[0-7]{1,5}", text) and int(text, 8) <= 0o7777:
        return Chmod(int(text, 8))
    actions: list[tuple[int, str, str]] = []
    for clause in text.split(","):
        found = _CLAUSE.fullmatch(clause)
        if found is None:
            hint = "write an octal mode, as in --chmod=755, or a symbolic one, as in --chmod=u=rwX,go=rX"
            raise InputError(f"--chmod={text}: not an octal mode, nor a symbolic one", hint=hint)
        who = 0
        for letter in found[1]:
            who |= _WHO[letter]
        actions += [(who, operator, permissions) for operator, permissions in _ACTION.findall(found[2])]
    return Chmod(actions=tuple(actions))
