"""Signed notes, and the checkpoints that are made of them. Pure, but for the random key of `new_signer`.

Sources: C2SP signed-note (text, blank line, signature lines; key ID = the first 4 bytes of SHA-256(name || newline ||
type || public key); verifier keys `name+hex(key ID)+base64(type || public key)`), C2SP tlog-checkpoint (origin, size
and root, a line each), Go's sumdb/note for private keys (`PRIVATE+KEY+name+hex(key ID)+base64(type || seed)`).
"""

from __future__ import annotations

import binascii
import re
from base64 import b64decode, b64encode
from collections.abc import Sequence
from dataclasses import dataclass, field
from hashlib import sha256

from storage.errors import InputError, VerificationError

_ED25519 = b"\1"
_MAX_BYTES, _MAX_SIGNATURES = 1 << 20, 100
_NAME = re.compile(r"[^\s+\x00-\x1f]{1,200}")
_KEY = re.compile(r"([^\s+\x00-\x1f]{1,200})\+([0-9a-f]{8})\+([A-Za-z0-9+/]{43,48}={0,2})")
_LINE = re.compile(r"— ([^\s+\x00-\x1f]{1,200}) ([A-Za-z0-9+/]+={0,2})")
_PRIVATE = "PRIVATE+KEY+"
_SIZE = re.compile(r"0|[1-9][0-9]{0,18}")


@dataclass(frozen=True, slots=True)
class Verifier:
    """A public key with its name."""

    name: str
    public: bytes

    @property
    def key_id(self) -> bytes:
        """Four bytes: which key of that name it is."""
        return sha256(self.name.encode() + b"\n" + _ED25519 + self.public).digest()[:4]

    def __str__(self) -> str:
        return f"{self.name}+{self.key_id.hex()}+{b64encode(_ED25519 + self.public).decode()}"

    @classmethod
    def parse(cls, text: str) -> Verifier:
        """The inverse of `str`. Raises InputError."""
        hint = "a verifier key reads NAME+HASH+KEY, as refledger audit keygen prints it"
        made = cls(*_read_key(text.strip(), hint))
        if str(made) != text.strip():
            raise InputError("the verifier key is damaged: its parts do not fit together", hint="copy all of it")
        return made

    def verifies(self, text: bytes, signature: bytes) -> bool:
        """Did this key sign `text` so?"""
        from cryptography.exceptions import InvalidSignature
        from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

        try:
            Ed25519PublicKey.from_public_bytes(self.public).verify(signature, text)
        except (InvalidSignature, ValueError):
            return False
        return True


@dataclass(frozen=True, slots=True)
class Signer:
    """A private key with its name. The seed stands in no repr."""

    name: str
    seed: bytes = field(repr=False)

    @property
    def verifier(self) -> Verifier:
        """The public half."""
        from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

        return Verifier(self.name, Ed25519PrivateKey.from_private_bytes(self.seed).public_key().public_bytes_raw())

    def encode(self) -> str:
        """The private key as it is stored. A secret."""
        return f"{_PRIVATE}{self.name}+{self.verifier.key_id.hex()}+{b64encode(_ED25519 + self.seed).decode()}"

    @classmethod
    def parse(cls, text: str) -> Signer:
        """The inverse of `encode`. Raises InputError, which does not quote it."""
        text = text.strip()
        if not text.startswith(_PRIVATE):
            raise InputError("this is no private key", hint="make one with: refledger audit keygen")
        made = cls(*_read_key(text.removeprefix(_PRIVATE), "make one with: refledger audit keygen"))
        if made.encode() != text:
            raise InputError("the private key is damaged: its parts do not fit together", hint="copy all of it")
        return made

    def sign(self, text: bytes) -> bytes:
        """The signature of `text`: 64 bytes, the same each time."""
        from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

        return Ed25519PrivateKey.from_private_bytes(self.seed).sign(text)


def new_signer(name: str, random: bytes) -> Signer:
    """A key called `name`, of 32 random bytes. Raises InputError for a name that a note cannot have."""
    if not _NAME.fullmatch(name) or not name.isprintable():
        hint = "use no blanks and no +, as in ci.example/refledger"
        raise InputError(f"a key cannot be called {name[:60]!r}", hint=hint)
    if len(random) != 32:
        raise ValueError("an Ed25519 seed has 32 bytes")
    return Signer(name, random)


def sign_note(text: str, *signers: Signer) -> str:
    """`text`, which ends with a newline, signed. Raises ValueError for what no note can hold."""
    if not text.endswith("\n") or any(char < " " and char != "\n" for char in text):
        raise ValueError("the text of a note is made of lines, without control characters")
    lines = []
    for signer in signers:
        signature = signer.verifier.key_id + signer.sign(text.encode())
        lines.append(f"— {signer.name} {b64encode(signature).decode()}\n")
    return f"{text}\n{''.join(lines)}"


@dataclass(frozen=True, slots=True)
class Note:
    """A note: `text`, and `signatures` (name, key ID, signature), none of which is verified."""

    text: str
    signatures: tuple[tuple[str, bytes, bytes], ...]

    @classmethod
    def parse(cls, data: str) -> Note:
        """Raises VerificationError for what is no signed note."""
        if len(data) > _MAX_BYTES or any(char < " " and char != "\n" for char in data):
            raise _malformed("it is too large, or has control characters")
        text, blank, tail = data.rpartition("\n\n")
        lines = tail.split("\n")
        if not blank or not text or lines.pop() or not lines or len(lines) > _MAX_SIGNATURES:
            raise _malformed("it has no signatures")
        signatures = []
        for line in lines:
            matched = _LINE.fullmatch(line)
            raw = _decode(matched[2]) if matched else b""
            if matched is None or len(raw) < 5:
                raise _malformed("a signature line is no signature line")
            signatures.append((matched[1], raw[:4], raw[4:]))
        return cls(f"{text}\n", tuple(signatures))

    def verified_by(self, verifiers: Sequence[Verifier]) -> tuple[Verifier, ...]:
        """Those of `verifiers` that signed it; what others signed says nothing. Raises VerificationError when one that
        is known did not sign what stands there in its name."""
        found: dict[Verifier, None] = {}
        for name, key_id, signature in self.signatures:
            for one in verifiers:
                if (one.name, one.key_id) == (name, key_id) and one not in found:
                    if not one.verifies(self.text.encode(), signature):
                        raise VerificationError(f"the signature of {name} on the note is wrong", where="note")
                    found[one] = None
        return tuple(found)


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """What a log was: its `origin`, `size` in leaves, and `root` (32 bytes) of the tree of these."""

    origin: str
    size: int
    root: bytes

    def __str__(self) -> str:
        """The text of its note."""
        return f"{self.origin}\n{self.size}\n{b64encode(self.root).decode()}\n"

    @classmethod
    def parse(cls, text: str) -> Checkpoint:
        """The inverse of `str`; further lines (extensions) are passed over. Raises VerificationError."""
        origin, _, rest = text.partition("\n")
        size, _, rest = rest.partition("\n")
        root = _decode(rest.partition("\n")[0])
        if not origin or not _SIZE.fullmatch(size) or len(root) != 32:
            raise _malformed("it is no checkpoint: origin, size and root, a line each")
        return cls(origin, int(size), root)


def _read_key(text: str, hint: str) -> tuple[str, bytes]:
    matched = _KEY.fullmatch(text)
    raw = _decode(matched[3]) if matched else b""
    if matched is None or len(raw) != 33 or raw[:1] != _ED25519 or not matched[1].isprintable():
        raise InputError("this is no Ed25519 key of a note", hint=hint)
    return matched[1], raw[1:]


def _decode(text: str) -> bytes:
    """Strict base64; b"" for anything else."""
    try:
        raw = b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        return b""
    return raw if b64encode(raw).decode() == text else b""


def _malformed(why: str) -> VerificationError:
    return VerificationError(f"the note is malformed: {why}", where="note", hint="it was damaged, or is another file")
