"""The story of a lazy ref, with every claim counted in the registry's own access log.

Exit code 0 when all that is claimed was seen, 1 when not, 3 when the host refuses, 130 when interrupted.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.request import Request, urlopen

from storage.errors import HostError, RefledgerError
from tools.lab import PROJECT
from tools.lab.image_runner import BrokenPromise, command_of, configure, fetched, free_port, run, running
from tools.lab.loopback_registry import LoopbackRegistry
from tools.lab.peers import workplace
from tools.lab.seed import Seeded, seed

EXAMPLE = PROJECT / "examples/notes"
APP = "apps/notes:1"


@dataclass(frozen=True)
class Stage:
    """What the acts share: a registry with a base image in it, and an empty root for Refledger."""

    directory: Path
    registry: LoopbackRegistry
    base: Seeded

    def refledger(self, *arguments: str, show: bool = True) -> str:
        """Run the command line; its output goes to the terminal (`show`) or is returned."""
        command = [str(PROJECT / "tools/refledger"), *arguments]
        if show:
            say(f"$ refledger {' '.join(argument.replace(f'{PROJECT}/', '') for argument in arguments)}")
        process = subprocess.Popen(
            command, env={**os.environ, "REFLEDGER_ROOT": str(self.directory / "root")}, text=True,
            stdout=None if show else subprocess.PIPE, stderr=subprocess.STDOUT if show else None,
        )  # fmt: skip
        try:
            output, _ = process.communicate()
        except BaseException:
            # reason: it stops its own steps and mounts when it is asked to; killing it would leave that undone
            process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(timeout=60)
            process.kill()
            raise
        if process.returncode:
            raise BrokenPromise(f"refledger {arguments[0]} ended with exit code {process.returncode}")
        return output or ""

    def build(self, dockerfile: str, name: str) -> None:
        """Build the example with `dockerfile` on the base image and push it as `name`."""
        self.refledger(
            "build", str(EXAMPLE), "-f", str(EXAMPLE / dockerfile), "--build-arg", f"BASE={self.base.reference}",
            "-t", f"{self.registry.host}/{name}", "--push",
        )  # fmt: skip

    def events(self) -> list[dict[str, Any]]:
        """The whole log."""
        return [json.loads(line) for line in self.refledger("events", "--json", show=False).splitlines()]


@dataclass(frozen=True)
class Seen:
    """What one act did: counts from the registry's access log and the events it added to the log."""

    layers_read: int
    layer_bytes: int
    mounts: int
    seconds: float
    events: list[dict[str, Any]]

    def of(self, kind: str) -> list[dict[str, Any]]:
        """The events of this type."""
        return [event for event in self.events if event["type"] == kind]


def label_only(stage: Stage) -> None:
    """Act 1."""
    title("1. Only names", "Dockerfile.label adds labels and a variable. Nothing needs the base image's files.")
    seen = watch(stage, "Dockerfile.label", "apps/label:1")
    tell_registry(seen, stage)
    require(seen.layers_read == 0, "no layer was fetched")
    require(seen.mounts == len(stage.base.layers), "every layer was mounted from the base image's repository")
    require(not seen.of("MaterializationRequested"), "the log has no MaterializationRequested")


def with_run(stage: Stage) -> None:
    """Act 2."""
    title("2. Now something runs", "Dockerfile has RUN, which needs the files: the pull stands under that step.")
    seen = watch(stage, "Dockerfile", APP)
    tell_registry(seen, stage)
    asked, pulled = seen.of("MaterializationRequested"), seen.of("LayerPulled")
    # reason for bytes: a large layer is fetched in several parts
    once = seen.layers_read == len(stage.base.layers) and seen.layer_bytes == stage.base.size
    require(once, "every layer was fetched once")
    counted = sum(event["data"]["bytes"] for event in pulled)
    require(seen.layer_bytes == counted, f"the log counts the same {counted} bytes as the registry")
    first = min((event["seq"] for event in pulled), default=0)
    require(bool(asked) and asked[0]["seq"] < first, "the log asked for it before it was fetched")


def again(stage: Stage) -> None:
    """Act 3."""
    title("3. The same again", "All of it is in the cache.")
    seen = watch(stage, "Dockerfile", APP)
    tell_registry(seen, stage)
    require(seen.layers_read == 0, "no layer was fetched")
    require(not seen.of("MaterializationRequested"), "no step asked for files")
    require(bool(seen.of("VertexCached")), f"{len(seen.of('VertexCached'))} steps were cached")


def run_result(stage: Stage) -> None:
    """Act 4: with tools that know nothing of Refledger."""
    title("4. Run what was pushed", "skopeo fetches it, umoci unpacks it, runc runs it.")
    layout, bundle = stage.directory / "layout", stage.directory / "bundle"
    host = stage.registry.host
    tell_and_run("skopeo", "copy", "--quiet", "--src-tls-verify=false", f"docker://{host}/{APP}", f"oci:{layout}:notes")
    tell_and_run("umoci", "unpack", "--image", f"{layout}:notes", str(bundle))
    port = free_port()
    configure(bundle, command_of(f"{host}/{APP}", ["serve", "--host", "127.0.0.1", "--port", str(port)]))
    with running(bundle, stage.directory / "runc"):
        url = f"http://127.0.0.1:{port}/notes"
        fetched(url)
        for text in ("pointers are cheap", "bytes are not"):
            with urlopen(Request(url, json.dumps({"text": text}).encode()), timeout=10) as answer:
                say(f"POST {url} -> {answer.status}")
        with urlopen(url, timeout=10) as answer:
            notes = json.load(answer)
        say(f"GET  {url} -> {json.dumps([note['text'] for note in notes])}")
    require(len(notes) == 2, "the application answers")


def life_of_the_base(stage: Stage) -> None:
    """Act 5."""
    title("5. The base image's ref, as the log tells it", "The same pointer in all three builds.")
    ref = next(event["data"]["ref"] for event in stage.events() if event["type"] == "RemoteCreated")
    stage.refledger("refs", ref)


def watch(stage: Stage, dockerfile: str, name: str) -> Seen:
    """Build, and count what that caused."""
    before = len(stage.registry.requests())
    seq = max((event["seq"] for event in stage.events()), default=0) if (stage.directory / "root").exists() else 0
    started = time.monotonic()
    stage.build(dockerfile, name)
    seconds = time.monotonic() - started
    gets = stage.registry.blob_gets((digest for digest, _ in stage.base.layers), since=before)
    return Seen(
        len({request.blob for request in gets}), sum(request.bytes for request in gets),
        sum(request.mounted for request in stage.registry.requests()[before:]),
        seconds, [event for event in stage.events() if event["seq"] > seq],
    )  # fmt: skip


def tell_registry(seen: Seen, stage: Stage) -> None:
    """What the registry saw of an act."""
    say(
        f"{seen.seconds:.2f} s. The registry's access log: {seen.layers_read} of {len(stage.base.layers)} base layers "
        f"read, {seen.layer_bytes / 1e6:.1f} MB; {seen.mounts} mounted."
    )


def tell_and_run(*command: str) -> None:
    """Show `command`, run it, show what it says only when it fails."""
    say(f"$ {' '.join(command)}")
    run(*command)


def require(held: bool, claim: str) -> None:
    """A claim, ticked; BrokenPromise when it does not hold."""
    if not held:
        raise BrokenPromise(f"not so: {claim}")
    say(f"✓ {claim}")


def title(text: str, explanation: str) -> None:
    """The start of an act."""
    say(f"\n── {text}\n   {explanation}\n")


def say(text: str) -> None:
    """One line, at once: other programs write to the same terminal."""
    print(text, flush=True)


def interrupted(*_: object) -> None:
    """SIGTERM and SIGHUP end the demo as Ctrl-C does: through every `finally`."""
    raise KeyboardInterrupt


def main() -> int:
    """All acts, in order."""
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, interrupted)
    try:
        with workplace() as directory, LoopbackRegistry(directory / "registry") as registry:
            say(f"A private registry on {registry.host}. Its base image, Debian with Python, takes a minute once.")
            base = seed(registry.host, "base/python", "python")
            sizes = " + ".join(f"{size / 1e6:.1f}" for _, size in base.layers)
            say(f"{base.reference}: {len(base.layers)} layers, {sizes} MB")
            stage = Stage(directory, registry, base)
            for act in (label_only, with_run, again, run_result, life_of_the_base):
                act(stage)
        say("\nEverything it started is stopped.")
    except BrokenPromise as error:
        say(f"\n✗ {error}")
        return 1
    except RefledgerError as error:
        say(f"\n✗ {error}")
        return error.exit_code if isinstance(error, HostError) else 1
    except KeyboardInterrupt:
        say("\ninterrupted; everything it started is stopped.")
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
