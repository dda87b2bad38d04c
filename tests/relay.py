"""A relay of bytes before a real registry, which holds answers back, or cuts them off, in the middle."""

from __future__ import annotations

import socket
import threading
from contextlib import suppress
from typing import Self

from tests.waiting import PATIENCE


class Relay:
    """Passes on what comes to `host`, both ways. Until `let_go`, a connection that brought `after` bytes brings no
    more: `held` is set then, and at `let_go` it is cut."""

    def __init__(self, upstream: str, after: int) -> None:
        name, _, port = upstream.partition(":")
        self._upstream = (name, int(port))
        self._after = after
        self._server = socket.create_server(("127.0.0.1", 0))
        self._free = threading.Event()
        self.held = threading.Event()

    @property
    def host(self) -> str:
        """`127.0.0.1:PORT`."""
        return f"127.0.0.1:{self._server.getsockname()[1]}"

    def let_go(self) -> None:
        """Cut what is held; hold nothing from now on."""
        self._free.set()

    def __enter__(self) -> Self:
        threading.Thread(target=self._accept, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.let_go()
        # reason: closing alone does not wake up who waits in accept
        with suppress(OSError):
            self._server.shutdown(socket.SHUT_RDWR)
        self._server.close()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                down, _ = self._server.accept()
                up = socket.create_connection(self._upstream)
                threading.Thread(target=self._pump, args=(down, up, None), daemon=True).start()
                threading.Thread(target=self._pump, args=(up, down, self._after), daemon=True).start()

    def _pump(self, source: socket.socket, target: socket.socket, after: int | None) -> None:
        passed = 0
        with suppress(OSError):
            while data := source.recv(65536):
                if after is not None and not self._free.is_set() and passed + len(data) > after:
                    target.sendall(data[: after - passed])
                    self.held.set()
                    self._free.wait(PATIENCE)
                    break
                target.sendall(data)
                passed += len(data)
        for end in (source, target):
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
            end.close()
