"""Where the key is that signs checkpoints.

`$REFLEDGER_AUDIT_KEY` (the key itself), else `$REFLEDGER_AUDIT_KEY_FILE`, else `audit.key` in the root, when it is
there. The format is that of storage/signing/notes.py.
"""

from __future__ import annotations

import os
import secrets
from pathlib import Path

from storage.durable import Unfinished, make_directories
from storage.errors import DiskError, InputError
from storage.signing.notes import Signer, Verifier, new_signer

FILE = "audit.key"
_MAX_BYTES = 4096
_KEYGEN = "make one with: refledger audit keygen"


def find_signer(root: Path) -> Signer | None:
    """The key of `root`; None when none is configured. Raises InputError (it is no key), DiskError."""
    if text := os.environ.get("REFLEDGER_AUDIT_KEY"):
        return _parse(text, "$REFLEDGER_AUDIT_KEY")
    if name := os.environ.get("REFLEDGER_AUDIT_KEY_FILE"):
        return read_signer(Path(name))
    path = root / FILE
    if path.exists() and not path.is_file():  # in a root of a stranger: to open a FIFO waits for ever
        raise InputError("this is no key", where=str(path), hint=_KEYGEN)
    return read_signer(path) if path.exists() else None


def read_signer(path: Path) -> Signer:
    """The private key in a file. Raises InputError, DiskError."""
    return _parse(_read(path, "reading the audit key"), str(path))


def read_verifier(text: str) -> Verifier:
    """A verifier key: the key itself, or the name of a file that holds it. Raises InputError, DiskError."""
    if text.count("+") < 2 and Path(text).is_file():
        try:
            return Verifier.parse(_read(Path(text), "reading the verifier key"))
        except InputError as error:
            raise InputError(error.what, where=text, hint=error.hint) from error
    return Verifier.parse(text)


def generate(path: Path, name: str) -> Verifier:
    """Write a new private key called `name` to `path` (0600); returns its public half. Raises InputError when there
    is a file already, which tells the public half of that one: whoever made it may have died before; and DiskError."""
    signer = new_signer(name, secrets.token_bytes(32))
    try:
        make_directories(path.parent, 0o700)
        new = Unfinished(path, 0o600)
        try:
            new.file.write(f"{signer.encode()}\n".encode())
            new.commit(replace=False)
        finally:
            new.abort()
    except FileExistsError:
        public = _public_half(path)
        if not public:
            raise InputError("there is something already", where=str(path), hint="name another file with -o") from None
        hint = "what an old key signed can only be checked with that one: keep it, and name another file with -o"
        what = f"there is a key already, and it is not overwritten; its verifier key is {public}"
        raise InputError(what, where=str(path), hint=hint) from None
    except OSError as error:
        raise DiskError.of(error, "writing the audit key", dest=str(path)) from error
    return signer.verifier


def _public_half(path: Path) -> str:
    if not path.is_file():
        return ""
    try:
        return str(read_signer(path).verifier)
    except (InputError, DiskError):
        return ""


def _parse(text: str, where: str) -> Signer:
    try:
        return Signer.parse(text)
    except InputError as error:
        raise InputError(error.what, where=where, hint=error.hint) from error


def _read(path: Path, doing: str) -> str:
    try:
        with path.open("rb") as file:
            data = file.read(_MAX_BYTES + 1)
    except FileNotFoundError:
        raise InputError("there is no such key file", where=str(path), hint=_KEYGEN) from None
    except OSError as error:
        raise DiskError.of(error, doing) from error
    try:
        return data[:_MAX_BYTES].decode()
    except UnicodeDecodeError:
        raise InputError("this is no key", where=str(path), hint=_KEYGEN) from None
