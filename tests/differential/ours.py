"""`refledger` in processes forked from one that has all its modules: hundreds of builds need not each import them."""

from __future__ import annotations

import multiprocessing
import os
import sys
from collections.abc import Mapping
from pathlib import Path

from tests.builder import Done

_CONTEXT = multiprocessing.get_context("forkserver")
_CONTEXT.set_forkserver_preload(["tests.differential.preload"])


def refledger(*args: str, env: Mapping[str, str], output: Path, timeout: float) -> Done:
    """The command with `args` to its end; `output`: a file for what it writes. `out` and `err` are the same."""
    process = _CONTEXT.Process(target=_main, args=(args, dict(env), str(output)))
    process.start()
    process.join(timeout)
    if process.exitcode is None:
        process.kill()
        process.join()
    said = output.read_text(errors="replace")
    assert "Traceback" not in said, said
    assert process.exitcode is not None
    return Done(process.exitcode, said, said)


def _main(args: tuple[str, ...], env: dict[str, str], output: str) -> None:
    descriptor = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    os.environ.clear()
    os.environ.update(env)
    sys.argv = ["refledger", *args]
    from tools.cli.main import main

    main()
