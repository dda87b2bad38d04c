"""Uploads that broke off, and where they can be gone on with: in another process too.

What is kept is the location that the registry gave, which may be signed: whoever has it may write to that one upload.
So it lies in files that nobody else may read, and nowhere else; never in the log.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from storage.interfaces.images import Descriptor, Provider
from storage.regular import read_regular

KEPT_SECONDS = 7 * 24 * 3600.0
"""As long as docker-registry keeps an upload that nobody goes on with."""
_LARGEST = 1 << 20
"""Bytes of a file: a location is a header's value."""


class UploadSessions:
    """The uploads of one root, a file each. To lose one costs bytes, no more: failures of the disk are passed over."""

    def __init__(self, directory: Path, clock: Callable[[], float] = time.time) -> None:
        self._directory = directory
        self._clock = clock

    def load(self, target: Provider, blob: Descriptor) -> str:
        """The location of an upload of `blob` to `target`; "" when none is known."""
        try:
            kept = json.loads(read_regular(self._path(target, blob), _LARGEST))
            location = kept["location"]
        except (OSError, ValueError, KeyError, TypeError):
            return ""
        return location if isinstance(location, str) else ""

    def save(self, target: Provider, blob: Descriptor, location: str) -> None:
        """Remember `location`, whatever was known before."""
        path = self._path(target, blob)
        kept = {"target": str(target), "digest": str(blob.digest), "location": location}
        with suppress(OSError):
            self._directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            new = path.with_suffix(f".{os.getpid()}.part")
            with os.fdopen(os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600), "w") as file:
                json.dump(kept, file)
            new.replace(path)

    def forget(self, target: Provider, blob: Descriptor) -> None:
        """It is done, or there is nothing to go on with."""
        with suppress(OSError):
            self._path(target, blob).unlink()

    def sweep(self) -> None:
        """Forget what registries have forgotten."""
        with suppress(OSError):
            for path in self._directory.iterdir():
                if path.stat().st_mtime < self._clock() - KEPT_SECONDS:
                    path.unlink()

    def _path(self, target: Provider, blob: Descriptor) -> Path:
        return self._directory / hashlib.sha256(f"{target}@{blob.digest}".encode()).hexdigest()
