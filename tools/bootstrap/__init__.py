"""Puts an engine together, of concrete classes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING

from engine.build import Engine
from engine.grants import Grants
from storage.interfaces.blobs import BlobStore
from tools.bootstrap.elsewhere import Elsewhere
from tools.bootstrap.here import Here
from tools.bootstrap.results import Results
from tools.bootstrap.steps import Steps
from tools.roots import Root

if TYPE_CHECKING:
    from engine.ops.attend import Attend


def engine(
    root: Root, build: str, runtime: str | None, ambient: Mapping[str, str], snapshotter: str, grants: Grants, *,
    offline: bool = False, more: BlobStore | None = None, attend: Attend | None = None, policies: Sequence[str] = (),
) -> tuple[Engine, AsyncExitStack]:  # fmt: skip
    """The engine of one build, and what the caller closes when that has ended: connections, threads and mounts.
    `ambient`, `attend`: see LocalExecutor; `snapshotter`: how layers are laid out, one of SNAPSHOTTERS; `offline`:
    nobody is asked; `more`: blobs that lie elsewhere; `policies`: files of rules that hold beside this machine's.
    Raises InputError, DiskError."""
    closing = AsyncExitStack()
    here = Here(root, build, snapshotter, more)
    elsewhere = Elsewhere(here, offline, policies, closing)
    steps = Steps(here, elsewhere, runtime, ambient, grants, attend)
    results = Results(here, elsewhere, steps)
    gate = elsewhere.gate  # reason for the first: what a policy refuses, nobody begins
    made = Engine(
        ledger=here.ledger,
        blobs=here.blobs,
        resolver=elsewhere.resolver(),
        executor=steps,
        materializer=steps.materializer,
        cache=here.cache,
        presence=elsewhere.presence(),
        sources=lambda: steps.sources,
        exporters=results.exporters,
        emulation=lambda: steps.emulation,
        needs=steps.needs,
        files=steps.files,
        imports=results.imports,
        caching=results.caching,
        attester=results.attester,
        gate=gate,
    )
    return made, closing
