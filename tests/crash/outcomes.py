"""What can be seen once a command has done its work, whether or not it was disturbed."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import httpx

from storage.bundle.reading import read_bundle
from tests.crash.place import Place
from tests.waiting import PATIENCE

SECRET = "hush-hush-7731"
_ACCEPT = (
    "application/vnd.oci.image.manifest.v1+json,application/vnd.oci.image.index.v1+json,"
    "application/vnd.docker.distribution.manifest.v2+json"
)


def nothing(_place: Place) -> object:
    """That the command ends as it should is all there is to see."""
    return None


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
    return httpx.Client(headers={"Accept": _ACCEPT}, timeout=PATIENCE)


def manifest(host: str, repository: str, tag: str) -> httpx.Response:
    """What the registry says of that name."""
    return _client().get(f"http://{host}/v2/{repository}/manifests/{tag}")


def pushed(host: str, repository: str, tag: str = "1") -> str:
    """The digest that the tag has, with everything below it there; what is wrong otherwise (I11)."""
    answer = manifest(host, repository, tag)
    if answer.status_code != 200:
        return f"no tag: {answer.status_code}"
    told = answer.json()
    blobs = [*told.get("layers", []), *([told["config"]] if "config" in told else [])]
    for kind, items in (("blobs", blobs), ("manifests", told.get("manifests", []))):
        for item in items:
            # a cache lists blobs in an index, so either kind of name will do
            tried = [_client().head(f"http://{host}/v2/{repository}/{one}/{item['digest']}").status_code
                     for one in dict.fromkeys((kind, "blobs"))]  # fmt: skip
            if 200 not in tried:
                return f"a hole: {item['digest']}"
    return "sha256:" + hashlib.sha256(answer.content).hexdigest()


def tagged(place: Place) -> object:
    """What the first registry has."""
    return pushed(place.host, place.repository)


def tagged_in_second(place: Place) -> object:
    """What the second one has."""
    return pushed(place.second, place.repository)


def attested(place: Place) -> object:
    """The images of an index, the same in every build, and what is attested of them, which names its build."""
    index = tagged(place)
    if not str(index).startswith("sha256:"):
        return index
    found = []
    for item in manifest(place.host, place.repository, "1").json()["manifests"]:
        is_proof = item["platform"]["os"] == "unknown"
        whole = pushed(place.host, place.repository, item["digest"])
        if whole != item["digest"]:
            return whole
        found.append(_predicates(place, item["digest"]) if is_proof else whole)
    return found


def _predicates(place: Place, digest: str) -> list[str]:
    layers: list[dict[str, Any]] = manifest(place.host, place.repository, digest).json()["layers"]
    return [layer["annotations"]["in-toto.io/predicate-type"] for layer in layers]


def whole_cache(place: Place) -> str:
    """A cache names its build, so its digest is never the same."""
    digest = pushed(place.host, f"{place.repository}/cache")
    return "whole" if digest.startswith("sha256:") else digest


def outputs(place: Place) -> object:
    """Every byte of what was written for somebody."""
    return files(place.out)


def names(place: Place) -> object:
    """Files that tell of a build, and so are never the same."""
    return sorted(files(place.out))


def layout(place: Place) -> object:
    """Names in a layout that holds what names a build, with what lies under no name."""
    where = place.out / "layout"
    for path in (where / "blobs/sha256").iterdir():
        if hashlib.sha256(path.read_bytes()).hexdigest() != path.name:
            return f"{path.name} holds something else"
    listed = json.loads((where / "index.json").read_bytes())["manifests"]
    names = [item.get("annotations", {}).get("org.opencontainers.image.ref.name") for item in listed]
    return list(lacking(where)) or names


def lacking(layout: Path) -> Iterator[str]:
    """What the names of an OCI layout lead to, and is not there, or not whole."""
    try:
        named = list(json.loads((layout / "index.json").read_bytes())["manifests"])
    except ValueError:
        named = []
        yield "index.json is torn"
    for item in named:
        algorithm, _, name = item["digest"].partition(":")
        path = layout / "blobs" / algorithm / name
        data = path.read_bytes() if path.is_file() else b""
        if hashlib.sha256(data).hexdigest() != name:
            yield item["digest"]
        elif item["mediaType"] in _ACCEPT.split(","):
            told = json.loads(data)
            named += [*told.get("manifests", ()), *told.get("layers", ())]
            named += [told["config"]] if "config" in told else []


def bundled(place: Place) -> object:
    """Bundles in `out`: what is wrong with each."""
    return {path.name: str(read_bundle(path).damage) for path in place.out.glob("*.bundle")}


def kept(place: Place) -> object:
    """What a collection left."""
    return {part: sorted(path.name for path in (place.root / part).glob("*")) for part in ("layers", "snapshots")} | {
        "blobs": sorted(path.name for path in place.root.glob("blobs/sha256/*"))
    }


def traces(place: Place) -> object:
    """Where a secret can be read."""
    found = [path for path in place.root.rglob("*") if path.is_file() and SECRET.encode() in path.read_bytes()]
    return sorted(str(path.relative_to(place.root)) for path in found)


def both(*outcomes: Callable[[Place], object]) -> Callable[[Place], object]:
    """All of them."""
    return lambda place: [outcome(place) for outcome in outcomes]
