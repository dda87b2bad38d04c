"""What all cases share in one session: base images, the oracles, and a root of our own."""

from __future__ import annotations

import os
import re
import subprocess
import time
import warnings
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.builder import Builder, busybox_layer, refledger
from tests.differential.cases.case import Case, lay_context
from tests.differential.oracles import BuildKit, Oracle, Unavailable, buildah, dockerd
from tests.differential.reading import Image, read_archive
from tests.registry_fixture import RegistryProcess, push_image
from tests.waiting import PATIENCE

RICH = {
    "Env": ["PATH=/bin", "BASE_VAR=base value"], "Cmd": ["base-cmd", "x"], "Entrypoint": ["base-entry"],
    "User": "app", "WorkingDir": "/home/app", "Labels": {"base": "label"}, "ExposedPorts": {"1/tcp": {}},
    "Volumes": {"/vol": {}}, "StopSignal": "SIGQUIT", "Shell": ["/bin/sh", "-ec"],
    "Healthcheck": {"Test": ["CMD", "true"], "Interval": 7_000_000_000},
}  # fmt: skip
TRIGGERS = ["RUN echo trigger > /from-trigger", "ENV by=trigger", "COPY one.txt /triggered/"]
FILES: dict[str, bytes] = {
    **dict.fromkeys(("bin/", "etc/", "tmp/", "home/", "home/app/", "dev/", "proc/", "sys/", "run/"), b""),
    # reason: mount points of runtimes; what happens where they are missing is a case of its own (@bare)
    **dict.fromkeys(("etc/hostname", "etc/hosts", "etc/resolv.conf"), b""),
    **busybox_layer(),
    "etc/group": b"root:x:0:\napp:x:1000:\nstaff:x:50:app\n",
}  # fmt: skip
BARE = {name: data for name, data in FILES.items() if data or name in ("bin/", "etc/")}
LIBRARY: dict[str, bytes] = {
    "data/": b"", "data/1": b"one\n", "lib/": b"", "lib/a": b"a", "lib/x/": b"", "lib/x/y": b"y",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Outcome:
    """A build that ended: its image, or None and what was said."""

    image: Image | None
    said: str


class Builders:
    """Builds a case with ours and with each oracle that is here and knows it, all at the same time."""

    def __init__(
        self, oracles: list[Oracle], missing: Mapping[str, str], images: Mapping[str, str], root: Path
    ) -> None:
        self.oracles, self.missing = oracles, missing
        self._images, self._root = images, root
        self.began = time.time()
        # reason: everyone has pulled the base then; its tree is what handwritten expectations are told against
        base = self.build("base", Case("FROM @base\nLABEL a=b"), root / "base")["ours"]
        assert base.image is not None, base.said
        self.base = base.image

    def build(self, name: str, case: Case, directory: Path, *, whole: bool = False) -> dict[str, Outcome]:
        """By builder's name; ours is `ours`. `whole`: nothing is put in front of the text."""
        builder = Builder(directory)
        builder.env["REFLEDGER_ROOT"] = str(self._root / "ours")
        lay_context(builder.context, case.files)
        text = case.text if whole else case.dockerfile
        text = re.sub(r"@(\w+)", lambda found: self._images.get(found[1], found[0]), text)
        (builder.context / "Dockerfile").write_bytes(text.encode())
        tag = f"case-{name.lower()}"
        running: dict[str, subprocess.Popen[str]] = {
            oracle.name: oracle.start(builder.context, case.args, tag)
            for oracle in self.oracles if oracle.name not in case.lacks
        }  # fmt: skip
        archive = directory / "ours.tar"
        done = refledger(
            "build", str(builder.context), "--progress", "plain", "-o", f"type=oci,dest={archive}", *case.args,
            env=builder.env, timeout=PATIENCE,
        )  # fmt: skip
        out = {"ours": Outcome(read_archive(archive) if done.code == 0 else None, done.err)}
        for oracle in self.oracles:
            if process := running.get(oracle.name):
                said, _ = process.communicate(timeout=PATIENCE)
                image = oracle.read(tag, directory) if process.returncode == 0 else None
                out[oracle.name] = Outcome(image, said)
        return out


@pytest.fixture(scope="session")
def daemon() -> Iterator[BuildKit | Unavailable]:
    """The dockerd of this session, or why there is none, which is warned about."""
    with ExitStack() as stack:
        try:
            found: BuildKit | Unavailable = stack.enter_context(dockerd())
        except Unavailable as error:
            warnings.warn(f"nothing is compared with buildkit: {error}", stacklevel=1)
            found = error
        yield found


@pytest.fixture
def docker(daemon: BuildKit | Unavailable) -> BuildKit:
    """The dockerd of this session, for tests that are skipped without."""
    if isinstance(daemon, Unavailable):
        pytest.skip(str(daemon))
    return daemon


@pytest.fixture(scope="session")
def builders(
    daemon: BuildKit | Unavailable, registry: RegistryProcess, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Builders]:
    """The builders of this session. An oracle that cannot run here is warned about, and its comparisons are skipped."""
    if os.geteuid() != 0:
        pytest.skip("a RUN needs root here")
    root = tmp_path_factory.mktemp("differential")
    images = {}
    for name, files, config in (
        ("base", FILES, {"Env": ["PATH=/bin"], "Cmd": ["sh"]}),
        ("bare", BARE, {"Env": ["PATH=/bin"], "Cmd": ["sh"]}),
        ("rich", FILES, RICH),
        ("triggers", FILES, {"Env": ["PATH=/bin"], "OnBuild": TRIGGERS}),
    ):
        images[name] = push_image(registry.host, f"differential/{name}", [files, LIBRARY], config=config)["reference"]
    oracles: list[Oracle] = []
    missing = {}
    if isinstance(daemon, Unavailable):
        missing[BuildKit.name] = str(daemon)
    else:
        oracles.append(daemon)
    with ExitStack() as stack:
        try:
            oracles.append(stack.enter_context(buildah()))
        except Unavailable as error:
            missing["buildah"] = str(error)
            warnings.warn(f"nothing is compared with buildah: {error}", stacklevel=1)
        yield Builders(oracles, missing, images, root)
