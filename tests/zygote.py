"""A process that has imported the command line, and forks one that runs a module for whoever asks (see processes.py).

To import our modules takes a command longer than most of what tests let it do. What is forked here is to be no
different from `python -m MODULE`: it has the environment, arguments, descriptors, directory, session and end of one.
`tests/test_processes.py` compares the two. What they share with one another, and processes of their own would not:
the seed of `hash`, and modules that others than they import.
"""

from __future__ import annotations

import atexit
import gc
import importlib
import json
import os
import pkgutil
import runpy
import selectors
import socket
import sys
import threading
import time
from contextlib import suppress
from typing import Any, NoReturn

PACKAGES = ("engine", "projections", "storage", "tools.auditing", "tools.cli", "tools.replaying")
READY = b"ready"
APART = ("tools.cli.main", "tools.cli.browse.command")
"""Modules whose names begin so are not imported: runpy runs the first, textual reads the environment for the others."""


def preload() -> None:
    """Import what commands import."""
    for name in PACKAGES:
        package = importlib.import_module(name)
        for module in pkgutil.walk_packages(package.__path__, f"{name}."):
            if not module.name.startswith(APART):
                importlib.import_module(module.name)
    from storage.registry.clients import load_httpx

    load_httpx()


def serve(control: socket.socket) -> tuple[str, list[str]] | None:
    """Fork for every request on `control`. Returns in what was forked, with the module to run and its arguments, and
    None in the zygote when nobody is left who could ask. A request is a JSON object and the descriptors of standard
    input, output and error, and of a pipe that is told the process id and, when it ended, the wait status."""
    interpreters = dict(os.environ)  # what it was started with, and LC_CTYPE where it coerced the locale (PEP 538)
    running: dict[int, tuple[int, int]] = {}
    with selectors.DefaultSelector() as selector:
        selector.register(control, selectors.EVENT_READ)
        while True:
            for key, _ in selector.select():
                if key.fd != control.fileno():
                    selector.unregister(key.fd)
                    pid, told = running.pop(key.fd)
                    os.close(key.fd)
                    _tell(told, os.waitpid(pid, 0)[1])
                    os.close(told)
                    continue
                message, descriptors, _, _ = socket.recv_fds(control, 1 << 20, 4)
                if not message:
                    return None
                told = descriptors[3]
                if not (pid := os.fork()):
                    selector.close()
                    control.close()
                    for watched, (_, other) in running.items():
                        os.close(watched)
                        os.close(other)
                    return _become(json.loads(message), descriptors, interpreters)
                for descriptor in descriptors[:3]:
                    os.close(descriptor)
                _tell(told, pid)
                watched = os.pidfd_open(pid)
                running[watched] = (pid, told)
                selector.register(watched, selectors.EVENT_READ)


def _tell(told: int, number: int) -> None:
    with suppress(BrokenPipeError):  # who asked does not wait any longer
        os.write(told, f"{number}\n".encode())


def _become(request: dict[str, Any], descriptors: list[int], interpreters: dict[str, str]) -> tuple[str, list[str]]:
    os.setsid()
    for number, descriptor in enumerate(descriptors[:3]):
        os.dup2(descriptor, number)
    for descriptor in descriptors:
        os.close(descriptor)
    os.umask(request["umask"])
    os.environ.clear()
    os.environ.update(interpreters | request["env"])
    time.tzset()
    return request["module"], request["args"]


def main() -> None:
    """Serve on the socket whose descriptor is the argument, or run what was asked for."""
    control = socket.socket(fileno=int(sys.argv[1]))
    preload()
    gc.collect()
    gc.freeze()  # reason: a collection in what is forked would touch, and so copy, all that it shares
    control.send(READY)
    if command := serve(control):
        module, arguments = command
        sys.argv[1:] = arguments
        _end(_run(module))


def _run(module: str) -> int:
    """The exit code. An exception that the interpreter would tell of goes on to it."""
    try:
        runpy.run_module(module, run_name="__main__", alter_sys=True)
    except SystemExit as end:
        if not isinstance(end.code, int | None):
            raise
        return end.code or 0
    return 0


def _end(code: int) -> NoReturn:
    """What the interpreter does at its end, in its order (Py_FinalizeEx), but for taking all modules apart: that would
    copy most of what is shared with the zygote, and take longer than most commands."""
    threading._shutdown()  # type: ignore[attr-defined]
    atexit._run_exitfuncs()
    gc.collect()
    try:
        sys.stdout.flush()
        sys.stderr.flush()
    except (OSError, ValueError):  # which the interpreter has words and a code for
        sys.exit(code)
    os._exit(code)


if __name__ == "__main__":
    main()
