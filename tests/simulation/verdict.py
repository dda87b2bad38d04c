"""What must hold when processes end, when the power is lost, and at the end of all."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path

from storage.interfaces.images import Reference
from storage.interfaces.log import Event
from tests.simulation import oracle
from tests.simulation.machine import SECRET, Doing, Machine, disk_problems, reader_of, view_problems
from tests.simulation.model import Made
from tests.simulation.oracle import Ended, Read
from tests.simulation.registry import MemoryRegistries
from tests.simulation.scenarios import Act
from tests.simulation.wanted import Wanted

EXIT_OF_FAULTS = frozenset({3, 4})
_LASTING = ("partial/", "locks/")
"""What may be left: an interrupted pull waits to be gone on with; a file that nobody has locked is no lock."""


_LAYOUTS = ("layout", "copied", "cache")
"""How those begin that builds and copies write to."""


class Verdict:
    """Finds `problems`. `ended`: how processes ended; `dead`: builds whose end nobody was told; `harm`: how many
    faults have struck so far that may be a reason to fail."""

    def __init__(
        self, wanted: Wanted, registries: MemoryRegistries, machines: Sequence[Machine], harm: Callable[[], int]
    ) -> None:
        self.problems: list[str] = []
        self.dead: set[str] = set()
        self.inline: set[int] = set()
        """Dockerfiles whose image in the first target has an inline cache."""
        self._ended: list[Ended] = []
        self._pushed: set[Reference] = set()
        self._files: dict[tuple[int, str], tuple[Machine, Act]] = {}
        self._wanted = wanted
        self._registries = registries
        self._machines = machines
        self._harm = harm

    def process(self, doing: Doing, ended: Ended) -> None:
        """It ended by itself."""
        if "event log" in ended.error:
            self.dead.add(doing.build)  # its log could not be told how it ended
        else:
            self._ended.append(ended)
        allowed = doing.allowed | (EXIT_OF_FAULTS if self._harm() > doing.harm else set())
        if ended.exit not in allowed:
            told = f"{doing.act.kind} {doing.build} ended with {ended.exit} ({ended.error})"
            self.problems.append(f"I12 {told}, not one of {sorted(allowed)}")
        self.problems += [f"I12 {doing.build} ended, and still holds {name}" for name in doing.process.calls.held()]
        self.problems += oracle.secret_problems([SECRET], {f"the error of {doing.build}": ended.error.encode()})
        if doing.act.kind == "build" and doing.act.target == 0:
            (self.inline.add if ended.exit == 0 and doing.act.cache_to == "inline" else self.inline.discard)(
                self._wanted.subject(doing.act)
            )
        if ended.exit == 0 and doing.act.kind in {"build", "copy"}:
            self._made(doing)

    def _made(self, doing: Doing) -> None:
        """It did what it was to do: what came of it is there."""
        act, place = doing.act, self._wanted.file(doing.act, "")
        self._pushed |= {self._wanted.name(act)} if act.kind == "build" and act.target >= 0 else set()
        if place:
            self._files[doing.machine.disk.number, place] = doing.machine, act
            self._file(doing.machine, act)
        if act.target >= 0:
            self._image(act, self._wanted.copied(act) if act.kind == "copy" else self._wanted.name(act))
        if doing.cached:
            names = [event.data["name"] for event in doing.machine.events if _starts(event, doing.build)]
            self.problems += [f"I5 {doing.build} runs {name}, whose result the cache has" for name in names]

    def has_source(self, machine: Machine, act: Act) -> bool:
        """Is what `act` copies there, as somebody was told?"""
        built = self._wanted.source(act)
        if built.file:
            return (machine.disk.number, self._wanted.file(built, "")) in self._files
        return self._wanted.name(built) in self._pushed

    def quiet(self, machine: Machine) -> None:
        """Nobody does anything on `machine`: what its log names is there. What the disk failed to write, somebody is
        told of now at the latest."""
        machine.disk.files.errors.told = True
        here = reader_of(machine.disk).stored()
        kinds: dict[str, Sequence[str]] = {"blobs": here.blobs, "layers": here.layers, "snapshots": here.snapshots}
        self.problems += oracle.content_problems(machine.events, kinds, machine.rotten)
        for place in reader_of(machine.disk).path.parent.iterdir():
            if place.name.startswith(_LAYOUTS):
                self.problems += oracle.layout_problems(place.name, _of_layout(place))

    def power_lost(self, machine: Machine) -> None:
        """What the log of `machine` names is still there, and as it should be."""
        self.quiet(machine)
        self.problems += disk_problems(machine, reader_of(machine.disk))
        for place, act in self._files.values():
            if place is machine:
                self._file(machine, act)

    def emptied(self, machine: Machine) -> None:
        """All was let go of on `machine`: what is left are documents that its log tells of, or another one of them."""
        self.quiet(machine)
        reader = reader_of(machine.disk)
        here, blobs = reader.stored(), reader.path / "blobs"
        told = "".join(str(event.data) for event in machine.events)
        told += "".join((blobs / blob.replace(":", "/")).read_bytes().decode(errors="replace") for blob in here.blobs)
        layers = {event.data["digest"] for event in machine.events if event.type in {"BlobCreated", "LayerPulled"}}
        left = [*here.layers, *here.snapshots, *(one for one in reader.leftovers() if one.startswith("partial/"))]
        left += [blob for blob in here.blobs if blob in layers or blob not in told]
        self.problems += [f"I12 {name} stays though all was let go of" for name in left]

    def end(self) -> None:
        """All rounds are over, and so is what must have been possible after them. The power is lost once more."""
        for host in self._registries.hosts.values():
            self.problems += [f"I11 {hole}" for hole in host.holes()]
            self.problems += oracle.secret_problems([SECRET], {f"{host.name} {n}": d for n, d in host.content.items()})
        self.problems += oracle.blob_problems(event for machine in self._machines for event in machine.events)
        for machine in self._machines:
            left = reader_of(machine.disk).leftovers()
            self.problems += [f"I12 {name} is left over" for name in left if not name.startswith(_LASTING)]
            machine.disk.power_loss(strict=True)
            self.problems += oracle.log_problems(machine.events, self._ended, self.dead)
            self.problems += view_problems(machine, reader_of(machine.disk))
            self.power_lost(machine)

    # ------------------------------------------------------------ images

    def _image(self, act: Act, name: Reference) -> None:
        host = self._registries.host(name.registry)
        read = partial(host.read, name.repository)
        if set(oracle.blobs_of(read, name.tag)) & host.lost:
            return  # taken away from outside, after it was there
        self._judge(read, name.tag, self._wanted.made(act))

    def _file(self, machine: Machine, act: Act) -> None:
        """I6: whoever was told that a layout, or an archive, is there finds it there, and whole."""
        reader = reader_of(machine.disk)
        place = reader.path.parent / self._wanted.file(act, "").strip("/")
        files = _of_layout(place) if act.file == "layout" else _of_archive(place)
        images = oracle.manifests_of(files)
        if not images:
            self.problems.append(f"I6 {place.name} is not there, or names no image")
        for image in images:
            self._judge(oracle.reading(files), image, self._wanted.made(act))

    def _judge(self, read: Read, name: str, made: Made) -> None:
        completed: dict[str, str] = {}
        for machine in self._machines:
            completed |= oracle.completed_in(machine.events)
        if not self._wanted.is_lied_to(made):
            self.problems += oracle.image_problems(read, name, made, completed)


def _starts(event: Event, build: str) -> bool:
    """Does it say that `build` runs a command?"""
    return event.build == build and event.type == "VertexStarted" and "RUN " in event.data["name"]


def _of_layout(place: Path) -> Mapping[str, bytes]:
    """All files below a directory, by path."""
    if not place.is_dir():
        return {}
    files = (path for path in place.rglob("*") if path.is_file())
    return {str(path.relative_to(place)): path.read_bytes() for path in files}


def _of_archive(place: Path) -> Mapping[str, bytes]:
    if not place.is_file():
        return {}
    try:
        with tarfile.open(fileobj=io.BytesIO(place.read_bytes())) as archive:
            members = ((member.name, archive.extractfile(member)) for member in archive)
            return {name: file.read() for name, file in members if file is not None}
    except tarfile.ReadError:
        return {}
