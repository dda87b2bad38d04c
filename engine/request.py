"""What a build is asked for, and what comes of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, BinaryIO

from engine.frontend.scope import FrontendOptions
from engine.grants import NOTHING, Offered
from engine.graph import Graph
from engine.offline.missing import Missing
from engine.output import Output
from storage.digest import Digest
from storage.interfaces.images import Reference

if TYPE_CHECKING:
    # reason: what only some builds need is not loaded for all
    from engine.attest.spec import Attest
    from engine.cache.spec import CacheSource, CacheTarget
    from engine.exporters.exporters import Written
    from engine.images.definition import Definition
    from engine.solver.solve import Checked


@dataclass(frozen=True, slots=True)
class BuildRequest:
    """What to build. `dockerfile` is its text, None when it lies in the context, at `frontend.filename`, or when
    `definition`, an edit of an image, stands for it; `directories`: what local contexts stand for, by the name of their
    ContextSource, "" for an empty directory; `archive`: a context that comes on this stream (`frontend.context` says of
    others where they are); `platforms`: one image for each; `options` go into the log as they are (secrets by id only);
    `epoch` SOURCE_DATE_EPOCH in seconds; `offered`: the names of what the executor may lend; `offline`: nobody may be
    asked; `check`: only tell what would be done; `attest`: what is to be said of the images."""

    dockerfile: str | None
    frontend: FrontendOptions
    directories: Mapping[str, str]
    archive: BinaryIO | None = None
    platforms: tuple[str, ...] = ()
    names: tuple[Reference, ...] = ()
    outputs: tuple[Output, ...] = ()
    jobs: int = 2
    no_cache: bool = False
    cache_from: tuple[CacheSource, ...] = ()
    cache_to: tuple[CacheTarget, ...] = ()
    epoch: int | None = None
    options: Mapping[str, object] = field(default_factory=dict)
    name: str = ""
    version: str = ""
    host: Mapping[str, object] = field(default_factory=dict)
    offered: Offered = NOTHING
    offline: bool = False
    check: bool = False
    definition: Definition | None = None
    attest: tuple[Attest, ...] = ()


@dataclass(frozen=True, slots=True)
class Foreseen:
    """What a build would do: `checked` of `graph`, and what is `missing` here to do it."""

    graph: Graph
    checked: Checked
    missing: tuple[Missing, ...]


@dataclass(frozen=True, slots=True)
class BuildResult:
    """`digest`: of the manifest or index of the first output that has one, `config` of its config or index; `ref`: the
    first result's id; `warnings`: the frontend's; `foreseen`: all there is when the build was only checked; `written`:
    the outputs."""

    ref: str
    digest: Digest | None
    config: Digest | None = None
    warnings: tuple[str, ...] = ()
    foreseen: Foreseen | None = None
    written: tuple[Written, ...] = ()
