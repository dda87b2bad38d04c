"""What there is to see of files, to find out that nobody changed them."""

from __future__ import annotations

import hashlib
import stat
from pathlib import Path


def state_of(*places: Path) -> dict[str, str]:
    """Of each of `places` and everything below: mode, owner, names, size, time of modification, and what a file holds
    or a link says. (SQLite, as root, gives its files the owner that they have: that changes their ctime.)"""
    found = {}
    for place in places:
        for path in (place, *sorted(place.rglob("*"))):
            told = path.lstat()
            content = ""
            if stat.S_ISLNK(told.st_mode):
                content = str(path.readlink())
            elif stat.S_ISREG(told.st_mode):
                content = hashlib.sha256(path.read_bytes()).hexdigest()
            look = (told.st_mode, told.st_uid, told.st_gid, told.st_nlink, told.st_size, told.st_mtime_ns, content)
            found[str(path)] = " ".join(map(str, look))
    return found
