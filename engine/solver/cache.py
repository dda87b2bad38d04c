"""Cache keys: ordered plaintext components and their digest. Pure.

A key says what a result depends on, never where it lies or when it was made: image layers count by their diff IDs,
files of a context by their content, modes and paths, and not by time.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from engine.graph import (
    ArchiveSource,
    Copy,
    GitSource,
    HttpSource,
    ImageSource,
    LayerSource,
    Merge,
    Mkdir,
    Mount,
    Op,
    Run,
    op_to_json,
)
from engine.record import Record
from storage.digest import Digest, chain_ids, digest_json

SCHEMA = "1"
"""Changes when the meaning of components changes, so that old keys miss instead of lying."""

Component = tuple[str, str]


class CacheKey(Record):
    """`digest` names the ordered `components`."""

    digest: Digest
    components: tuple[Component, ...]

    def to_json(self) -> list[list[str]]:
        """The stored plaintext: `[[name, value], …]`."""
        return [list(component) for component in self.components]


def cache_key(
    op: Op, inputs: Sequence[Digest], contents: Mapping[int | None, Digest] | None = None
) -> CacheKey:
    """The key of `op` on results with the keys `inputs`. A context has no key: what is taken from it counts by its
    content, `contents` by the number of the mount that shows it, None for what a Copy takes. So can what a Copy takes
    of another result, which then is none of the inputs."""
    components: list[Component] = [("schema", SCHEMA), ("op", op_to_json(op)["op"])]
    match op:
        case Run():
            components += [("argv", arg) for arg in op.argv]
            components += [("env", f"{name}={value}") for name, value in op.env]
            components += [("cwd", op.cwd), ("user", op.user), ("network", op.network), ("platform", op.platform)]
            components += [("script", f"{script.name}\n{script.data}") for script in op.scripts]
            components += [part for number, mount in enumerate(op.mounts) for part in _mount(number, mount)]
            if op.security != "sandbox":  # a component only where asked for: keys of before stay good
                components.append(("security", op.security))
        case Copy():
            components += [("source", source) for source in op.sources]
            components += [("dest", op.dest), ("chown", op.chown), ("chmod", op.chmod), ("unpack", str(op.unpack))]
            components += [("file", f"{file.name}\n{file.data}") for file in op.files]
            components += [(name, "True") for name in ("link", "parents") if getattr(op, name)]
            components += [("exclude", pattern) for pattern in op.excludes]
        case Mkdir():
            # a user is a component only where there is one: keys of before stay good
            components += [("path", op.path), *[("user", op.user)] * bool(op.user)]
        case _:
            components += _source(op)
    components += [("input", str(digest)) for digest in inputs]
    if isinstance(op, Merge):
        components += [("blob", blob) for blob in op.blobs]
    for number, digest in sorted((contents or {}).items(), key=str):
        components.append(("content" if number is None else f"mount {number} content", str(digest)))
    return CacheKey(digest_json([list(component) for component in components]), tuple(components))


def _source(op: Op) -> list[Component]:
    """What a source is, wherever it lies."""
    match op:
        case HttpSource():
            return [("digest", op.digest), ("filename", op.filename)]
        case GitSource():
            made = [("commit", op.commit), ("subdir", op.subdir), ("submodules", str(op.submodules))]
            return made + ([("remote", op.remote), ("ref", op.ref)] if op.keep_git_dir else [])  # .git says them
        case ArchiveSource():
            return [("digest", op.digest)]
        case ImageSource(layers=layers):
            chain = chain_ids([layer.diff_id for layer in layers])
            return [("chain", str(chain[-1]) if chain else "scratch")]
        case LayerSource(layer=layer, created=created):
            return [("blob", str(layer.blob.digest)), ("created", str(created))]
    return []


def _mount(number: int, mount: Mount) -> list[Component]:
    """What is asked for, never what it holds: a secret counts by its id, a cache mount by its id and sharing."""
    return [(f"mount {number} {name}", str(getattr(mount, name))) for name in mount.FIELDS]
