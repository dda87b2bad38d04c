"""Is a layer image as it was made? Cheap for one that nobody wrote to: its time is a seal.

Whoever writes to a file changes its time, so an image whose time is still the one it was published with, and whose
size is the one in its header, is believed. One without the seal (copied without times, or damaged) is hashed: the tar
against its diff ID, all the rest against the header. Images of before there were seals are written anew from their tar.
"""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path

from storage.durable import fsync_directory
from storage.errors import DiskError, VerificationError
from storage.layers.erofs.header import SEAL, Hashing, Image, rest_digest
from storage.regular import open_regular
from storage.scratch import Scratch, clear_away


def check_image(path: Path, name: str, scratch: Scratch) -> str:
    """What is wrong with the image at `path` that should be `name`'s (a diff ID or a snapshot), "" when nothing is. One
    that turns out to be sound is sealed. Raises OSError, and DiskError when one cannot be written anew."""
    try:
        opened = _opened(path)
        if isinstance(opened, str):
            return opened
        image, status = opened
        return _problem(image, status, name) or (_write_anew(image, name, scratch) if not image.rest else "")
    except FileNotFoundError:
        return ""  # or somebody let it go meanwhile
    except OSError as error:
        if error.errno in {errno.EIO, errno.EUCLEAN, errno.EBADMSG}:
            return f"it cannot be read: {error.strerror}"
        raise


def examine_image(path: Path, name: str) -> str:
    """What is wrong with the image at `path` that should be `name`'s, "" when nothing is: all of it is read, whatever
    its time says, and nothing is changed. Raises OSError."""
    opened = _opened(path)
    if isinstance(opened, str):
        return opened
    image, status = opened
    return _not_of(image, status, name) or (_misfit(image) if image.rest else "")


def _opened(path: Path) -> tuple[Image, os.stat_result] | str:
    """The image at `path`, and its status; or why there is none. Raises OSError."""
    status = path.lstat()
    if not stat.S_ISREG(status.st_mode):
        return "something else stands in the place of its file"
    try:
        return Image.open(path), status
    except DiskError as error:
        return error.what


def _not_of(image: Image, status: os.stat_result, name: str) -> str:
    if image.name not in {"", name} or (":" in name and name != image.diff_id):
        return f"it is the image of {image.name or image.diff_id}"
    if status.st_size != image.size:
        return f"its file has {status.st_size} bytes, not {image.size}"
    return ""


def _problem(image: Image, status: os.stat_result, name: str) -> str:
    problem = _not_of(image, status, name)
    if problem or status.st_mtime_ns == SEAL or not image.rest:
        return problem
    problem = _misfit(image)
    if not problem:
        os.utime(image.path, ns=(SEAL, SEAL))
    return problem


def _misfit(image: Image) -> str:
    with open_regular(image.path) as file:
        if rest_digest(file.fileno(), image.header, image.tar, image.size) != image.rest:
            return "its metadata is not what its header promises"
    with image.open_tar() as tar:
        found = Hashing(tar, image.diff_id.algorithm).digest()
    return "" if found == image.diff_id else f"its content is not that of {image.diff_id}"


def _write_anew(image: Image, name: str, scratch: Scratch) -> str:
    """What a seal needs cannot be added in place: a crash might leave half of it."""
    from storage.layers.erofs.compose import LONGEST_PATH
    from storage.layers.erofs.image import ImageWriter
    from storage.layers.readahead import read_layer
    from storage.tar.reader import TarReader

    new = scratch.name()
    scratch.tmp.mkdir(parents=True, exist_ok=True)
    try:
        with ImageWriter(new, longest_path=LONGEST_PATH) as out, image.open_tar() as tar:

            def index(reader: TarReader) -> None:
                for entry in reader:
                    out.tree.add(entry)

            media_type = "application/vnd.oci.image.layer.v1.tar"
            read_layer(image.diff_id, media_type, tar, index, limit=image.tar[1], tee=out.write)
            out.finish(image.diff_id, name)
        new.rename(image.path)
        fsync_directory(image.path.parent)
    except VerificationError as error:
        return error.what
    finally:
        clear_away(new)
    return ""
