"""The errors a person can meet, as a tree. Each says what happened, where, and what to do.

    RefledgerError
    ├── InputError              2  wrong usage or input: the caller acts
    ├── HostError               3  network, disk, permission: the operator acts
    │   ├── RegistryError          a registry said no or nothing (`kind` as in MaterializationFailed.class)
    │   └── DiskError              no space, read-only, permission
    ├── VerificationError       4  bytes are not what their digest promises
    │   └── TocUnusable            a layer's table of contents is as promised, but cannot be used: fetch the layer whole
    └── LogError                3  the event log cannot be read or written
        ├── LogTooNew              written by a newer Refledger
        └── LogDamaged             its file is not whole; events up to `sound` can be read

engine/errors.py adds the errors of a build (exit code 1, 2 and 130). Anything that is not a RefledgerError is a bug.
"""

from __future__ import annotations

import errno
from typing import Literal

_LONGEST_PLACE = 4096  # characters: no path is longer (PATH_MAX), and nobody reads one that is
FailureKind = Literal["missing", "auth", "transport", "corrupt", "disk"]


class RefledgerError(Exception):
    """`what` happened (one line), `where` (file:line, URL, path; may be empty), `hint`: what to do (may be empty)."""

    exit_code = 3

    def __init__(self, what: str, *, where: str = "", hint: str = "") -> None:
        super().__init__(what)
        self.what = what
        self.where = where if len(where) <= _LONGEST_PLACE else f"{where[:200]}…"
        self.hint = hint

    def __str__(self) -> str:
        """One line: `where: what (hint)`."""
        line = f"{self.where}: {self.what}" if self.where else self.what
        return f"{line} ({self.hint})" if self.hint else line


class InputError(RefledgerError):
    """What the user gave cannot be used: a flag, a reference, a Dockerfile."""

    exit_code = 2


class HostError(RefledgerError):
    """The machine or the network refused."""

    exit_code = 3


class RegistryError(HostError):
    """A registry refused or could not be reached. `kind`: missing, auth or transport; `status`: HTTP status or 0."""

    def __init__(self, what: str, *, kind: FailureKind, status: int = 0, where: str = "", hint: str = "") -> None:
        super().__init__(what, where=where, hint=hint)
        self.kind: FailureKind = kind
        self.status = status


class DiskError(HostError):
    """A local file operation failed."""

    @classmethod
    def of(cls, error: OSError, doing: str, *, dest: str = "") -> DiskError:
        """Say what `error` means for a person: `doing` names the action, as in "unpacking layer 12ab"; `dest`: the
        place that was named for a result, where it is not the root that refuses."""
        where = dest or str(error.filename or "")
        hint = (_ROOT_HINTS if not dest else _DEST_HINTS).get(error.errno or 0, "")
        return cls(f"{doing}: {error.strerror or error}", where=where, hint=hint)


_ROOT_HINTS = {
    errno.ENOSPC: "free some space, or set REFLEDGER_ROOT to a larger disk",
    errno.EDQUOT: "the quota is used up: free some space, or set REFLEDGER_ROOT to another disk",
    errno.EROFS: "the file system is read-only: set REFLEDGER_ROOT to a writable place",
    errno.EACCES: "run as root, or set REFLEDGER_ROOT to a place you may write",
    errno.EPERM: "run as root: mounts and ownership need it",
}
_DEST_HINTS = {
    errno.ENOSPC: "free some space, or name another place",
    errno.EDQUOT: "the quota is used up: free some space, or name another place",
}


class VerificationError(RefledgerError):
    """Bytes differ from their digest. Nothing of them was kept."""

    exit_code = 4


class TocUnusable(VerificationError):
    """A table of contents that no provider has in a better state; the layer itself may be sound."""


class LogError(HostError):
    """The event log cannot be read or written."""


class LogTooNew(LogError):
    """The log was written by a newer Refledger."""


class LogDamaged(LogError):
    """The file of the log is not whole. `sound`: the event up to which all can be read; 0 when none can."""

    def __init__(self, what: str, *, sound: int = 0, where: str = "", hint: str = "") -> None:
        super().__init__(what, where=where, hint=hint)
        self.sound = sound
