"""What the acts of a scenario ask of the engine, and what must come of them as long as nothing strikes."""

from __future__ import annotations

from dataclasses import dataclass

from engine.cache.spec import CacheSource, CacheTarget
from engine.frontend.compile import FrontendOptions
from engine.grants import Offered
from engine.output import Form, Output
from engine.request import BuildRequest
from storage.interfaces.images import Compression, Reference
from storage.reference import parse_reference
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

    def file(self, act: Act, prefix: str) -> str:
        """Where a build leaves an OCI layout, or an archive, on the disk of the process that sees it at `prefix`."""
        return f"{prefix}/{act.file}{self.subject(act)}" if act.file else ""

    def request(self, act: Act, prefix: str) -> BuildRequest:
        """What the command line would make of it, in a process whose disk is at `prefix`."""
        names = (self.name(act),) if act.target >= 0 else ()
        form = Form(compression=Compression(act.compression))
        cache = f"{TARGETS[0]}/cache{act.subject}:c"
        sources = (cache, f"{TARGETS[0]}/out{act.subject}:t") if act.cache_from else ()
        outputs = [Output("image", form=form, names=names)] if names else []
        if act.file:
            dest = self.file(act, prefix)
            outputs.append(Output("oci", dest, form, names=names, directory=act.file == "layout"))
        targets: tuple[CacheTarget, ...] = ()
        if act.cache_to == "inline":
            targets = (CacheTarget("type=inline", "inline"),)
        elif act.cache_to:
            targets = (CacheTarget(f"type=registry,ref={cache}", "registry", parse_reference(cache), act.cache_to),)
        return BuildRequest(
            dockerfile=model.dockerfile(self.program(act), self.scenario.images),
            frontend=FrontendOptions(),
            directories={},
            names=names,
            outputs=tuple(outputs),
            no_cache=act.no_cache,
            cache_from=tuple(CacheSource(source, parse_reference(source)) for source in sources),
            cache_to=targets,
            offered=Offered(secrets=(SECRET_ID,)),
        )

    def exits(self, act: Act, *, lossy: bool) -> set[int]:
        """The exits that `act` may have as long as no fault strikes; `lossy`: registries lose blobs meanwhile."""
        if act.kind == "copy":
            return {0, 3, 4}  # what it copies need not be there, or not be whole
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
