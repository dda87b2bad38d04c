"""Base images for demos, tests and benches, made of Debian packages and pushed to a registry.

    python -m tools.lab.seed --registry 127.0.0.1:5000 --repository base/python --kind python

mmdebstrap makes the first layer, `apt-get install` in buildah's chroot each further one. What was made is kept as one
OCI image layout (`$XDG_CACHE_HOME/refledger-seed`), a tag for every prefix of every kind, so a second call only copies.
The packages come from wherever the host's own apt takes them; nothing of the host's apt setup stays in the image.
"""

from __future__ import annotations

import argparse
import fcntl
import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from storage.errors import HostError, RefledgerError
from tools.lab.debian_mirror import DebianMirror

_RECIPE = "2"  # part of every tag: change it when the way images are made changes
_PATH = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

# Each kind is a list of layers, each layer the packages it adds. "busybox" is Debian's static busybox and nothing else.
KINDS: dict[str, tuple[str, ...]] = {
    "busybox": (),
    "small": ("base",),
    "python": ("base", "python3-minimal python3", "sqlite3 ca-certificates"),
    "venv": ("base", "python3-minimal python3", "python3-venv"),
    "node": ("base", "nodejs"),
    "npm": ("base", "nodejs", "npm"),
    "gcc": ("base", "gcc g++ make"),
    "debhelper": ("base", "gcc g++ make", "build-essential debhelper"),
    "golang": ("base", "golang-go"),
    "ssh": ("base", "openssh-client curl ca-certificates"),
    "big": (
        "base",
        "gcc g++ make",
        "python3 python3-dev python3-numpy perl git",
        "libboost-dev golang-1.19-src python3-pandas gdb",
        "clang",
    ),
}


@dataclass(frozen=True, slots=True)
class Seeded:
    """An image in a registry: `reference` names its tag; `digest` of the manifest; sizes are compressed bytes."""

    reference: str
    digest: str
    layers: tuple[tuple[str, int], ...]

    @property
    def size(self) -> int:
        """Bytes of all layers as they travel."""
        return sum(size for _, size in self.layers)


def seed(registry: str, repository: str, kind: str, *, tag: str = "latest", cache: Path | None = None) -> Seeded:
    """Make the image `kind` unless `cache` has it, and push it to `registry` (plain http). Raises HostError."""
    layout = ImageCache(cache or default_cache())
    name = layout.image(kind)
    reference = f"{registry}/{repository}:{tag}"
    source = f"oci:{layout.directory}:{name}"
    _run("skopeo", "copy", "--quiet", "--dest-tls-verify=false", source, f"docker://{reference}")
    raw = _run("skopeo", "inspect", "--raw", "--tls-verify=false", f"docker://{reference}")
    manifest = json.loads(raw)
    return Seeded(
        reference, "sha256:" + hashlib.sha256(raw).hexdigest(),
        tuple((layer["digest"], layer["size"]) for layer in manifest["layers"]),
    )  # fmt: skip


def default_cache() -> Path:
    """`$XDG_CACHE_HOME/refledger-seed`, below `~/.cache` when that is not set."""
    base = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    return Path(base) / "refledger-seed"


class ImageCache:
    """The OCI image layout with everything made so far. One process at a time makes images; others wait."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.directory = root / "images"

    def image(self, kind: str) -> str:
        """The tag of `kind` in the layout; made now when it is missing."""
        steps = KINDS[kind]
        tag = _tag(kind, steps)
        if tag in self._tags():
            return tag
        with self._only_maker(), _Workshop(self) as workshop:
            if kind == "busybox":
                workshop.busybox(tag)
            else:
                self._chain(workshop, steps)
        return tag

    def _chain(self, workshop: _Workshop, steps: Sequence[str]) -> None:
        for count in range(1, len(steps) + 1):
            tag = _tag("", steps[:count])
            if tag in self._tags():
                continue
            if count == 1:
                workshop.base(tag)
            else:
                workshop.extend(_tag("", steps[: count - 1]), steps[count - 1].split(), tag)

    def _tags(self) -> set[str]:
        try:
            index = json.loads((self.directory / "index.json").read_text())
        except FileNotFoundError:
            return set()
        return {entry.get("annotations", {}).get("org.opencontainers.image.ref.name") for entry in index["manifests"]}

    @contextmanager
    def _only_maker(self) -> Iterator[None]:
        self.root.mkdir(parents=True, exist_ok=True)
        with (self.root / "lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield


class _Workshop:
    """A scratch directory with buildah's storage and apt's files; gone afterwards."""

    def __init__(self, cache: ImageCache) -> None:
        self.cache = cache
        self.directory = Path()
        self._mirror: DebianMirror | None = None

    def __enter__(self) -> Self:
        self.directory = Path(tempfile.mkdtemp(prefix="making-", dir=self.cache.root))
        return self

    def __exit__(self, *exc: object) -> None:
        # reason: storage-driver overlay keeps mounts below its root until told otherwise
        subprocess.run([*self._buildah(), "rm", "--all"], capture_output=True, check=False)
        shutil.rmtree(self.directory, ignore_errors=True)

    def busybox(self, tag: str) -> None:
        """One layer: /bin/busybox and its applets as links."""
        busybox = shutil.which("busybox")
        if busybox is None:
            raise HostError("busybox is not installed", hint="apt-get install busybox-static")
        tree = self.directory / "busybox"
        for name in ("bin", "etc", "root", "tmp", "usr", "var"):
            (tree / name).mkdir(parents=True)
        (tree / "tmp").chmod(0o1777)
        shutil.copy2(busybox, tree / "bin/busybox")
        for applet in _run(busybox, "--list").decode().split():
            if applet != "busybox":
                (tree / "bin" / applet).symlink_to("busybox")
        (tree / "etc/passwd").write_text("root:x:0:0:root:/root:/bin/sh\n")
        (tree / "etc/group").write_text("root:x:0:\n")
        self._from_tree(tree, tag, "sh")

    def base(self, tag: str) -> None:
        """One layer: Debian's essential packages and apt, without documentation in other languages."""
        tree = self.directory / "base"
        mirror = self.mirror()
        options = self.directory / "apt-options"
        options.write_text(mirror.options)
        self._announce("a Debian base layer")
        _run(
            "mmdebstrap", "--quiet", "--mode=root", "--variant=apt", "--format=directory",
            f"--aptopt={options}",
            "--dpkgopt=force-unsafe-io",
            "--dpkgopt=path-exclude=/usr/share/man/*", "--dpkgopt=path-exclude=/usr/share/locale/*",
            "--dpkgopt=path-exclude=/usr/share/doc/*", "--dpkgopt=path-include=/usr/share/doc/*/copyright",
            mirror.suite, str(tree), "-", stdin=mirror.sources,
        )  # fmt: skip
        dpkg_options = tree / "etc/dpkg/dpkg.cfg.d/99mmdebstrap"
        dpkg_options.write_text(dpkg_options.read_text().replace("force-unsafe-io\n", ""))
        for left in ("etc/apt/apt.conf.d/99mmdebstrap", "etc/resolv.conf", "etc/hostname"):
            (tree / left).unlink(missing_ok=True)
        (tree / "etc/apt/sources.list").write_text("# name a Debian mirror here to install more packages\n")
        self._from_tree(tree, tag, "bash")

    def extend(self, parent: str, packages: Sequence[str], tag: str) -> None:
        """One layer more: `packages`, installed on the image `parent` of the layout."""
        self._announce(f"a layer with {' '.join(packages)}")
        mirror = self.mirror()
        mounted = "/run/seed"
        mirror.write_config(self.directory / "apt", seen_as=mounted)
        container = self._from(self._stored(parent))
        script = f"apt-get -qq update && apt-get -qq --no-install-recommends install {' '.join(packages)}"
        _run(
            *self._buildah(), "run", "--isolation", "chroot", "--volume", f"{self.directory / 'apt'}:{mounted}",
            "--env", f"APT_CONFIG={mounted}/apt.conf", "--env", "DEBIAN_FRONTEND=noninteractive",
            container, "--", "sh", "-c", script,
        )  # fmt: skip
        # reason: logs and caches hold times and host names
        left = [f"/var/{name}" for name in ("log/apt", "log/dpkg.log", "cache/ldconfig", "cache/debconf")]
        _run(*self._buildah(), "run", "--isolation", "chroot", container, "--", "rm", "-rf", mounted, *left)
        self._commit(container, tag)

    def mirror(self) -> DebianMirror:
        """Where the host's apt takes Debian packages from."""
        if self._mirror is None:
            self._mirror = DebianMirror.of_host()
        return self._mirror

    def _from_tree(self, tree: Path, tag: str, shell: str) -> None:
        container = self._from("scratch")
        _run(*self._buildah(), "add", "--quiet", container, str(tree), "/")
        _run(*self._buildah(), "config", "--env", _PATH, "--cmd", json.dumps([shell]), container)
        self._commit(container, tag)
        shutil.rmtree(tree)

    def _stored(self, tag: str) -> str:
        """Copy the image `tag` of the layout into buildah's storage; returns its name there."""
        name = f"localhost/seed:{tag}"
        where = f"overlay@{self.directory}/storage/root+{self.directory}/storage/run"
        _run("skopeo", "copy", "--quiet", f"oci:{self.cache.directory}:{tag}", f"containers-storage:[{where}]{name}")
        return name

    def _from(self, image: str) -> str:
        return _run(*self._buildah(), "from", "--quiet", image).decode().strip()

    def _commit(self, container: str, tag: str) -> None:
        # reason: compressed once here, not by each copy to a registry
        options = ("--quiet", "--rm", "--disable-compression=false")
        _run(*self._buildah(), "commit", *options, container, f"oci:{self.cache.directory}:{tag}")

    def _buildah(self) -> list[str]:
        storage = self.directory / "storage"
        return ["buildah", "--storage-driver", "overlay", "--root", f"{storage}/root", "--runroot", f"{storage}/run"]

    @staticmethod
    def _announce(what: str) -> None:
        print(f"seed: making {what}", file=sys.stderr, flush=True)


def _tag(kind: str, steps: Sequence[str]) -> str:
    if not steps:
        return f"{kind}-{_RECIPE}"
    return "debian-" + hashlib.sha256("\n".join((_RECIPE, os.uname().machine, *steps)).encode()).hexdigest()[:16]


def _run(*command: str, stdin: str = "") -> bytes:
    """Standard output of `command`; HostError with its last words when it fails."""
    try:
        done = subprocess.run(command, input=stdin.encode(), capture_output=True, check=False)
    except FileNotFoundError:
        raise HostError(f"{command[0]} is not installed", hint=f"apt-get install {command[0]}") from None
    if done.returncode:
        said = (done.stderr or done.stdout).decode(errors="replace").strip().splitlines()
        raise HostError(f"{command[0]} failed ({done.returncode}): {' / '.join(said[-3:])}")
    return done.stdout


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; prints one JSON object: reference, digest, bytes, layers."""
    parser = argparse.ArgumentParser(prog="tools.lab.seed", description="Push a Debian image to a plain-http registry.")
    parser.add_argument("--registry", required=True, metavar="HOST:PORT")
    parser.add_argument("--repository", required=True, metavar="NAME")
    parser.add_argument("--kind", required=True, choices=sorted(KINDS))
    parser.add_argument("--tag", default="latest")
    parser.add_argument("--cache", type=Path, help="default: $XDG_CACHE_HOME/refledger-seed")
    given = parser.parse_args(arguments)
    try:
        made = seed(given.registry, given.repository, given.kind, tag=given.tag, cache=given.cache)
    except RefledgerError as error:
        print(f"seed: {error}", file=sys.stderr)
        return error.exit_code
    layers = [{"digest": digest, "size": size} for digest, size in made.layers]
    print(json.dumps({"reference": made.reference, "digest": made.digest, "bytes": made.size, "layers": layers}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
