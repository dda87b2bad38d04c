"""What is done when the crash comes: every kind of command that writes."""

from __future__ import annotations

import hashlib
import io
import json
import tarfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import httpx

from storage.eventlog import SqliteEventLog
from tests.crash.place import EPOCH, Place

BASE = "crash/base"
_ACCEPT = (
    "application/vnd.oci.image.manifest.v1+json,application/vnd.oci.image.index.v1+json,"
    "application/vnd.docker.distribution.manifest.v2+json"
)
_STEPS = """\
FROM {base} AS tools
RUN echo tool > /tool && mkdir /made && echo a > /made/a
FROM {base}
WORKDIR /app
COPY file dir /app/
ADD more.tar /unpacked/
COPY --from=tools /tool /made /tools/
RUN cat /tools/tool && echo done > /result
LABEL a=b
"""
_FILES = """\
FROM {base}
COPY file /file
COPY --from={base} /data/1 /one
"""
_SECRET = "hush-hush-7731"
Commands = Callable[[Place], Sequence[str]]


def _nothing(_place: Place) -> None:
    """Nothing is done before."""


@dataclass(frozen=True, slots=True)
class Scene:
    """A command, what was done `before` it, and the `outcome` that must be the same with and without a crash. `codes`:
    exit codes that are right when it is run again after a crash; `then`: a second command, run at the end."""

    name: str
    command: Commands
    outcome: Callable[[Place], object]
    before: Callable[[Place], None] = _nothing
    codes: tuple[int, ...] = (0,)
    then: Commands | None = None


# ---------------------------------------------------------------- what can be seen afterwards


def files(directory: Path) -> dict[str, str]:
    """Every path below `directory`, hidden ones too: what it is, and the digest of what it holds."""
    found = {}
    for path in sorted(directory.rglob("*")):
        kind = "link" if path.is_symlink() else "directory" if path.is_dir() else "file"
        data = str(path.readlink()).encode() if kind == "link" else path.read_bytes() if kind == "file" else b""
        found[str(path.relative_to(directory))] = f"{kind} {hashlib.sha256(data).hexdigest()}"
    return found


@cache
def _client() -> httpx.Client:
    """One, as each reads the machine's certificates."""
    return httpx.Client(verify=False)  # without TLS


def pushed(host: str, repository: str, tag: str = "1") -> str:
    """The digest that the tag has, with everything below it there; what is wrong otherwise (I11)."""
    answer = _client().get(f"http://{host}/v2/{repository}/manifests/{tag}", headers={"Accept": _ACCEPT})
    if answer.status_code != 200:
        return f"no tag: {answer.status_code}"
    told = answer.json()
    blobs = [*told.get("layers", []), *([told["config"]] if "config" in told else [])]
    for kind, items in (("blobs", blobs), ("manifests", told.get("manifests", []))):
        for item in items:
            # a cache lists blobs in an index, so either kind of name will do
            tried = [_client().head(f"http://{host}/v2/{repository}/{one}/{item['digest']}", headers={"Accept": _ACCEPT})
                     for one in dict.fromkeys((kind, "blobs"))]  # fmt: skip
            if all(one.status_code != 200 for one in tried):
                return f"a hole: {item['digest']}"
    return "sha256:" + hashlib.sha256(answer.content).hexdigest()


def _tagged(place: Place) -> object:
    return pushed(place.host, place.repository)


def _outputs(place: Place) -> object:
    return files(place.out)


def _kept(place: Place) -> object:
    """What a collection left."""
    return {part: sorted(path.name for path in (place.root / part).glob("*")) for part in ("layers", "snapshots")} | {
        "blobs": sorted(path.name for path in place.root.glob("blobs/sha256/*"))
    }


def _traces(place: Place) -> object:
    """Where what was erased can still be read."""
    found = [path for path in place.root.rglob("*") if path.is_file() and _SECRET.encode() in path.read_bytes()]
    return sorted(str(path.relative_to(place.root)) for path in found)


# ---------------------------------------------------------------- commands


def _write(place: Place, dockerfile: str) -> None:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as tar:
        for name in ("u", "v"):
            info = tarfile.TarInfo(name)
            info.size, info.mtime = 1000, int(EPOCH)
            tar.addfile(info, io.BytesIO(name.encode() * 1000))
    base = f"{place.host}/{BASE}"
    place.write({"Dockerfile": dockerfile.format(base=base), "file": "content\n", "dir/a": "a\n", "dir/b": "b" * 9000,
                 "more.tar": out.getvalue()})  # fmt: skip


def _build(place: Place, dockerfile: str, *options: str) -> list[str]:
    _write(place, dockerfile)
    return ["build", str(place.context), "--progress", "plain", *options]


def _first_build(place: Place) -> None:
    place.must(*_build(place, _STEPS, "-t", f"{place.host}/{place.repository}/first:1", "--push"))


def _pulling(kind: str) -> Commands:
    dockerfile = "FROM {base}\nRUN echo made > /result\n"
    return lambda place: _build(
        place, dockerfile, "--snapshotter", kind, "-o", f"type=local,dest={place.out}/tree"
    )


def _pushing(kind: str) -> Commands:
    return lambda place: _build(
        place, _STEPS, "--snapshotter", kind, "-o", f"type=image,push=true,rewrite-timestamp=true,name={place.name}",
        "--metadata-file", f"{place.out}/metadata.json", "--iidfile", f"{place.out}/iid",
    )  # fmt: skip


def _pushed_and_told(place: Place) -> object:
    told = json.loads((place.out / "metadata.json").read_bytes())
    return _tagged(place), told["containerimage.digest"], (place.out / "iid").read_text(), sorted(files(place.out))


def _archives(place: Place) -> Sequence[str]:
    kinds = [f"type=oci,dest={place.out}/oci.tar", f"type=docker,dest={place.out}/docker.tar",
             f"type=tar,dest={place.out}/files.tar"]  # fmt: skip
    return _build(place, _FILES, *(word for kind in kinds for word in ("-o", kind)))


def _layout(place: Place) -> Sequence[str]:
    return _build(place, _FILES, "-t", "app:1", "-o", f"type=oci,tar=false,dest={place.out}/layout")


def _caching(place: Place) -> Sequence[str]:
    cache = f"{place.host}/{place.repository}/cache:1"
    return _build(
        place, _FILES, "--cache-from", cache, "--cache-to", f"type=registry,ref={cache},mode=max",
        "-t", place.name, "--push",
    )  # fmt: skip


def _image_and_cache(place: Place) -> object:
    cache = pushed(place.host, f"{place.repository}/cache")  # which names the build, so its digest is never the same
    return _tagged(place), "whole" if cache.startswith("sha256:") else cache


def _broken(place: Place) -> Sequence[str]:
    return _build(place, "FROM {base}\nRUN echo before > /before\nRUN cat /before && sleep 0.5 && false\n")


def _mended(place: Place) -> Sequence[str]:
    dockerfile = "FROM {base}\nRUN echo before > /before\nRUN cat /before && true\n"
    return _build(place, dockerfile, "-o", f"type=image,push=true,rewrite-timestamp=true,name={place.name}")


def _copying(place: Place) -> Sequence[str]:
    return ["copy", "--progress", "plain", f"{place.host}/{BASE}:latest", f"{place.second}/{place.repository}:1"]


def _indexing(place: Place) -> Sequence[str]:
    return ["index", "create", place.name, f"{place.host}/{BASE}:latest"]


def _two_builds(place: Place) -> None:
    _first_build(place)
    place.must(*_build(place, "FROM {base}\nCOPY dir /dir\nRUN echo other > /other\n"))


def _with_key(place: Place) -> None:
    _first_build(place)
    place.must("audit", "keygen", "--name", "crash/test")


def _talkative(place: Place) -> None:
    place.must(*_build(place, f"FROM {{base}}\nRUN echo {_SECRET[:4]}''{_SECRET[4:]}\n"))


def _last_build(place: Place) -> str:
    log = SqliteEventLog(place.root / "log.db", read_only=True)
    try:
        return [str(event.build) for event in log.read(types=frozenset({"BuildStarted"}))][-1]
    finally:
        log.close()


def _redacting(place: Place) -> Sequence[str]:
    return ["audit", "redact", _last_build(place), "--reason", "a step printed it", "--yes"]


def _signed(place: Place) -> object:
    told = (place.root / "checkpoint").read_text().splitlines()
    return told[0].partition("/")[0], int(told[1]) > 0


def _bundling(place: Place) -> Sequence[str]:
    return ["bundle", _last_build(place), "-o", f"{place.out}/build.bundle", "--full"]


def _reporting(place: Place) -> Sequence[str]:
    return ["report", _last_build(place), "-o", f"{place.out}/report.html"]


def _names(place: Place) -> object:
    return sorted(files(place.out))


SCENES = {
    scene.name: scene
    for scene in (
        Scene("build, erofs", _pulling("erofs"), _outputs),
        Scene("build, directory", _pulling("directory"), _outputs),
        Scene("push, erofs", _pushing("erofs"), _pushed_and_told),
        Scene("push, directory", _pushing("directory"), _pushed_and_told),
        Scene("archives", _archives, _outputs),
        Scene("layout", _layout, _outputs),
        Scene("cache-to", _caching, _image_and_cache),
        Scene("failing build", _broken, _tagged, codes=(1,), then=_mended),
        Scene("copy", _copying, lambda place: pushed(place.second, place.repository)),
        Scene("index", _indexing, _tagged),
        Scene("prune", lambda _: ["prune", "--all"], _kept, _two_builds),
        Scene("rebuild", lambda _: ["rebuild"], lambda _: None, _first_build),
        Scene("checkpoint", lambda _: ["audit", "checkpoint"], _signed, _with_key),
        Scene("redact", _redacting, _traces, _talkative, codes=(0, 2)),
        Scene("bundle", _bundling, _names, _first_build),
        Scene("verify", lambda _: ["audit", "verify"], _names, _first_build),
        Scene("report", _reporting, _names, _first_build),
    )
}
