"""A private registry for demos and benches: Debian's docker-registry on 127.0.0.1, its access log as data."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from storage.errors import HostError

_LINE = re.compile(r'"(?P<method>[A-Z]+) (?P<path>\S+) [^"]*" (?P<status>\d{3}) (?P<bytes>\d+|-) ')
_BLOB = re.compile(r"/v2/(?P<name>.+)/blobs/(?P<digest>sha256:[0-9a-f]{64})")
_LISTENING = re.compile(r"listening on (?P<host>127\.0\.0\.1:\d+)")


@dataclass(frozen=True, slots=True)
class Request:
    """One line of the access log: `bytes` of the body the registry wrote, `path` with its query."""

    method: str
    path: str
    status: int
    bytes: int

    @property
    def blob(self) -> str:
        """The digest of the blob that is read or asked for; "" for another kind of request."""
        matched = _BLOB.fullmatch(self.path.partition("?")[0])
        return matched["digest"] if matched else ""

    @property
    def mounted(self) -> bool:
        """Did this request mount a blob from another repository?"""
        return self.method == "POST" and "mount=" in self.path and self.status == 201


class LoopbackRegistry:
    """`docker-registry serve` with its data, `access.log` and `service.log` in `directory`.

    It dies with the thread that started it, also on kill -9. Raises HostError when it cannot start.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.host = ""  # `127.0.0.1:PORT` once started, and whenever it is started again
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> Self:
        """Start it and wait until it listens: on a free port, or after `stop` on the one it had."""
        if shutil.which("docker-registry") is None:
            raise HostError("docker-registry is not installed", hint="apt-get install docker-registry")
        self.directory.mkdir(parents=True, exist_ok=True)
        config = self.directory / "config.yml"
        config.write_text(json.dumps(self._config()))  # JSON is YAML
        service = self.directory / "service.log"
        with (self.directory / "access.log").open("wb") as out, service.open("wb") as err:
            self._process = subprocess.Popen(
                ["setpriv", "--pdeathsig", "TERM", "docker-registry", "serve", str(config)],
                stdin=subprocess.DEVNULL, stdout=out, stderr=err, process_group=0,
            )  # fmt: skip
        deadline = time.monotonic() + 120  # as long as a busy machine takes
        while time.monotonic() < deadline and self._process.poll() is None:
            if found := _LISTENING.search(service.read_text()):
                self.host = found["host"]
                return self
            time.sleep(0.02)
        self.stop()
        last = (service.read_text().splitlines() or ["it said nothing"])[-1]
        raise HostError(f"docker-registry did not start: {last}", where=str(config))

    def stop(self) -> None:
        """Stop it. Harmless when it is not running."""
        process, self._process = self._process, None
        if process is None:
            return
        process.terminate()
        try:
            process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *exc: object) -> None:
        self.stop()

    def requests(self) -> list[Request]:
        """All requests so far, in the order they were done."""
        log = self.directory / "access.log"
        size = -1
        # reason: a line is written after the last byte of the answer, so a client may be ahead of the log
        while size != (size := log.stat().st_size):
            time.sleep(0.05)
        found = map(_LINE.search, log.read_text().splitlines())
        return [
            Request(line["method"], line["path"], int(line["status"]), int(line["bytes"].replace("-", "0")))
            for line in found if line
        ]  # fmt: skip

    def blob_gets(self, digests: Iterable[str], *, since: int = 0) -> list[Request]:
        """The requests, after the first `since`, that were answered with bytes of one of the blobs `digests`."""
        wanted = set(digests)
        return [
            request for request in self.requests()[since:]
            if request.method == "GET" and request.blob in wanted and request.status in {200, 206}
        ]  # fmt: skip

    def _config(self) -> dict[str, object]:
        """distribution's configuration (docs: registry/configuration.md)."""
        return {
            "version": "0.1",
            "log": {"level": "info", "accesslog": {"disabled": False}},
            "storage": {
                "filesystem": {"rootdirectory": str(self.directory / "data")},
                "delete": {"enabled": True},
                "maintenance": {"uploadpurging": {"enabled": False}},
            },
            "http": {"addr": self.host or "127.0.0.1:0", "secret": "loopback"},
        }
