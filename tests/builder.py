"""Runs the real command line in a root of its own, and makes base images with a shell in them."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from storage.overlay import mounts_below
from tests.processes import run_module
from tests.registry_fixture import RegistryProcess, push_image
from tests.waiting import PATIENCE

PROJECT = Path(__file__).resolve().parents[1]
APPLETS = (
    "sh cat echo ls true false sleep mkdir touch rm cp mv ln stat id env printf chmod chown sed seq sync kill test"
)


@dataclass(frozen=True, slots=True)
class Done:
    """A finished process."""

    code: int
    out: str
    err: str


def refledger(*args: str, env: Mapping[str, str], stdin: bytes | None = None, timeout: float = PATIENCE) -> Done:
    """`refledger ARGS` to its end: see `run_module`."""
    done = run_module("tools.cli.main", *args, env=env, stdin=stdin, timeout=timeout)
    out, err = (
        text.decode(errors="replace").replace("\r\n", "\n").replace("\r", "\n") for text in (done.stdout, done.stderr)
    )
    assert "Traceback" not in err, err
    return Done(done.returncode, out, err)


class Builder:
    """One root and one context directory."""

    def __init__(self, directory: Path) -> None:
        self.root = directory / "root"
        self.context = directory / "context"
        self.context.mkdir(parents=True, exist_ok=True)
        self.env = {"PATH": os.environ["PATH"], "HOME": str(directory), "REFLEDGER_ROOT": str(self.root)}

    def write(self, files: Mapping[str, str | bytes]) -> None:
        """Put `files` into the context."""
        for name, data in files.items():
            path = self.context / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data if isinstance(data, bytes) else data.encode())

    def start(self, *args: str, env: Mapping[str, str] | None = None) -> subprocess.Popen[str]:
        """`refledger ARGS` in the background, in a session of its own."""
        return subprocess.Popen(
            [sys.executable, "-m", "tools.cli.main", *args],
            env={**self.env, **(env or {})}, cwd=PROJECT, text=True, errors="replace",
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True,
        )  # fmt: skip

    def run(self, *args: str, env: Mapping[str, str] | None = None) -> Done:
        """`refledger ARGS` to its end."""
        return refledger(*args, env={**self.env, **(env or {})})

    def build(self, dockerfile: str, *args: str, env: Mapping[str, str] | None = None) -> Done:
        """Build `dockerfile` in the context."""
        self.write({"Dockerfile": dockerfile})
        return self.run("build", str(self.context), "--progress", "plain", *args, env=env)

    def must_build(self, dockerfile: str, *args: str, env: Mapping[str, str] | None = None) -> Done:
        """Build, and fail the test when that fails."""
        done = self.build(dockerfile, *args, env=env)
        assert done.code == 0, done.err
        return done

    def events(self, *types: str, build: str | None = None) -> list[dict[str, Any]]:
        """The log, through the command line; only `types` when given."""
        done = self.run("events", "--json", *(["--build", build] if build else []))
        assert done.code == 0, done.err
        found = [json.loads(line) for line in done.out.splitlines()]
        return [event for event in found if not types or event["type"] in types]

    def builds(self) -> list[dict[str, Any]]:
        """`history`, the newest first."""
        return [json.loads(line) for line in self.run("history", "--json").out.splitlines()]

    def leftovers(self) -> list[str]:
        """What no finished or recovered build may leave: mounts and temporary files below the root."""
        files = (path for where in ("tmp/*", "run/*/*") for path in self.root.glob(where))
        return [str(path) for path in (*mounts_below(self.root), *files)]


def busybox_layer() -> dict[str, bytes]:
    """/bin/busybox and a script for every applet that tests use (plain files are enough for tests)."""
    files = {"bin/busybox": Path("/bin/busybox").read_bytes()}
    for applet in APPLETS.split():
        files[f"bin/{applet}"] = f"#!/bin/busybox sh\nexec /bin/busybox {applet} \"$@\"\n".encode()
    files["etc/passwd"] = b"root:x:0:0:root:/root:/bin/sh\napp:x:1000:1000::/home/app:/bin/sh\n"
    files["etc/group"] = b"root:x:0:\napp:x:1000:\n"
    return files


def base_image(registry: RegistryProcess, name: str, *, size: int = 300_000, layers: int = 3) -> dict[str, Any]:
    """Push an image with a shell: a busybox layer, and `layers` - 1 more of `size` bytes that do not compress."""
    rng = random.Random(name)
    more = [{f"data/{i}": rng.randbytes(size)} for i in range(1, layers)]
    return push_image(registry.host, name, [busybox_layer(), *more], config={"Env": ["PATH=/bin"], "Cmd": ["sh"]})


def layer_digests(image: Mapping[str, Any]) -> list[str]:
    """The digests of the image's layer blobs."""
    return [layer["digest"] for layer in image["layers"]]
