"""Runs an image from a registry with tools that know nothing of Refledger: skopeo fetches, umoci unpacks, runc runs."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from urllib.error import URLError
from urllib.request import urlopen


class BrokenPromise(Exception):
    """What is claimed was not seen."""


def unpack(reference: str, bundle: Path) -> None:
    """Make `bundle`, a runtime bundle, of the image `reference` in a plain-http registry."""
    layout = f"{bundle}-layout"
    for left in (bundle, Path(layout)):
        shutil.rmtree(left, ignore_errors=True)
    run("skopeo", "copy", "--quiet", "--src-tls-verify=false", f"docker://{reference}", f"oci:{layout}:it")
    run("umoci", "unpack", "--image", f"{layout}:it", str(bundle))


def command_of(reference: str, arguments: Sequence[str]) -> list[str]:
    """What the image starts with these arguments: its ENTRYPOINT with them, or with its CMD when there are none."""
    config = json.loads(run("skopeo", "inspect", "--config", "--tls-verify=false", f"docker://{reference}"))["config"]
    return [*(config.get("Entrypoint") or []), *(arguments or config.get("Cmd") or [])]


def answer(reference: str, arguments: Sequence[str], stdin: str, directory: Path) -> str:
    """What the image prints, run with `arguments` and `stdin`; `directory` is for files on the way."""
    bundle = directory / "bundle"
    unpack(reference, bundle)
    configure(bundle, command_of(reference, arguments))
    return run("runc", "--root", str(directory / "runc"), "run", "--bundle", str(bundle), _name(), stdin=stdin)


def served(reference: str, path: str, directory: Path) -> str:
    """What the image answers to GET `path`, run as a service. HOST and PORT, or ADDRESS, tell it where to listen."""
    bundle, port = directory / "bundle", free_port()
    unpack(reference, bundle)
    listen = {"HOST": "127.0.0.1", "PORT": port, "ADDRESS": f"127.0.0.1:{port}"}
    configure(bundle, command_of(reference, ()), listen)
    with running(bundle, directory / "runc"):
        return fetched(f"http://127.0.0.1:{port}{path}")


def configure(bundle: Path, arguments: Sequence[str], environment: Mapping[str, object] | None = None) -> None:
    """Let umoci's bundle run `arguments` with more `environment`, no terminal, and the host's network."""
    path = bundle / "config.json"
    config = json.loads(path.read_text())
    process = config["process"]
    process.update(terminal=False, args=list(arguments))
    process["env"] += [f"{key}={value}" for key, value in (environment or {}).items()]
    config["linux"]["namespaces"] = [space for space in config["linux"]["namespaces"] if space["type"] != "network"]
    path.write_text(json.dumps(config))


def _name() -> str:
    """The name of the one container that this process has at a time."""
    return f"refledger-projects-{os.getpid()}"


@contextlib.contextmanager
def running(bundle: Path, state: Path) -> Iterator[None]:
    """Run `bundle` for the time of the context; what it says is in a BrokenPromise that is raised inside."""
    runc = ["runc", "--root", str(state)]
    said = bundle.with_suffix(".output")
    with said.open("wb") as output:
        process = subprocess.Popen(
            [*runc, "run", "--bundle", str(bundle), _name()], stdin=subprocess.DEVNULL, stdout=output, stderr=output
        )
        try:
            yield
        except BrokenPromise as error:
            raise BrokenPromise(f"{error}; it said: {said.read_text(errors='replace').strip()[-500:]}") from None
        finally:
            # reason: not TERM, which a program that is process 1 does not hear unless it listens for it
            subprocess.run([*runc, "kill", _name(), "KILL"], capture_output=True, check=False)
            process.wait()
            subprocess.run([*runc, "delete", "--force", _name()], capture_output=True, check=False)


def fetched(url: str) -> str:
    """What `url` answers, tried for a minute."""
    deadline = time.monotonic() + 60
    while True:
        try:
            with urlopen(url, timeout=5) as answer:  # noqa: S310
                return str(answer.read().decode())
        except (URLError, OSError) as error:
            if time.monotonic() > deadline:
                raise BrokenPromise(f"{url} does not answer ({error})") from None
            time.sleep(0.1)


def free_port() -> int:
    """A port of 127.0.0.1 that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def run(*command: str, stdin: str = "", environment: Mapping[str, str] | None = None) -> str:
    """Standard output of `command`; BrokenPromise with its last words when it fails."""
    done = subprocess.run(command, input=stdin, capture_output=True, text=True, check=False, env=environment)
    if done.returncode:
        said = "\n".join((done.stderr or done.stdout).strip().splitlines()[-20:])
        raise BrokenPromise(f"{Path(command[0]).name} ended with exit code {done.returncode}:\n{said}")
    return done.stdout
