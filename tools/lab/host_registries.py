"""Where this host's pip, npm and apt take packages from, in a form that a build elsewhere can be lent.

Nothing of it is known here: these programs are asked. What they take from directories of this host is
served on 127.0.0.1, where steps with the host's network reach it.
"""

from __future__ import annotations

import ast
import contextlib
import json
import os
import subprocess
import threading
from collections.abc import Iterator, Mapping
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

from storage.errors import HostError
from tools.lab.debian_mirror import DebianMirror

_CA = "/run/secrets/ca"  # where a step sees the secret `ca` that names no target
_PIP_KEYS = ("index-url", "extra-index-url", "find-links", "no-index", "trusted-host", "proxy", "timeout")
_NPM_KEYS = ("registry", "proxy", "https-proxy", "noproxy", "strict-ssl")


@contextlib.contextmanager
def host_registries(directory: Path) -> Iterator[Mapping[str, Path]]:
    """Files in `directory` by the id of the secret they are lent as: `apt` (a sources.list), `apt-options` (an
    apt.conf), `pip` (a pip.conf), `npm` (an .npmrc), and `ca`, the certificates that pip and npm trust. What the host
    has no client of is left out."""
    directory.mkdir(parents=True, exist_ok=True)
    lent: dict[str, Path] = {}
    authorities: list[Path] = []
    with contextlib.ExitStack() as stack:
        with contextlib.suppress(HostError):
            mirror = DebianMirror.of_host()
            lent["apt"] = _written(directory / "sources.list", [mirror.sources])
            lent["apt-options"] = _written(directory / "apt.conf", [mirror.options])
        pip = _pip_config()
        if pip is not None:
            lines = [f"{key} = {_reachable(pip[key], key, stack)}" for key in _PIP_KEYS if pip.get(key)]
            lines += _trust(pip.get("cert"), authorities, "cert = ")
            lent["pip"] = _written(directory / "pip.conf", ["[global]", *lines])
        npm = _npm_config()
        if npm is not None:
            lines = [f"{key}={_npm_value(npm[key])}" for key in _NPM_KEYS if npm.get(key) is not None]
            lines += _trust(npm.get("cafile"), authorities, "cafile=")
            lent["npm"] = _written(directory / "npmrc", lines)
        if authorities:
            texts = dict.fromkeys(path.read_text() for path in authorities)
            lent["ca"] = _written(directory / "ca.pem", list(texts))
        yield lent


def _pip_config() -> dict[str, str] | None:
    """pip's settings; the environment's win. None without pip."""
    said = _asked("python3", "-m", "pip", "config", "list")
    if said is None:
        return None
    found = {}
    for line in sorted(said.splitlines(), key=lambda line: line.startswith(":env:")):
        name, _, value = line.partition("=")
        section, _, key = name.rpartition(".")
        if section in {"global", "install", ":env:"}:
            found[key] = str(ast.literal_eval(value))
    return found


def _npm_config() -> dict[str, object] | None:
    said = _asked("npm", "config", "list", "--json")
    return None if said is None else dict(json.loads(said))


def _asked(*command: str) -> str | None:
    """What `command` prints; None when there is no such program, or it refuses."""
    environment = {**os.environ, "PIP_DISABLE_PIP_VERSION_CHECK": "1"}
    try:
        done = subprocess.run(
            command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False, env=environment, cwd="/"
        )
    except FileNotFoundError:
        return None
    return done.stdout if done.returncode == 0 else None


def _reachable(value: str, key: str, stack: contextlib.ExitStack) -> str:
    """The words of `value`, directories of this host as URLs on 127.0.0.1."""
    words = []
    for word in value.split():
        path = Path(unquote(urlsplit(word).path)) if word.startswith("file:") else Path(word)
        if not path.is_absolute() or not path.is_dir():
            words.append(word)
        elif key == "find-links":
            words.append(stack.enter_context(_serving(path)) + "/")
        else:  # reason: an index names its files relative to itself, above it
            words.append(f"{stack.enter_context(_serving(path.parent))}/{path.name}")
    return " ".join(words)


class _Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        """Nobody reads it."""


@contextlib.contextmanager
def _serving(directory: Path) -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(_Quiet, directory=str(directory))) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()


def _trust(path: object, authorities: list[Path], setting: str) -> list[str]:
    if not isinstance(path, str) or not Path(path).is_file():
        return []
    authorities.append(Path(path))
    return [setting + _CA]


def _npm_value(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def _written(path: Path, lines: list[str]) -> Path:
    path.write_text("\n".join(lines) + "\n")
    path.chmod(0o600)
    return path
