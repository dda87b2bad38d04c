"""What the acts of a scenario ask of the engine, and what must come of them as long as nothing strikes."""

from __future__ import annotations

from dataclasses import dataclass, replace

from engine.cache.spec import CacheSource, CacheTarget
from engine.frontend.compile import FrontendOptions
from engine.frontend.contexts import ImageContext, NamedContext, context_name
from engine.grants import Offered
from engine.images.copy import CopyRequest
from engine.output import Form, Output
from engine.request import BuildRequest
from storage.interfaces.images import Compression, Reference
from storage.reference import LAYOUT, parse_layout, parse_reference
from tests.simulation import model
from tests.simulation.scenarios import TARGETS, Act, Scenario, Stage

SECRET_ID = "token"  # its name, which is no secret


@dataclass(frozen=True, slots=True)
class Wanted:
    """What is wanted of the acts of `scenario`."""

    scenario: Scenario

    def subject(self, act: Act) -> int:
        """The number of the Dockerfile that `act` is about."""
        return act.subject % len(self.scenario.programs)

    def program(self, act: Act) -> tuple[Stage, ...]:
        """That Dockerfile's stages."""
        return self.scenario.programs[self.subject(act)]

    def made(self, act: Act) -> model.Made:
        """What the build that `act` is must come to."""
        return model.evaluate(self.program(act), self.scenario.images)[-1]

    def name(self, act: Act) -> Reference:
        """What a build is pushed as."""
        return parse_reference(f"{TARGETS[act.target % len(TARGETS)]}/out{self.subject(act)}:t")

    def file(self, act: Act, disk: str) -> str:
        """Where a build, or a copy, leaves an OCI layout, or an archive, on the disk at `disk`; "" for nowhere."""
        if act.kind == "copy":
            return f"{disk}/copied{self.subject(act)}" if act.file and act.target < 0 else ""
        return f"{disk}/{act.file}{self.subject(act)}" if act.file else ""

    def copy(self, act: Act, disk: str) -> CopyRequest:
        """What the command line would make of it."""
        if to := self.file(act, disk):
            return CopyRequest(self.name(act), parse_layout(f"{LAYOUT}{to}:t"))
        if not act.file:
            return CopyRequest(self.name(act), self.copied(act))
        built = self.file(self.source(act), disk)
        return CopyRequest(parse_layout(f"{LAYOUT}{built}:t"), self.copied(act))

    def source(self, act: Act) -> Act:
        """The build that left what the copy `act` copies."""
        return replace(act, kind="build", file="") if self.file(act, "") else replace(act, kind="build")

    def copied(self, act: Act) -> Reference:
        """What a copy is called in the registry that it goes to."""
        return parse_reference(f"{TARGETS[(act.target + 1) % len(TARGETS)]}/{self.name(act).repository}:copied")

    def request(self, act: Act, disk: str) -> BuildRequest:
        """What the command line would make of it, on a machine whose disk is at `disk`."""
        names = (self.name(act),) if act.target >= 0 else ()
        form = Form(compression=Compression(act.compression))
        number = self.subject(act)
        cache, local = parse_reference(f"{TARGETS[0]}/cache{number}:c"), parse_layout(f"{disk}/cache{number}:c")
        image = parse_reference(f"{TARGETS[0]}/out{number}:t")
        sources = (cache, image, local) if act.cache_from else ()
        outputs = [Output("image", form=form, names=names)] if names else []
        if act.file:
            dest = self.file(act, disk)
            # reason for the name: a copy asks for it, whichever build left the file
            outputs.append(Output("oci", dest, form, names=(self.name(act),), directory=act.file == "layout"))
        targets: tuple[CacheTarget, ...] = ()
        if act.cache_to == "inline":
            targets = (CacheTarget("type=inline", "inline"),)
        elif act.cache_to == "local":
            targets = (CacheTarget("type=local,dest=cache", "local", local, "max"),)
        elif act.cache_to:
            targets = (CacheTarget(f"type=registry,ref={cache}", "registry", cache, act.cache_to),)
        return BuildRequest(
            dockerfile=model.dockerfile(self.program(act), self.scenario.images),
            frontend=FrontendOptions(named=self._near(disk)),
            directories={},
            names=names,
            outputs=tuple(outputs),
            no_cache=act.no_cache,
            cache_from=tuple(CacheSource(source.written, source) for source in sources),
            cache_to=targets,
            offered=Offered(secrets=(SECRET_ID,)),
        )

    def _near(self, disk: str) -> dict[str, NamedContext]:
        if self.scenario.near < 0:
            return {}
        number = self.scenario.near % len(self.scenario.images)
        return {context_name(model.image_name(number)): ImageContext(f"{LAYOUT}{disk}/near{number}")}

    def exits(self, act: Act, *, lossy: bool, there: bool) -> set[int]:
        """The exits that `act` may have as long as no fault strikes; `lossy`: registries lose blobs meanwhile; `there`:
        what it copies was there before it begins."""
        if act.kind == "copy":
            return {0} if there and not lossy else {0, 2, 3, 4}
        if act.kind == "look":
            return {0, 2}  # nothing was built here yet
        if act.kind != "build":
            return {0}
        made = self.made(act)
        allowed = {1} if made.fails else {0}
        if act.cancel:
            allowed.add(130)
        if lossy:
            allowed |= {3, 4}
        if self.is_lied_to(made):
            allowed |= {0, 4}
        if act.stranger and not made.fails and _needs_login(act):
            allowed.discard(0)
            allowed.add(3)
        return allowed

    def is_lied_to(self, made: model.Made) -> bool:
        """Is it made of an image whose config lies?"""
        return self.scenario.lies >= 0 and self.scenario.lies % len(self.scenario.images) in made.images


def _needs_login(act: Act) -> bool:
    return act.target >= 0 and act.target % len(TARGETS) == len(TARGETS) - 1
