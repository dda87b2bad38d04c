"""How a request of a build is run in the root, and what is told of it: of `refledger build` and of the edits."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, NamedTuple

from storage.errors import InputError, RefledgerError
from tools import bootstrap, roots
from tools.cli.grants import Lent, granted
from tools.cli.running import interruptible, running
from tools.cli.writing import print_aside, write_file

if TYPE_CHECKING:
    from engine.build import Engine
    from engine.grants import Grants
    from engine.ops.attend import Attend
    from engine.request import BuildRequest, BuildResult
    from storage.interfaces.blobs import BlobStore


class Machine(NamedTuple):
    """How this machine builds: parameters of bootstrap.engine that are no part of what is built."""

    runtime: str | None
    ambient: Mapping[str, str]
    snapshotter: str
    offline: bool
    policies: tuple[str, ...] = ()


class Report(NamedTuple):
    """What else is written of the result, and where."""

    iidfile: str | None
    metadata_file: str | None
    as_json: bool


@asynccontextmanager
async def lent_engine(
    root: roots.Root, build_id: str, machine: Machine, lent: Lent, *, more: BlobStore | None = None,
    attend: Attend | None = None,
) -> AsyncIterator[tuple[Engine, Grants]]:  # fmt: skip
    """The engine of build `build_id` with what it is `lent`; `more`, `attend`: see bootstrap.engine. Raises InputError,
    HostError."""
    async with granted(lent, roots.secret_places(root, build_id)) as grants:
        engine, connections = bootstrap.engine(
            root, build_id, machine.runtime, machine.ambient, machine.snapshotter, grants, offline=machine.offline,
            more=more, attend=attend, policies=machine.policies,
        )  # fmt: skip
        async with connections:
            yield engine, grants


def run_request(
    request: BuildRequest, machine: Machine, lent: Lent, progress: str, report: Report, attend: Attend | None = None,
    bundle: str | None = None,
) -> None:  # fmt: skip
    """Build `request` in the root, shown as `progress` says, and tell what came of it; `bundle`: where to put it when
    it fails. Raises RefledgerError."""
    if any(output.dest == "-" for output in request.outputs):
        _check_stdout(progress)
    drawn = "quiet" if request.check and progress == "auto" else progress  # the answer is what a check is for
    silent = request.check or progress in ("json", "quiet")
    with running(drawn, silent=silent) as run:
        root, build_id = run.root, run.build
        try:
            with run.watched():
                result = asyncio.run(_build(root, build_id, request, machine, lent, attend))
        except RefledgerError as error:
            if progress not in ("json", "quiet"):
                from tools.cli.failure import explain

                text, filename = getattr(error, "definition", (request.dockerfile or "", request.frontend.filename))
                sys.stderr.write(explain(root.log, run.before, build_id, error, text, filename))
            elif progress == "quiet" and any(event.build == build_id for event in root.log.read(after=run.before)):
                sys.stderr.write(f"build {build_id}\n")
            if bundle is not None:
                _bundle(root, build_id, bundle)
            raise
        if result.foreseen is not None:
            from tools.cli.cachecheck import answer

            as_json = report.as_json or progress == "json"
            answer(root, build_id, result.foreseen, as_json=as_json, offline=request.offline)
            return
        if progress not in ("json", "quiet"):
            sys.stderr.write(_summary(root, build_id, result))
        _report(result, build_id, progress, request, report)


async def _build(
    root: roots.Root, build_id: str, request: BuildRequest, machine: Machine, lent: Lent, attend: Attend | None
) -> BuildResult:
    async def lend_and_build() -> BuildResult:
        async with lent_engine(root, build_id, machine, lent, attend=attend) as (engine, _):
            return await engine.build(request)

    return await interruptible(lend_and_build())


def _bundle(root: roots.Root, build_id: str, dest: str) -> None:
    """Put the build that failed into `dest`. That this fails, too, is told, and changes nothing."""
    from tools.format import human_bytes
    from tools.replaying.bundling import bundle_build
    from tools.replaying.gather import Wish

    try:
        root.views.catch_up(root.log)
        made = bundle_build(root.path, root.log, root.views, build_id, dest, Wish())
    except RefledgerError as error:
        print_aside(f"WARNING: the build was not bundled: {error}")
    else:
        print_aside(f"bundled in {dest} ({human_bytes(made.size)}): refledger replay {dest} tries it again")


def _summary(root: roots.Root, build_id: str, result: BuildResult) -> str:
    """What the build made, in which time, and what that cost."""
    from projections.history import History
    from tools.format import human_bytes, human_duration

    root.views.catch_up(root.log)
    record = History(root.views).get(build_id)
    took = human_duration((record.ended or record.started) - record.started)
    passed = sum(
        layer["bytes"]
        for event in root.log.read(after=record.first_seq, types=frozenset({"Exported", "CacheExported"}))
        if event.build == build_id
        for layer in event.data["layers"]
        if layer["transport"] == "streamed" or (layer["transport"] == "written" and layer["source"])
    )
    cost = [f"{human_bytes(record.bytes_pulled)} pulled"] if record.bytes_pulled else []
    cost += [f"{human_bytes(record.bytes_avoided)} avoided"] if record.bytes_avoided else []
    # reason: an export may take layers from a registry without keeping them, which is no pull but traffic
    cost += [f"{human_bytes(passed)} passed on"] if passed else []
    made = f"made {result.digest}" if result.digest else "done"
    return f"build {build_id} {made} in {took}, {', '.join(cost) or 'nothing pulled'}\n"


def _report(
    result: BuildResult, build_id: str, progress: str, request: BuildRequest, report: Report
) -> None:
    for warning in result.warnings:
        print_aside(f"WARNING: {warning}")
    if progress not in ("quiet", "json"):
        _say(result, request)
    if progress == "quiet":
        sys.stdout.write(f"{result.digest or result.ref}\n")
    doing = "the build is done, but its digest could not be written"
    if report.iidfile:
        write_file(report.iidfile, str(result.config or result.ref).encode(), doing)
    if report.metadata_file:
        import json

        from tools.cli.made import metadata

        facts = metadata(result, build_id, request.names)
        write_file(report.metadata_file, json.dumps(facts, indent=2).encode() + b"\n", doing)


def _say(result: BuildResult, request: BuildRequest) -> None:
    if not request.outputs:
        print_aside("No output was asked for: the result stays in the cache (--push or --output takes it out)")
        return
    from tools.cli.made import differing

    for line in differing(result):
        print_aside(line)
    if any(output.kind == "image" and not output.push for output in request.outputs):
        print_aside("type=image without push=true: the image was composed, and went nowhere")


def _check_stdout(progress: str) -> None:
    """Raises InputError when standard output is no place for an archive."""
    if progress in ("quiet", "json"):
        raise InputError(f"dest=- and --progress {progress} both want standard output", hint="write to a file")
    if sys.stdout.isatty():
        raise InputError("dest=-: an archive is not for a terminal", hint="redirect standard output, or name a file")
