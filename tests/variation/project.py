"""One project that has a bit of everything, built with every output: what of that is the same each time."""

from __future__ import annotations

import hashlib
import io
import json
import os
import random
import re
import stat
import subprocess
import tarfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from engine.cache.facts import MEDIA_TYPE as FACTS_TYPE
from tests.builder import busybox_layer
from tests.registry_fixture import RegistryProcess, push_image
from tests.variation.surroundings import Surroundings
from tests.waiting import PATIENCE

COMPRESSIONS = ("gzip", "zstd", "estargz", "uncompressed")
EPOCH = 1_600_000_000
_DOCKERFILE = """\
FROM {base} AS one
RUN mkdir -p /made/z /made/a; for i in c a b; do echo $i > /made/$i; ln /made/$i /made/z/$i; done; ln -s ../a /made/a/l
FROM {base} AS two
WORKDIR /w/x
RUN --mount=type=cache,target=/cache echo two > /w/x/two; echo x >> /cache/x; rm -r /data/d1; mkdir /data/d1
RUN rm /data/f1; touch -d @1500000000 /w/old; chmod 2750 /w; mv /data/d2 /data/d3
FROM {base}
COPY --from=one /made /m/
COPY --link --from=two /w /w/
COPY tree /tree/
COPY --chown=app:app --chmod=640 tree/b tree/a /some/
ADD packed.tar /packed/
COPY <<x /here
word
x
RUN --mount=type=bind,source=tree,target=/bound mkdir /seen; for i in $(ls /bound); do echo $i > /seen/$i; done
RUN --mount=type=bind,from=two,source=/w,target=/bound cp -r /bound /again; id > /id; env | grep -v HOSTNAME > /env
LABEL b=1 a=2 c=3
ENV Z=1 A=2
VOLUME /v2 /v1
EXPOSE 80 443 22
"""


def push_base(registry: RegistryProcess, name: str) -> str:
    """Push the image that the project stands on; returns its reference."""
    chance = random.Random(name)
    data: dict[str, bytes] = {f"data/f{i}": chance.randbytes(700) for i in range(12)}
    data |= {f"data/d{i}/{j}": chance.randbytes(90) for i in range(4) for j in range(3)}
    status = "".join(
        f"Package: p{i}\nStatus: install ok installed\nArchitecture: amd64\nVersion: {i}\nLicense: X\n\n"
        for i in (3, 1, 2)
    )
    data |= {"var/lib/dpkg/status": status.encode(), "etc/os-release": b"ID=debian\nVERSION_ID=12\n"}
    return str(push_image(registry.host, name, [busybox_layer(), data], config={"Env": ["PATH=/bin"]})["reference"])


def write_context(context: Path, base: str, chance: random.Random) -> None:
    """The same files each time, made in an order and at times that `chance` draws."""
    contents = random.Random(1)
    files = {f"tree/{name}": contents.randbytes(900) for name in "hgfedcbaABä"}
    files |= {f"tree/sub{i}/{name}": contents.randbytes(5000) for i in range(3) for name in "zyx"}
    files["tree/large"] = contents.randbytes(1 << 20) + bytes(2 << 20) + contents.randbytes(3 << 20)
    files |= {"Dockerfile": _DOCKERFILE.format(base=base).encode(), "packed.tar": _archive(contents)}
    names = list(files)
    chance.shuffle(names)
    for name in names:
        path = context / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.parent.chmod(0o755)
        path.write_bytes(files[name])
        path.chmod(0o644)
        late = EPOCH + chance.randrange(10**8)
        os.utime(path, ns=(late * 10**9, late * 10**9 + chance.randrange(10**9)))
    (context / "tree/link").symlink_to("a")
    os.link(context / "tree/a", context / "tree/twin")


def _archive(contents: random.Random) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for name in ("q", "p", "d/z", "d/y"):
            info = tarfile.TarInfo(name)
            info.size, info.mtime = 600, EPOCH + 99
            info.pax_headers = {f"SCHILY.xattr.user.{key}": key for key in "cab"}
            tar.addfile(info, io.BytesIO(contents.randbytes(600)))
        for name in ("l2", "l1"):
            info = tarfile.TarInfo(name)
            info.type, info.linkname = tarfile.LNKTYPE, "q"
            tar.addfile(info)
    return out.getvalue()


@dataclass(slots=True)
class Made:
    """`outputs` of a build and `facts` that the log has of it, each by what it is of; `images`: files of layers; the
    digest of the image in the layout; the id of the `build`."""

    outputs: dict[str, str]
    facts: dict[str, str]
    images: dict[str, str]
    digest: str
    build: str


class Place:
    """A root, a context and what comes out, in `directory`, in `surroundings`."""

    def __init__(self, directory: Path, surroundings: Surroundings) -> None:
        self.surroundings = surroundings
        self.root, self.context, self.out = (directory / name for name in ("root", "context", "out"))
        self.out.mkdir(parents=True)

    def start(self, *args: str) -> subprocess.Popen[bytes]:
        """`refledger ARGS` in the background."""
        env = {"HOME": str(self.root.parent), "REFLEDGER_ROOT": str(self.root), "SOURCE_DATE_EPOCH": str(EPOCH)}
        return self.surroundings.start(*args, env=env)

    def run(self, *args: str) -> bytes:
        """`refledger ARGS`; what it wrote to standard output."""
        process = self.start(*args)
        out, err = process.communicate(timeout=PATIENCE)
        assert process.returncode == 0, (args, process.returncode, err.decode(errors="replace")[-3000:])
        return out

    def words(self, out: Path) -> list[str]:
        """How the project is built with every output below `out`."""
        words = ["build", str(self.context), "-t", "example.test/app:1", "--progress", "plain"]
        for kind in COMPRESSIONS:
            words += ["-o", f"type=oci,dest={out}/{kind}.tar,compression={kind},force-compression=true"]
        words += ["-o", f"type=oci,dest={out}/layout,tar=false", "-o", f"type=docker,dest={out}/docker.tar"]
        words += ["-o", f"type=local,dest={out}/local", "-o", f"type=tar,dest={out}/files.tar"]
        words += ["--cache-to", f"type=local,dest={out}/cache,mode=max", "--iidfile", f"{out}/iid"]
        return [*words, "--metadata-file", f"{out}/metadata", *self.surroundings.options]

    def build(self) -> Made:
        """Build the project with every output, and once more with an SBOM."""
        self.run(*self.words(self.out))
        self.run("build", str(self.context), "--attest", "type=sbom", "-o", f"type=oci,dest={self.out}/sbom,tar=false",
                 *self.surroundings.options)  # fmt: skip
        said = json.loads((self.out / "metadata").read_bytes())
        build = said["refledger.build.id"]
        images = {path.name: _sum(path) for path in self.root.glob("layers/*.erofs")}
        return Made(dict(self._outputs()), self._facts(build), images, said["containerimage.digest"], build)

    def _outputs(self) -> Iterator[tuple[str, str]]:
        for path in sorted(self.out.iterdir()):
            if path.name == "local":
                yield from ((f"local/{name}", said) for name, said in _look(path))
            elif path.name == "cache":
                yield from _cache(path)
            elif path.is_dir():
                yield from ((f"{path.name}/{name.relative_to(path)}", _sum(name)) for name in _files(path))
            elif path.name == "metadata":
                # the result of a step is named by the build that executed it
                told = re.sub(r'"refledger.(build.id|ref)": "[^"]*"', "", path.read_text())
                yield path.name, told.replace(str(self.out), "OUT")
            else:
                yield path.name, _sum(path)

    def _facts(self, build: str) -> dict[str, str]:
        """Digests that the log tells, in no order, as steps end when they end."""
        told: dict[str, set[str]] = {}
        for line in self.run("events", "--json", "--build", build).splitlines():
            event = json.loads(line)
            kept = {name: event["data"][name] for name in _FACTS.get(event["type"], ()) if name in event["data"]}
            if kept:
                told.setdefault(event["type"], set()).add(json.dumps(kept, sort_keys=True))
        return {name: "\n".join(sorted(lines)) for name, lines in told.items()}


_FACTS = {
    "BuildStarted": ("definition", "context"), "GraphDefined": ("graph",), "ContextScanned": ("listing",),
    "BlobCreated": ("diff_id", "digest", "bytes"), "CacheRecorded": ("key", "components"),
    "LayerScanned": ("diff_id", "scan"), "VertexCompleted": ("name",),
}  # fmt: skip


def _files(directory: Path) -> list[Path]:
    return sorted(path for path in directory.rglob("*") if path.is_file() and not path.is_symlink())


def _sum(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _look(tree: Path) -> Iterator[tuple[str, str]]:
    first: dict[int, str] = {}
    for path in sorted(tree.rglob("*")):
        info, name = path.lstat(), str(path.relative_to(tree))
        said: list[object] = [oct(info.st_mode), info.st_uid, info.st_gid, info.st_mtime_ns]
        if stat.S_ISLNK(info.st_mode):
            said.append(str(path.readlink()))
        elif stat.S_ISREG(info.st_mode):
            said += [_sum(path), first.setdefault(info.st_ino, name), sorted(os.listxattr(path))]
        yield name, repr(said)


def _cache(layout: Path) -> Iterator[tuple[str, str]]:
    """What a cache holds, without the builds that made it, and the plain text that a key is the digest of: a root that
    got a result from another cache has that of one of its two keys."""
    (manifest,) = (_document(layout, one) for one in json.loads((layout / "index.json").read_bytes())["manifests"])
    named = [one["digest"] for one in manifest["layers"] if not one["mediaType"].startswith(FACTS_TYPE)]
    yield "cache", " ".join([manifest["config"]["digest"], *named])
    for one in manifest["layers"]:
        if one["mediaType"].startswith(FACTS_TYPE):
            keys = _document(layout, one)["keys"]
            for key, said in keys.items():
                yield f"cache {key}", json.dumps({**said, "build": "", "ref": "", "components": ""}, sort_keys=True)


def _document(layout: Path, descriptor: Mapping[str, str]) -> Any:
    return json.loads((layout / "blobs/sha256" / descriptor["digest"].partition(":")[2]).read_bytes())


def differing(one: Mapping[str, str], two: Mapping[str, str]) -> dict[str, tuple[str, str]]:
    """What is not the same in both, and what it is in each."""
    return {
        name: (one.get(name, "nothing"), two.get(name, "nothing"))
        for name in sorted({*one, *two}) if one.get(name) != two.get(name)
    }  # fmt: skip
