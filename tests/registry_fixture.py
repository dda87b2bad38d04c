"""A real registry (Debian's docker-registry) on loopback, its access log as data, and tiny images to put in it."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import re
import socket
import ssl
import subprocess
import tarfile
import time
import urllib.request
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import lru_cache
from pathlib import Path
from typing import Any

import httpx

from tests.waiting import PATIENCE

WEB = httpx.Client(
    verify=ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT), limits=httpx.Limits(max_keepalive_connections=0), timeout=PATIENCE
)
"""For requests to servers on loopback. Others read all certificates of this machine, each time, before the first."""

OCI_MANIFEST = "application/vnd.oci.image.manifest.v1+json"
OCI_CONFIG = "application/vnd.oci.image.config.v1+json"
OCI_LAYER = "application/vnd.oci.image.layer.v1.tar+gzip"

USER, PASSWORD = "tester", "correct horse"
# reason for a constant: making bcrypt hashes needs a library or the deprecated crypt module
HTPASSWD = f"{USER}:$2b$04$abcdefghijklmnopqrstuujydOTSfIH/d5oUHpsygqV5X9xJLQc6e\n"

_LINE = re.compile(
    r'(?P<client>\S+) \S+ \S+ \[(?P<time>[^\]]+)\] "(?P<method>[A-Z]+) (?P<path>\S+) [^"]*" '
    r'(?P<status>\d{3}) (?P<bytes>\d+|-) "[^"]*" "(?P<agent>[^"]*)"'
)
_BLOB = re.compile(r"/v2/(?P<name>.+)/blobs/(?P<digest>sha256:[0-9a-f]{64})")


@dataclass(frozen=True, slots=True)
class AccessLine:
    """One request as the registry logged it when it was done. `path` has the query; `bytes` of the body it wrote;
    `partial` for an answer to a Range; `started` in nanoseconds since the epoch (whole seconds for refused ones)."""

    method: str
    path: str
    status: int
    bytes: int
    agent: str
    started: int

    @property
    def partial(self) -> bool:
        return self.status == 206

    @property
    def blob(self) -> str:
        """The digest of the blob that is read or asked for; "" for another kind of request."""
        matched = _BLOB.fullmatch(self.path.partition("?")[0])
        return matched["digest"] if matched else ""


class RegistryProcess:
    """`docker-registry serve` with its data in `directory`. `htpasswd`: contents of a password file, for basic auth;
    `token`: its `auth.token`, for bearer tokens; `tls`: its `http.tls`. What they are counts when it starts."""

    def __init__(
        self,
        directory: Path,
        port: int = 0,
        htpasswd: str | None = None,
        *,
        token: Mapping[str, str] | None = None,
        tls: Mapping[str, Any] | None = None,
    ) -> None:
        self.directory = directory
        self.port = port or free_port()
        self.htpasswd = htpasswd
        self.token = token
        self.tls = tls
        self.access_log = directory / "access.log"
        self._process: subprocess.Popen[bytes] | None = None
        self._requests: list[AccessLine] = []
        self._starts: dict[tuple[str, str, int, int], list[int]] = {}  # of requests that are in the service log only
        self._read: dict[Path, int] = {}  # how many bytes of each log

    @property
    def host(self) -> str:
        """`127.0.0.1:PORT`."""
        return f"127.0.0.1:{self.port}"

    def start(self) -> RegistryProcess:
        """Start, and wait until it answers."""
        self.directory.mkdir(parents=True, exist_ok=True)
        config: dict[str, Any] = {
            "version": "0.1",
            "log": {"level": "info", "formatter": "json", "accesslog": {"disabled": False}},
            "storage": {
                "filesystem": {"rootdirectory": str(self.directory / "data")},
                "delete": {"enabled": True},
                "maintenance": {"uploadpurging": {"enabled": False}},
            },
            "http": {"addr": self.host, "secret": "only for tests"},
        }
        if self.htpasswd is not None:
            passwords = self.directory / "htpasswd"
            passwords.write_text(self.htpasswd)
            config["auth"] = {"htpasswd": {"realm": "tests", "path": str(passwords)}}
        if self.token is not None:
            config["auth"] = {"token": dict(self.token)}
        if self.tls is not None:
            config["http"]["tls"] = dict(self.tls)
        path = self.directory / "config.yml"
        path.write_text(json.dumps(config))  # JSON is YAML
        with self.access_log.open("ab") as out, (self.directory / "service.log").open("ab") as err:
            # reason for setpriv: it ends with us, also when we are killed
            command = ["setpriv", "--pdeathsig", "TERM", "docker-registry", "serve", str(path)]
            self._process = subprocess.Popen(command, stdout=out, stderr=err)
        deadline = time.monotonic() + PATIENCE
        while time.monotonic() < deadline:
            if self._process.poll() is not None:
                break
            try:
                socket.create_connection(("127.0.0.1", self.port), timeout=1).close()
            except OSError:
                time.sleep(0.02)
            else:
                return self
        self.stop()
        raise RuntimeError(f"docker-registry did not start:\n{(self.directory / 'service.log').read_text()[-2000:]}")

    def stop(self) -> None:
        """Stop it; `start` may follow, with the same data and port."""
        if self._process is not None:
            self._process.terminate()
            self._process.wait(PATIENCE)
            self._process = None

    def __enter__(self) -> RegistryProcess:  # noqa: PYI034  reason: nothing subclasses it
        return self.start()

    def __exit__(self, *exc: object) -> None:
        self.stop()

    def requests(self) -> list[AccessLine]:
        """All requests so far, in the order they were done."""
        self._settle()
        access, service = self._new_lines(self.access_log), self._new_lines(self.directory / "service.log")
        for text in service:  # the access log has whole seconds only
            entry = json.loads(text) if text.startswith("{") else {}
            if "http.response.duration" in entry:
                key = (
                    entry["http.request.method"], entry["http.request.uri"],
                    entry.get("http.response.status", 0), entry.get("http.response.written", 0),
                )  # fmt: skip
                began = nanoseconds(entry["time"]) - _duration(entry["http.response.duration"])
                self._starts.setdefault(key, []).append(began)
        for text in access:
            if matched := _LINE.match(text):
                method, path = matched["method"], matched["path"]
                status, count = int(matched["status"]), int(matched["bytes"].replace("-", "0"))
                waiting = self._starts.get((method, path, status, count))
                whole = int(datetime.strptime(matched["time"], "%d/%b/%Y:%H:%M:%S %z").timestamp()) * 10**9
                started = waiting.pop(0) if waiting else whole
                self._requests.append(AccessLine(method, path, status, count, matched["agent"], started))
        return list(self._requests)

    def mark(self) -> int:
        """The number of requests so far: `requests()[mark:]` are those that came after."""
        return len(self.requests())

    def layer_gets(self, digests: Iterable[str], *, since: int = 0) -> list[AccessLine]:
        """The requests that read one of the blobs `digests`, answered with its bytes (or some of them)."""
        wanted = set(map(str, digests))
        return [
            line for line in self.requests()[since:]
            if line.method == "GET" and line.blob in wanted and line.status in {200, 206}
        ]  # fmt: skip

    def mounts(self, *, since: int = 0) -> list[AccessLine]:
        """The cross-repository mounts that were granted."""
        return [
            line for line in self.requests()[since:]
            if line.method == "POST" and "mount=" in line.path and line.status == 201
        ]  # fmt: skip

    def blob_path(self, digest: str) -> Path:
        """Where the registry keeps the blob: for tests that damage or remove it."""
        algorithm, _, digits = digest.partition(":")
        return self.directory / "data/docker/registry/v2/blobs" / algorithm / digits[:2] / digits / "data"

    def _settle(self) -> None:
        # reason: a line is written after the last byte of the answer, so a client may be ahead of the log; and a proxy
        # in this process may still have something to pass on
        size = -1
        while size != (size := self.access_log.stat().st_size):
            time.sleep(0.01)
            while self._process is not None and self._process.poll() is None and _is_busy(self._process.pid):
                time.sleep(0.001)

    def _new_lines(self, log: Path) -> list[str]:
        """What was written since it was read last."""
        with log.open("rb") as file:
            file.seek(self._read.get(log, 0))
            lines, end, _ = file.read().rpartition(b"\n")
        self._read[log] = self._read.get(log, 0) + len(lines + end)
        return lines.decode().splitlines()


def _is_busy(pid: int) -> bool:
    """Does any thread do something, or wait for a disk? A Go program with something to do has a thread for it."""
    try:
        states = [
            (task / "stat").read_text().rpartition(")")[2].split()[0] for task in Path(f"/proc/{pid}/task").iterdir()
        ]
    except (FileNotFoundError, ProcessLookupError):  # a thread ended just now
        return True
    return set(states) != {"S"}


def free_port() -> int:
    """A port of 127.0.0.1 that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def layer_tar(files: Mapping[str, bytes]) -> bytes:
    """A tar of `files` (path to contents; a path that ends in / is a directory), the same bytes every time."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for name, data in files.items():
            info = tarfile.TarInfo(name.rstrip("/"))
            info.mtime = 1_700_000_000
            if name.endswith("/"):
                info.type, info.mode = tarfile.DIRTYPE, 0o755
                tar.addfile(info)
            else:
                info.size, info.mode = len(data), 0o755 if name.startswith(("bin/", "usr/bin/")) else 0o644
                tar.addfile(info, io.BytesIO(data))
    return out.getvalue()


@lru_cache(maxsize=8)
def _compressed(tar: bytes, level: int) -> bytes:
    """Most images that are made begin with the same layer."""
    return gzip.compress(tar, level, mtime=0)


def digest_of(data: bytes) -> str:
    """`sha256:…` of `data`."""
    return "sha256:" + hashlib.sha256(data).hexdigest()


def push_blob(host: str, name: str, data: bytes, auth: tuple[str, str] | None = None) -> str:
    """Put `data` into repository `name`; returns its digest."""
    digest = digest_of(data)
    login = auth or httpx.USE_CLIENT_DEFAULT
    begun = WEB.post(f"http://{host}/v2/{name}/blobs/uploads/", auth=login).raise_for_status()
    url = httpx.URL(begun.headers["location"]).copy_add_param("digest", digest)
    WEB.put(url, content=data, auth=login).raise_for_status()
    return digest


def push_manifest(
    host: str, name: str, tag: str, data: bytes, media_type: str, auth: tuple[str, str] | None = None
) -> str:
    """Put a manifest or index; returns its digest."""
    url = f"http://{host}/v2/{name}/manifests/{tag}"
    login = auth or httpx.USE_CLIENT_DEFAULT
    WEB.put(url, content=data, headers={"Content-Type": media_type}, auth=login).raise_for_status()
    return digest_of(data)


def push_image(
    host: str,
    name: str,
    layers: Sequence[Mapping[str, bytes]],
    *,
    tag: str = "latest",
    config: Mapping[str, Any] | None = None,
    architecture: str = "amd64",
    auth: tuple[str, str] | None = None,
    level: int = 9,
) -> dict[str, Any]:
    """Make an OCI image of `layers` (each path to contents), compressed at gzip's `level`, push it, and return
    `{reference, digest, size, manifest, config, layers: [{mediaType, digest, size, diff_id}]}`."""
    described = []
    for files in layers:
        tar = layer_tar(files)
        blob = _compressed(tar, level)
        digest = push_blob(host, name, blob, auth)
        described.append({"mediaType": OCI_LAYER, "digest": digest, "size": len(blob), "diff_id": digest_of(tar)})
    image = {
        "architecture": architecture, "os": "linux", "created": "2024-01-01T00:00:00Z",
        "config": dict(config or {}),
        "rootfs": {"type": "layers", "diff_ids": [layer["diff_id"] for layer in described]},
        "history": [{"created": "2024-01-01T00:00:00Z", "created_by": f"layer {i}"} for i in range(len(described))],
    }  # fmt: skip
    config_bytes = json.dumps(image, sort_keys=True).encode()
    manifest = {
        "schemaVersion": 2, "mediaType": OCI_MANIFEST,
        "config": {"mediaType": OCI_CONFIG, "digest": push_blob(host, name, config_bytes, auth),
                   "size": len(config_bytes)},
        "layers": [{key: layer[key] for key in ("mediaType", "digest", "size")} for layer in described],
    }  # fmt: skip
    data = json.dumps(manifest, sort_keys=True).encode()
    digest = push_manifest(host, name, tag, data, OCI_MANIFEST, auth)
    return {
        "reference": f"{host}/{name}:{tag}", "digest": digest, "size": len(data), "manifest": manifest,
        "config": image, "layers": described,
    }  # fmt: skip


def get_json(host: str, path: str) -> Any:
    """A small JSON document of the registry's API, as it is."""
    with urllib.request.urlopen(f"http://{host}{path}", timeout=PATIENCE) as answer:
        return json.load(answer)


def nanoseconds(stamp: str) -> int:
    """RFC 3339 with nanoseconds, UTC."""
    whole, _, fraction = stamp.rstrip("Z").partition(".")
    seconds = int(datetime.fromisoformat(whole + "+00:00").timestamp())
    return seconds * 10**9 + int(fraction.ljust(9, "0")[:9] or 0)


def _duration(text: str) -> int:
    """A Go duration such as `1m2.5s` or `763.144µs`, in nanoseconds."""
    units = {"h": 3600e9, "m": 60e9, "s": 1e9, "ms": 1e6, "µs": 1e3, "us": 1e3, "ns": 1.0}
    return round(sum(float(number) * units[unit] for number, unit in re.findall(r"([0-9.]+)(ms|µs|us|ns|h|m|s)", text)))
