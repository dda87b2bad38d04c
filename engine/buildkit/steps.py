"""What a step is called in BuildKit's cache: the digest of its op as its solver sees it. Pure.

Sources: moby/buildkit solver/llbsolver/ops (exec.go, file.go, source.go: CacheMap), solver/pb/ops.proto for names and
order of fields, client/llb and frontend/dockerfile/dockerfile2llb for what a Dockerfile becomes. All was compared with
what the BuildKit of dockerd 20.10 exports (tests/differential/test_buildkit_cache.py). What has no plain counterpart
there is None: a step without a key is built again, a wrong key would be a wrong image.
"""

from __future__ import annotations

import base64
import posixpath
import re
from typing import Any

from engine.buildkit.gojson import go_json
from engine.graph import Copy, ImageSource, Mkdir, Run
from storage.digest import chain_ids, sha256
from storage.platform import parse_platform

CONTENT = -1
"""The output number of a record that stands for content."""
NETWORKS: dict[str, tuple[int, ...]] = {"host": (0, 1), "none": (2,)}
"""pb.NetMode of our networks. A RUN that asks for nothing has the host's network here, and with BuildKit the one of its
daemon (0, the usual) or, as `docker build --network host`, the host's (1): for us both are one step."""
_OCTAL = re.compile(r"0*[0-7]{1,3}")
"""Old versions of BuildKit take the higher bits into the key, but not into the file."""
_NUMBER = re.compile(r"[+-]?[0-9]+")
_INT32 = range(-(2**31), 2**31)


def record_digest(digest: str, output: int = 0) -> str:
    """What a cache record of `digest` (of an op, or CONTENT) is called: BuildKit's rootKey."""
    return str(sha256(f"{digest}@{output}".encode()))


def image_digests(op: ImageSource) -> tuple[str, ...]:
    """By the manifest, and by what is in it. An image that is named through an index has the first one by that index:
    whoever goes through the other finds it all the same."""
    platform = parse_platform(op.platform)
    named: dict[str, str] = {"Digest": str(op.manifest), "OS": platform.os, "Arch": platform.architecture}
    if platform.variant:
        named["Variant"] = platform.variant
    by_content = chain_ids([layer.diff_id for layer in op.layers])[-1]
    return tuple(str(sha256(f"buildkit.source.v0:{key}".encode())) for key in (sha256(go_json(named)), by_content))


def run_digests(op: Run) -> tuple[str, ...]:
    """None for what is not a command on its base alone: BuildKit before 0.9 left mounts out of the key."""
    if op.mounts or op.scripts or op.security != "sandbox" or not op.platform or not op.cwd:
        return ()
    meta: dict[str, Any] = {"args": list(op.argv), "env": [f"{name}={value}" for name, value in op.env], "cwd": op.cwd}
    if op.user:
        meta["user"] = op.user
    platform = parse_platform(op.platform)
    where = {"OS": platform.os, "Arch": platform.architecture}
    if platform.variant:
        where["Variant"] = platform.variant
    found = []
    for network in NETWORKS[op.network]:
        command = {"meta": meta, **({"network": network} if network else {})}
        found.append(_digest({"Type": "buildkit.exec.v0", "Exec": command, **where}))
    return tuple(found)


def mkdir_digests(op: Mkdir, *, on_base: bool) -> tuple[str, ...]:
    """Of a WORKDIR, `on_base` or on nothing."""
    if not _is_owner(op.user, on_base=on_base):
        return ()
    found = []
    for owner in _owners(op.user):
        action = {"path": op.path, "mode": 0o755, "makeParents": True, **owner, "timestamp": -1}
        found.append(_file_op([action], on_base=on_base, takes=False))
    return tuple(found)


def copy_digests(op: Copy, *, on_base: bool) -> tuple[str, ...]:
    """Of a COPY or ADD, `on_base` or on nothing, from another input. Its sources are in it by their last names; the
    rest of them is in the selector of that input, or in the digest of what they are."""
    if op.files or op.link or op.parents or op.excludes or not op.sources or any("\\" in item for item in op.sources):
        return ()
    if op.chmod and not _OCTAL.fullmatch(op.chmod):
        return ()
    if not _is_owner(op.chown, on_base=on_base):
        return ()
    mode = int(op.chmod, 8) if op.chmod else -1
    options: dict[str, Any] = {"mode": mode} if mode else {}  # a number that is 0 is left out
    options |= {"followSymlink": True, "dirCopyContents": True}
    if op.unpack:
        options["attemptUnpackDockerCompatibility"] = True
    options |= {"createDestPath": True, "allowWildcard": True, "allowEmptyWildcard": True, "timestamp": -1}
    found = []
    for owner in _owners(op.chown):
        actions = [
            {"src": posixpath.basename(source) or "/", "dest": op.dest, **owner, **options}
            for source in source_paths(op)
        ]
        found.append(_file_op(actions, on_base=on_base, takes=True))
    return tuple(found)


def source_paths(op: Copy) -> list[str]:
    """The sources, absolute."""
    return [posixpath.join("/", posixpath.normpath("/" + source).lstrip("/")) for source in op.sources]


def selector(op: Copy) -> str:
    """The digest of what is taken from the input."""
    return str(sha256(b"\0".join(sorted((path.encode() for path in source_paths(op)), reverse=True))))


def _file_op(actions: list[dict[str, Any]], *, on_base: bool, takes: bool) -> str:
    """Of actions one after another, each on what the one before made, all from one other input if it `takes` one."""
    texts = [base64.b64encode(go_json(action)).decode() for action in actions]
    value: dict[str, Any] = {"Type": "buildkit.file.v0", "Actions": texts}
    inputs = int(on_base) + int(takes)
    other = inputs - 1 if takes else -1
    last = len(actions) - 1
    indexes = [
        [inputs + number - 1 if number else inputs - 2 if takes else inputs - 1, other, -1 if number < last else 0]
        for number in range(len(actions))
    ]
    # reason: keys of older versions have none, so newer ones leave out what they take for usual
    if not on_base or (last > 0 and inputs != len(actions)):
        value["indexes"] = indexes
    return _digest(value)


def _owners(written: str) -> list[dict[str, Any]]:
    """The field `owner`, as versions before and after 0.16 write it."""
    if not written:
        return [{}]
    old = {"owner": dict(zip(("user", "group"), [_who(name, "byID") for name in written.split(":", 1)], strict=False))}
    new = {"owner": dict(zip(("user", "group"), [_who(name, "byId") for name in written.split(":", 1)], strict=False))}
    return [old] if old == new else [old, new]


def _who(name: str, number_field: str) -> dict[str, Any]:
    if not _is_number(name):
        person: dict[str, Any] = {"name": name} if number_field == "byId" else {"name": name, "input": 0}
        return {"User": {"byName": person}}
    number = 0 if name == "root" else int(name) % 2**32
    return {"User": {number_field: number} if number else {}}


def _is_owner(written: str, *, on_base: bool) -> bool:
    """Nobody, or complete, and with names only where they can be looked up."""
    return not written or all(name and (on_base or _is_number(name)) for name in written.split(":", 1))


def _is_number(name: str) -> bool:
    return name == "root" or (_NUMBER.fullmatch(name) is not None and int(name) in _INT32)


def _digest(value: dict[str, Any]) -> str:
    return str(sha256(go_json(value)))
