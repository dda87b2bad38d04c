"""Other people's readers of the format, where this machine has one that knows blocks of 512 bytes."""

from __future__ import annotations

import functools
import os
import shutil
import subprocess
import tempfile
from pathlib import Path

import pytest

from storage.digest import sha256
from storage.layers.erofs.image import ImageWriter


def fsck(image: Path) -> None:
    """Fails the test unless fsck.erofs finds no error. Skips it, with the tool's words, where that reads no image."""
    _needs_fsck()
    code, said = _run("fsck.erofs", str(image))
    assert code == 0, said


def fsck_unpack(image: Path, target: Path, mounted: Path) -> Path:
    """The tree as fsck.erofs unpacks it. Skips the test where that cannot. Files that end in a hole get their length
    from those of `mounted`: version 1.8 ends them where their data ends."""
    _needs_fsck()
    if "--[no-]xattrs" not in _run("fsck.erofs", "--help")[1]:
        pytest.skip(f"{fsck_version()} unpacks no attributes")
    code, said = _run("fsck.erofs", f"--extract={target}", "--xattrs", "--preserve", str(image))
    assert code == 0, said
    for path in target.rglob("*"):
        if not path.is_symlink() and path.is_file():
            there, size = path.stat(), (mounted / path.relative_to(target)).stat().st_size
            assert there.st_size <= size
            if there.st_size < size:
                os.truncate(path, size)
                os.utime(path, ns=(there.st_atime_ns, there.st_mtime_ns))
    return target


def fsck_version() -> str:
    """Its name and version; "" when there is none."""
    if shutil.which("fsck.erofs") is None:
        return ""
    return next((line for line in _run("fsck.erofs", "-V")[1].splitlines() if "fsck.erofs" in line), "fsck.erofs")


def _needs_fsck() -> None:
    if refusal := _refusal():
        pytest.skip(refusal)


@functools.cache
def _refusal() -> str:
    """Why an empty image cannot be read here; "" when it can."""
    version = fsck_version()
    if not version:
        return "NOT CHECKED by fsck.erofs: it is not installed (Debian: erofs-utils)"
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "image"
        with ImageWriter(path) as image:
            image.finish(sha256(b""))
        code, said = _run("fsck.erofs", str(path))
    return f"NOT CHECKED by {version}, which says of an empty image: {' / '.join(said.split(chr(10)))}" if code else ""


def _run(*command: str) -> tuple[int, str]:
    done = subprocess.run(command, capture_output=True, text=True, errors="replace", check=False)
    return done.returncode, (done.stdout + done.stderr).strip()
