"""Ways in which a root may have come to a result, none of which the result is to tell."""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
from collections.abc import Callable

from tests.variation.project import Place
from tests.waiting import PATIENCE


def killed(place: Place, chance: random.Random) -> None:
    """Builds that were killed, sooner or later."""
    for _ in range(4):
        process = place.start(*place.words(place.out))
        try:
            process.communicate(timeout=chance.uniform(0.3, 6))
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.communicate(timeout=PATIENCE)


def halves(place: Place, _: random.Random) -> None:
    """One stage was built before, and its layer packed in another form."""
    place.run("build", str(place.context), "--target", "two", "-o", "type=image,compression=zstd,compression-level=9",
              *place.surroundings.options)  # fmt: skip


def before(place: Place, _: random.Random) -> None:
    """Everything was built before, for other places, and each layer lies here."""
    elsewhere = place.out.with_name("before")
    elsewhere.mkdir()
    place.run(*place.words(elsewhere))


def elsewhere(place: Place, chance: random.Random) -> None:
    """Everything was built in another root, and comes from a cache, but for some layers."""
    before(place, chance)
    shutil.rmtree(place.root)
    place.run("build", str(place.context), "--cache-from", f"type=local,src={place.out.with_name('before')}/cache",
              *place.surroundings.options)  # fmt: skip


def at_once(place: Place, _chance: random.Random) -> None:
    """The same build runs three times at once."""
    outs = [place.out.with_name(f"beside{number}") for number in range(3)]
    for out in outs:
        out.mkdir()
    running = [place.start(*place.words(out)) for out in outs]
    for process in running:
        _, err = process.communicate(timeout=PATIENCE)
        assert process.returncode == 0, err.decode(errors="replace")[-3000:]
    for name in ("gzip.tar", "zstd.tar", "estargz.tar", "uncompressed.tar", "docker.tar", "files.tar", "iid"):
        assert len({(out / name).read_bytes() for out in outs}) == 1, name


HISTORIES: tuple[Callable[[Place, random.Random], None], ...] = (killed, halves, before, elsewhere, at_once)
