"""The refs of fetched sources."""

from __future__ import annotations

from engine.graph import FetchedSource, GitSource, HttpSource
from engine.refs.ref import Layer, Remote
from storage.digest import digest_json


def source_ref(op: FetchedSource) -> Remote:
    """The ref of a pinned source: its id follows from what it holds, not from where that was found."""
    match op:
        case HttpSource():
            identity: dict[str, object] = {"digest": op.digest, "filename": op.filename, "mtime": op.mtime}
        case GitSource():
            identity = {"commit": op.commit, "subdir": op.subdir, "submodules": op.submodules}
            if op.keep_git_dir:
                identity |= {"remote": op.remote, "ref": op.ref, "git": True}
        case _:  # an ArchiveSource
            identity = {"archive": op.digest}
    name = f"source-{digest_json(identity).hex}"
    return Remote(name, (Layer(snapshot=name),))
