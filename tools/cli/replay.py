"""`refledger replay`: a recorded build again, step for step or as a whole, and what came of it."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import click

from storage.errors import InputError
from tools import roots
from tools.cli.destinations import writable
from tools.cli.grants import Lent, read_grants
from tools.cli.moment import find_step, whole_view
from tools.cli.request import Machine, lent_engine
from tools.cli.result_options import progress_option, snapshotter_option
from tools.cli.running import Run, interruptible, running
from tools.cli.writing import as_json_option, print_json, print_line
from tools.format import human_bytes
from tools.text import clean

if TYPE_CHECKING:
    from engine.ops.attend import Attend
    from projections.history import BuildRecord
    from storage.digest import Digest
    from tools.replaying.recorded import Recorded
    from tools.replaying.replaying import Choice, Replayed


@click.command(short_help="Execute the step that failed again.")
@click.argument("source", metavar="BUILD|FILE")
@click.option("--step", metavar="STEP", help="Only this one: its number, or a part of its name.")
@click.option("--from", "from_step", metavar="STEP", help="This one and all that stand on it.")
@click.option("--all", "all_steps", is_flag=True, help="Every step, also those whose results can be had.")
@click.option("--verify", is_flag=True, help="Every step of a build that went well: which result differs first?")
@click.option("--shell", is_flag=True, help="Open a terminal where the step failed.")
@click.option("--before", is_flag=True, help="With --shell: before the step runs.")
@click.option("--patch", callback=writable, metavar="FILE", help="With --shell: write here what changed there.")
@click.option("--keep", is_flag=True, help="With --shell: keep what is there on leaving as a snapshot.")
@click.option("--secret", "secrets", multiple=True, metavar="id=…", help="Lend RUN a secret: ,src=FILE or ,env=NAME.")
@click.option("--ssh", multiple=True, metavar="ID[=…]", help="Lend an ssh agent: default, or ID=SOCKET or ID=KEY.")
@click.option("--allow", multiple=True, metavar="NAME", help="Let steps ask for more: security.insecure.")
@click.option("--runtime", metavar="NAME", help="OCI runtime.  [default: crun or runc, whichever works here]")
@snapshotter_option
@progress_option
@as_json_option
def replay(
    source: str,
    step: str | None,
    from_step: str | None,
    all_steps: bool,
    verify: bool,
    shell: bool,
    before: bool,
    patch: str | None,
    keep: bool,
    secrets: tuple[str, ...],
    ssh: tuple[str, ...],
    allow: tuple[str, ...],
    runtime: str | None,
    snapshotter: str,
    progress: str,
    as_json: bool,
) -> None:
    """Execute the step that failed in BUILD (of this root), or in the bundle FILE, again: on the very inputs it had,
    taken from here, then from their providers, and made anew only where nobody has them.

    Exit codes: that of the failure where it fails again, 0 when it passes or gives the same, 4 when a result differs.
    """
    if sum((step is not None, from_step is not None, all_steps, verify)) > 1:
        raise InputError("--step, --from, --all and --verify exclude each other")
    if (before or patch or keep) and not shell:
        raise InputError("--before, --patch and --keep are for --shell")
    lent = read_grants(secrets, ssh, allow)
    machine = Machine(runtime, {}, snapshotter, offline=False)
    which = Which(step, from_step, all_steps, verify)
    attend: Attend | None = None
    if shell:
        from tools.cli.shell import Leaving, Terminal

        attend = Terminal(before=before, leaving=Leaving(Path(patch) if patch else None, keep))
        progress = "plain" if progress in {"auto", "tty"} else progress
    _run(source, which, machine, lent, attend, "quiet" if as_json else progress, as_json=as_json)


@dataclass(frozen=True, slots=True)
class Which:
    """The steps that were asked for."""

    step: str | None
    from_step: str | None
    all: bool
    verify: bool


def _run(
    source: str, which: Which, machine: Machine, lent: Lent, attend: Attend | None, progress: str, *, as_json: bool
) -> None:
    silent = progress in {"json", "quiet"}
    with running(progress, silent=silent) as run, _recorded(run.root, source, run.build) as recorded:
        root, build_id = run.root, run.build
        _must_have_steps(recorded)
        choice = choose(recorded, which)
        with run.watched():
            done = asyncio.run(_replay(run, recorded, choice, machine, lent, attend))
        moving = frozenset({"LayerPulled", "PullFailed", "FilesFetched"})
        fetched = sum(
            event.data["bytes"] for event in root.log.read(after=run.before, types=moving) if event.build == build_id
        )
        if done.error is not None and not silent:
            from tools.cli.failure import explain

            text, name = recorded.dockerfile, recorded.story.filename
            sys.stderr.write(explain(root.log, run.before, build_id, done.error, text, name))
        if as_json:
            about = {"build": build_id, "replay_of": recorded.story.record.id, "fetched": fetched}
            print_json({**about, **_json(done)})
        else:
            for line in _verdict(recorded, done, fetched):
                print_line(line)
    wrong = {"different result", "nothing to compare with"} if which.verify else {"different result"}
    code = done.now.exit_code or (4 if done.verdict.kind in wrong else 0)
    raise click.exceptions.Exit(code)


def _must_have_steps(recorded: Recorded) -> None:
    """Raises InputError for what was no build of steps: a copy, say."""
    if recorded.story.started.get("frontend") not in {"copy.v0", "index.v0"}:
        return
    record = recorded.story.record
    raise InputError(f"build {record.id} had no steps: {record.name}", hint="run it again as it was run before")


@contextmanager
def _recorded(root: roots.Root, source: str, build_id: str) -> Iterator[Recorded]:
    from tools.replaying.recorded import of_bundle, of_root

    path = Path(source)
    with of_bundle(root, path, build_id) if path.is_file() else of_root(root, source) as recorded:
        yield recorded


async def _replay(
    run: Run, recorded: Recorded, choice: Choice, machine: Machine, lent: Lent, attend: Attend | None
) -> Replayed:
    from storage.scratch import remove_tree
    from tools.cli.announce import announce
    from tools.replaying.replaying import Announcement, Replay

    root, build_id = run.root, run.build
    place = root.tmp / f"{build_id}-{'1' * 16}"

    def tell(said: Announcement) -> None:
        for line in announce(said):
            run.renderer.say(clean(line))

    async def lend_and_replay() -> Replayed:
        async with lent_engine(root, build_id, machine, lent, more=recorded.blobs, attend=attend) as (engine, grants):
            return await Replay(root, build_id, engine, recorded, choice, grants.offered, place, tell).run()

    try:
        return await interruptible(lend_and_replay())
    finally:
        remove_tree(place)


# ---------------------------------------------------------------- which steps


def choose(recorded: Recorded, which: Which) -> Choice:
    """The steps to execute. Raises InputError."""
    from storage.digest import Digest
    from tools.replaying.replaying import Choice
    from tools.replaying.story import closure

    story, graph = recorded.story, recorded.graph
    if graph is None:
        if which.step or which.from_step or which.verify:
            raise InputError(f"build {story.record.id} ended before it had steps")
        return Choice(())
    results = tuple(result.vertex for result in graph.results)
    at_fault = story.failed or next((item.vertex for item in story.unfinished), None)
    ends = (Digest(at_fault),) if at_fault and Digest(at_fault) in graph.by_digest else ()
    if which.verify:
        if story.record.status != "completed":
            raise InputError(f"build {_ended(story.record)}: there is no result to verify")
        return Choice(results, all=True, verify=True)
    if which.all:
        return Choice(ends or results, all=True)
    if which.step is not None:
        return Choice((_find(recorded, which.step),))
    if which.from_step is not None:
        begin = _find(recorded, which.from_step)
        on_it = {begin}
        for vertex in closure(graph, ends or results):
            if on_it.intersection(vertex.inputs):
                on_it.add(vertex.digest)
        return Choice(tuple(v.digest for v in graph.vertices if v.digest in on_it))
    if not ends:
        raise InputError(
            f"build {_ended(story.record)}: no step failed",
            hint="name one with --step, or rebuild all with --verify",
        )
    return Choice(ends)


def _ended(record: BuildRecord) -> str:
    verb = {"completed": "", "failed": "", "running": "is "}.get(record.status, "was ")
    return f"{record.id} {verb}{record.status}"


def _find(recorded: Recorded, text: str) -> Digest:
    from storage.digest import Digest

    record, graph = recorded.story.record, recorded.graph
    assert graph is not None
    steps = (step for step in whole_view(recorded.log, record).steps if step.kind == "step")
    found = find_step(steps, record.id, text)
    with suppress(InputError):
        digest = Digest(found.vertex)
        if digest in graph.by_digest:
            return digest
    raise InputError(f"{found.name!r} is no step that can be executed")


# ---------------------------------------------------------------- what came of it


def _json(done: Replayed) -> dict[str, object]:
    ends = {
        name: {"exit_code": end.exit_code, "vertex": end.vertex, "error": end.error, "status": end.status}
        for name, end in (("then", done.before), ("now", done.now))
    }
    return {**done.verdict.to_json(), **ends}


_SHOWN = 20


def _verdict(recorded: Recorded, done: Replayed, fetched: int) -> Iterator[str]:
    from storage.digest import Digest

    verdict, before, now = done.verdict, done.before, done.now
    yield f"verdict: {verdict.kind}"
    for name, end in (("then", before), ("now", now)):
        said = clean(end.error.partition("\n")[0]) if end.failed else "it passed"
        code = f" (exit code {end.exit_code})" if end.failed and end.status is None else ""
        yield f"  {name}: {said}{code}"
    lines = sum(map(len, now.output.values()))
    if verdict.output:
        yield "  output differs:"
        yield from (f"    {clean(line)}" for line in verdict.output)
    elif lines:
        yield f"  output: the same {lines} lines" if lines > 1 else "  output: the same line"
    if verdict.compared:
        yield f"  results compared: {verdict.compared}, different: {len(verdict.changed)}"
    for step in verdict.changed[:1]:
        yield clean(f"  first different result: {recorded.name(Digest(step.vertex))}")
        yield from (f"    {clean(f'/{file.path}')}: {', '.join(file.how)}" for file in step.files[:_SHOWN])
        if len(step.files) > _SHOWN:
            yield f"    and {len(step.files) - _SHOWN} more files"
    yield f"  fetched: {human_bytes(fetched)}"
