"""The refs of sources."""

from __future__ import annotations

from engine.graph import FetchedSource, GitSource, HttpSource, ImageSource, LayerSource, Op
from engine.refs.ref import Layer, Remote, of_image, of_layer
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


def of_source(op: Op) -> Remote | None:
    """What a source stands for, whether anybody wants it or not; None for steps, and for what has no layers."""
    match op:
        case ImageSource():
            return of_image(op.layers, op.provider)
        case LayerSource():
            return of_layer(op.layer, op.created)
        case HttpSource() | GitSource():
            return source_ref(op)
    return None
