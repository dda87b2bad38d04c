"""One crash: the command dies at a moment, and is run again; what comes of it is compared with the undisturbed run."""

from __future__ import annotations

import itertools
import random
import secrets
import shutil
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from tests.crash import judge
from tests.crash.beside import Beside
from tests.crash.place import Done, Place
from tests.crash.power import Disk
from tests.crash.scene import Scene, images
from tests.crash.unsynced import lose
from tests.registry_fixture import RegistryProcess

SIGNALS = ("TERM", "INT", "HUP")
INTERRUPTED = 130
DISKS = {"power": "ext4", "power-xfs": "xfs", "power-btrfs": "btrfs"}
HOWS = ("after", "before", "inside", "before-op", "signal", "twice", "unsynced", "later", *DISKS)
"""Kinds of crash: at events, between changes of files, by a signal that can be handled, once more in what mends; and
loss of power, by the letter (unsynced.py), also later, when another one has found what one left that died before a
flush, and ended well, and on a disk (power.py)."""
FLUSHES = ("os.fsync", "syncfs")
_WORLDS = frozenset({"unsynced", "later", *DISKS})


def kind_of(moment: str) -> str:
    """One of HOWS."""
    world, plus, rest = moment.rpartition("+")
    return world if plus else "signal" if rest.count(":") == 2 else rest.partition(":")[0]


def disk_of(how: str) -> str:
    """The file system that this kind of crash needs for itself; "" when it does not."""
    return DISKS.get(how, "")


@dataclass(frozen=True, slots=True)
class Crash:
    """What happened: `met` names the moment, `wrong` is empty when all was as without a crash. `outlived`: processes of
    the victim that were there a while after its death, before anything was started again."""

    scene: str
    moment: str
    met: str
    wrong: tuple[str, ...]
    outlived: tuple[str, ...] = ()

    def __str__(self) -> str:
        state = "; ".join(self.wrong)[:1500] or "right"
        return f"{self.scene}, {self.moment} ({self.met}): {state}"


@dataclass(slots=True)
class Stage:
    """A scene with its registries, ready to crash: what it was before is kept, and what comes of it is known."""

    scene: Scene
    place: Place
    kept: Path
    undisturbed: Done
    expected: object
    disk: Disk | None = None
    events: int = 0
    names: Iterator[int] = field(default_factory=itertools.count)
    token: str = field(default_factory=lambda: secrets.token_hex(6))

    def moments(self, hows: Sequence[str]) -> Iterator[str]:
        """Every moment of the undisturbed run: each transaction, and each change of a file."""
        worlds = [] if self.scene.beside else sorted(_WORLDS & set(hows) - {"later"})  # what is beside would live on
        ends = list(itertools.accumulate(map(len, self.undisturbed.groups)))
        for number, last in enumerate(ends):
            for how in ("after", "before", "inside", "twice"):
                if how in hows:
                    yield f"{how}:{last}"
            if "signal" in hows:
                yield f"after:{last}:{SIGNALS[number % len(SIGNALS)]}"
            for world in worlds:
                yield f"{world}+{('after', 'before', 'inside')[number % 3]}:{last}"
        for world in worlds:
            yield f"{world}+end"
        for number, op in enumerate(self.undisturbed.ops, 1):
            if "before-op" in hows:
                yield f"before-op:{number}"
            if "later" in hows and op.startswith(FLUSHES) and not self.scene.beside:
                yield f"later+before-op:{number}"

    def crash(self, moment: str) -> Crash:
        """Crash at `moment`, begin again, and look."""
        world, _, rest = moment.rpartition("+")
        how, _, rest = rest.partition(":")
        number, _, signal = rest.partition(":")
        dice = random.Random(f"{self.scene.name} {moment}")
        self._begin(dice)
        scene, place = self.scene, self.place
        beside = Beside(scene, place) if scene.beside is not None else None
        here = f"after:{number}" if how == "twice" else moment.replace("later+", "unsynced+")
        done = place.run(scene.command(place), here)
        wrong, outlived, met = self._ended(done, signal), list[str](), done.last_met
        promised = self.events + done.events
        if done.killed and beside is None:
            outlived = _outliving(place)
        if world:
            if world == "later":
                done = place.run(scene.command(place), "unsynced+end", lost=done.lost)
                wrong += self._ended(done, "")
                promised += done.events
            if self.disk is None:
                lose(done.lost)
            else:
                self.disk.pull_the_plug(dice)
            wrong += self._broken_promises(done, promised)
        wrong += judge.holes(place)
        if how == "twice":
            # the first event of the next start is the one that says what happened
            second = place.run(scene.command(place), "after:1" if number[-1:] in "13579" else "before-op:3")
            if not second.killed and second.code not in scene.codes:  # it may have nothing left to do
                wrong.append(f"the second start ended with {second.code}: {second.err[-200:]}")
        wrong += self._again(beside)
        return Crash(scene.name, moment, met, tuple(wrong), tuple(outlived))

    def _broken_promises(self, done: Done, promised: int) -> list[str]:
        """What the log had promised (`promised` events), and outputs that are neither whole nor absent."""
        there = judge.events(self.place)
        wrong = [f"{there} events of {promised} are there after power loss"] if there < promised else []
        if there:
            wrong += [f"after power loss: {one}" for one in judge.unsound(self.place, views=False)]
        wrong += judge.torn(self.place)
        if not done.killed and done.code == 0:  # whoever started it was told that it is done
            wrong += self._compared("after exit code 0 and power loss")
        return wrong

    def _begin(self, dice: random.Random) -> None:
        self.place.sessions.clear()  # their numbers are given to others in time
        if self.disk is None:
            self.place.put_back(self.kept)
        else:
            self.disk.put_back(self.kept, dice)
        self.place.repository = f"crash/{self.token}/{next(self.names)}"

    def _ended(self, done: Done, signal: str) -> list[str]:
        """What is wrong with how the first one ended."""
        if "Traceback" in done.err or "internal error" in done.err:
            return [f"the first run: {done.err[-300:]}"]
        if done.killed:
            return []
        right = {INTERRUPTED, *self.scene.codes} if signal else {*self.scene.codes}  # it may be over before its moment
        if done.code not in right:
            return [f"exit code {done.code} after {f'SIG{signal}' if signal else 'nothing'}: {done.err[-200:]}"]
        if not signal or self.scene.beside is not None:
            return []
        left = [f"left by SIG{signal}: {one}" for one in judge.leftovers(self.place)]
        if done.code == INTERRUPTED:
            left += [f"after SIG{signal}: {one}" for one in judge.told(self.place)]
        return left

    def _again(self, beside: Beside | None) -> list[str]:
        """Run it once more, wait for what is `beside`, and compare."""
        scene, place = self.scene, self.place
        again = place.run(scene.command(place))
        wrong = []
        if again.code not in scene.codes:
            wrong.append(f"exit code {again.code} when run again: {again.err[-300:].strip()}")
        if "Traceback" in again.err or "internal error" in again.err:
            wrong.append(f"run again: {again.err[-300:]}")
        if scene.then is not None:
            then = place.run(scene.then(place))
            if then.code:
                wrong.append(f"exit code {then.code} of what comes then: {then.err[-300:]}")
        if beside is not None:
            wrong += beside.finish()
        if not wrong:
            wrong += self._compared("another outcome")
        return wrong + judge.problems(place)

    def _compared(self, what: str) -> list[str]:
        try:
            outcome = self.scene.outcome(self.place)
        except (OSError, ValueError) as error:
            outcome = repr(error)
        return [] if outcome == self.expected else [f"{what}: {_difference(outcome, self.expected)}"]


def _outliving(place: Place) -> list[str]:
    """What is alive some seconds after the victim: on a busy machine the kernel may take as long to end one after the
    other what is to die with it."""
    until = time.monotonic() + 10
    while (alive := judge.processes(place)) and time.monotonic() < until:
        time.sleep(0.01)
    return list(alive.values())


def _difference(found: object, expected: object) -> str:
    if isinstance(found, dict) and isinstance(expected, dict):
        keys = sorted(key for key in found.keys() | expected.keys() if found.get(key) != expected.get(key))
        return ", ".join(f"{key}: {found.get(key)} instead of {expected.get(key)}" for key in keys)
    return f"{found} instead of {expected}"


@contextmanager
def registries(directory: Path) -> Iterator[tuple[RegistryProcess, RegistryProcess]]:
    """Two, the first with what scenes begin with."""
    with RegistryProcess(directory / "hub") as hub, RegistryProcess(directory / "second") as second:
        images(hub)
        yield hub, second


@contextmanager
def staged(scene: Scene, directory: Path, host: str, second: str, *, on: str = "") -> Iterator[Stage]:
    """`scene`, run once undisturbed; `on`: a file system of its own. `directory` is made, and removed."""
    directory.mkdir(parents=True)
    place = Place(directory / "place", host, second, keeps=scene.keeps)
    disk = Disk(directory / "disk.img", place.directory, on) if on else None
    stage = Stage(scene, place, directory / "kept", Done(0, "", ""), None, disk)
    try:
        if disk is not None:
            disk.make()
        place.lay_out()
        place.repository = f"crash/before/{stage.token}"
        scene.before(place)
        if disk is None:
            place.keep(stage.kept)
        else:
            disk.keep(stage.kept)
        stage._begin(random.Random(0))
        stage.events = judge.events(place)
        beside = Beside(scene, place) if scene.beside is not None else None
        stage.undisturbed = place.run(scene.command(place), "end")
        if beside is not None and (wrong := beside.finish()):
            raise AssertionError(f"{scene.name}: {wrong}")
        if stage.undisturbed.code not in scene.codes:
            raise AssertionError(f"{scene.name}: exit code {stage.undisturbed.code}\n{stage.undisturbed.err}")
        if scene.then is not None:
            place.must(*scene.then(place))
        stage.expected = scene.outcome(place)
        if wrong := judge.problems(place):
            raise AssertionError(f"{scene.name}, undisturbed: {wrong}")
        yield stage
    finally:
        if disk is not None:
            disk.unmount()
        shutil.rmtree(directory, ignore_errors=True)
