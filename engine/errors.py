"""The errors of a build, below those of storage. `exit_code` is the process's (DESIGN section 6).

    RefledgerError (storage/errors.py)
    ├── BuildError             1  the build's own step failed
    │   ├── StepFailed            a command ended with another code than 0
    │   └── ChecksFailed          the Dockerfile asks for a failure when a build check finds something
    ├── InputError             2
    │   ├── DockerfileError       a line of the Dockerfile, with its excerpt
    │   └── NotGranted            a step needs a secret, an agent or a permission that the user did not give
    ├── HostError              3
    │   ├── SandboxError          no OCI runtime, or it could not start the container
    │   └── MaterializationError  no provider could give a layer; says which, and for which step
    ├── VerificationError      4
    ├── PolicyViolation        4  a rule of a build policy forbids something; nothing was asked or done
    └── Cancelled            130  interrupted by the user
"""

from __future__ import annotations

from collections.abc import Sequence

from storage.errors import (
    DiskError,
    FailureKind,
    HostError,
    InputError,
    LogError,
    RefledgerError,
    RegistryError,
    VerificationError,
)

__all__ = [
    "BuildError", "Cancelled", "ChecksFailed", "DiskError", "DockerfileError", "FailureKind", "HostError", "InputError",
    "LogError", "MaterializationError", "NotGranted", "PolicyViolation", "RefledgerError", "RegistryError",
    "SandboxError", "StepFailed", "VerificationError",
]  # fmt: skip


class BuildError(RefledgerError):
    """The build did what it was told, and that failed."""

    exit_code = 1


SHOWN = 80
"""Characters of a failed command in the error line; the excerpt below it has all of it."""


class StepFailed(BuildError):
    """A step's command ended with `status` (128 + n when signal n ended it)."""

    def __init__(self, command: str, status: int) -> None:
        first, *more = command.strip().split("\n")
        shown = first if len(first) <= SHOWN and not more else f"{first[:SHOWN]}…"
        super().__init__(f"{shown!r} did not complete successfully: exit code {status}")
        self.status = status


class ChecksFailed(BuildError):
    """`# check=error=true`, and `rules` found something, the first of it in `line`."""

    def __init__(self, rules: Sequence[str], filename: str, line: int) -> None:
        hint = "refledger build --check shows them; # check=skip=… leaves a rule out"
        super().__init__(f"lint violation found for rules: {', '.join(rules)}", where=f"{filename}:{line}", hint=hint)


class DockerfileError(InputError):
    """A Dockerfile that cannot be built. `line` and `end` are 1-based; `excerpt` the source lines, unnumbered; `mark`
    the part at fault, where it is known: line (1-based), column (0-based), length in characters."""

    def __init__(
        self,
        what: str,
        *,
        filename: str,
        line: int,
        end: int | None = None,
        excerpt: str = "",
        hint: str = "",
        mark: tuple[int, int, int] | None = None,
    ) -> None:
        super().__init__(what, where=f"{filename}:{line}", hint=hint)
        self.filename = filename
        self.line = line
        self.end = end or line
        self.excerpt = excerpt
        self.mark = mark


class NotGranted(InputError):
    """A step needs a secret, an ssh agent or a permission; the hint says how to give it."""


class SandboxError(HostError):
    """The OCI runtime is missing or could not start the container."""


class MaterializationError(HostError):
    """A layer could not be had from any provider. `kind` is the last failure's; `layer` names it as Layer.name does."""

    def __init__(self, what: str, *, kind: FailureKind, where: str = "", hint: str = "", layer: str = "") -> None:
        super().__init__(what, where=where, hint=hint)
        self.kind: FailureKind = kind
        self.layer = layer
        self.exit_code = 4 if kind == "corrupt" else 3


class PolicyViolation(RefledgerError):
    """What a build wants is forbidden by `rule` of a build policy; `where` is the line of it."""

    exit_code = 4

    def __init__(self, what: str, *, rule: str, where: str, hint: str) -> None:
        super().__init__(what, where=where, hint=hint)
        self.rule = rule


class Cancelled(RefledgerError):
    """Interrupted (SIGINT, SIGTERM)."""

    exit_code = 130
