"""`refledger build`."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING, Literal, NamedTuple

import click

from storage.errors import InputError, RefledgerError
from tools import bootstrap, roots
from tools.cli.attests import attest_option, provenance_option, sbom_option, shorthands
from tools.cli.destinations import writable
from tools.cli.grants import Lent, granted, read_grants
from tools.cli.options import read_request
from tools.cli.policy_option import policy_option
from tools.cli.result_options import (
    iidfile_option,
    metadata_option,
    output_option,
    progress_option,
    push_option,
    quiet_option,
    snapshotter_option,
    tag_option,
)
from tools.cli.running import interruptible, running
from tools.cli.writing import print_aside, write_file

if TYPE_CHECKING:
    from engine.ops.attend import Attend
    from engine.request import BuildRequest, BuildResult


@click.command()
@click.argument("context", default=".", metavar="[CONTEXT]")
@click.option("-f", "--file", "file", metavar="FILE", help="The Dockerfile; - is stdin.  [default: CONTEXT/Dockerfile]")
@tag_option
@click.option("--target", default="", metavar="STAGE", help="Build this stage.")
@click.option("--build-arg", "build_args", multiple=True, metavar="KEY[=VALUE]", help="Set an ARG; no value: from env.")
@click.option("--label", "labels", multiple=True, metavar="KEY=VALUE", help="Add a label to the image.")
@click.option("--platform", "platforms", multiple=True, metavar="OS/ARCH,…", help="Platforms.  [default: this one]")
@click.option("--build-context", "build_contexts", multiple=True, metavar="NAME=…", help="Another context, by name.")
@output_option
@push_option
@click.option("--annotation", "annotations", multiple=True, metavar="KEY=VALUE", help="Annotate the image's manifest.")
@attest_option
@provenance_option
@sbom_option
@click.option("--no-cache", is_flag=True, help="Run every step.")
@click.option("--offline", is_flag=True, help="Ask nobody: build from what is here. Does not cut the network of RUN.")
@click.option("--cache-from", multiple=True, metavar="type=…", help="Another cache: registry,ref=… or local,src=….")
@click.option("--cache-to", multiple=True, metavar="type=…", help="Write one: registry,ref=…, local,dest=…, inline.")
@click.option("--network", type=click.Choice(["host", "none"]), default="host", help="Network of RUN.  [default: host]")
@click.option("--check", is_flag=True, help="Build nothing: tell what could be better in the Dockerfile.")
@click.option("--cache-check", is_flag=True, help="Build nothing: tell what would run, why, and what it needs.")
@click.option("--json", "as_json", is_flag=True, help="With --check or --cache-check: print JSON.")
@click.option("--secret", "secrets", multiple=True, metavar="id=…", help="Lend RUN a secret: ,src=FILE or ,env=NAME.")
@click.option("--ssh", multiple=True, metavar="ID[=…]", help="Lend an ssh agent: default, or ID=SOCKET or ID=KEY.")
@click.option("--allow", multiple=True, metavar="NAME", help="Let steps ask for more: security.insecure.")
@policy_option
@click.option("--jobs", type=click.IntRange(1, 10_000), metavar="N", help="Steps at once.  [default: number of cores]")
@click.option("--runtime", metavar="NAME", help="OCI runtime.  [default: crun or runc, whichever works here]")
@snapshotter_option
@iidfile_option
@metadata_option
@click.option(
    "--bundle-on-failure", callback=writable, metavar="FILE",
    help="When it fails, put it into a bundle: see refledger bundle.",
)
@click.option("--on-failure", type=click.Choice(["shell"]), help="Open a terminal where a step failed.")
@progress_option
@quiet_option
def build(
    context: str,
    file: str | None,
    tags: tuple[str, ...],
    target: str,
    build_args: tuple[str, ...],
    labels: tuple[str, ...],
    platforms: tuple[str, ...],
    build_contexts: tuple[str, ...],
    outputs: tuple[str, ...],
    push: bool,
    annotations: tuple[str, ...],
    attests: tuple[str, ...],
    provenance: str | None,
    sbom: str | None,
    no_cache: bool,
    offline: bool,
    cache_from: tuple[str, ...],
    cache_to: tuple[str, ...],
    network: Literal["host", "none"],
    check: bool,
    cache_check: bool,
    as_json: bool,
    secrets: tuple[str, ...],
    ssh: tuple[str, ...],
    allow: tuple[str, ...],
    policies: tuple[str, ...],
    jobs: int | None,
    runtime: str | None,
    snapshotter: str,
    iidfile: str | None,
    metadata_file: str | None,
    bundle_on_failure: str | None,
    on_failure: str | None,
    progress: str,
    quiet: bool,
) -> None:
    """Build an image from a Dockerfile. CONTEXT is a directory, a git repository, the URL of a tar, or - for a tar or
    a Dockerfile on standard input.

    Nothing is pulled before a step needs it. Exit codes: 0 done, 1 a step failed, 2 wrong usage or input,
    3 network, disk or permission, 4 verification failed, 130 interrupted.
    """
    lent = read_grants(secrets, ssh, allow)
    request, proxies = read_request(
        context,
        file,
        tags=tags,
        target=target,
        build_args=build_args,
        labels=labels,
        platforms=platforms,
        build_contexts=build_contexts,
        outputs=outputs,
        annotations=annotations,
        attests=(*attests, *shorthands(provenance, sbom)),
        push=push,
        no_cache=no_cache,
        offline=offline,
        cache_check=cache_check,
        cache_from=cache_from,
        cache_to=cache_to,
        network=network,
        jobs=jobs,
        offered=lent.offered,
    )
    if as_json and not (check or cache_check):
        raise InputError("--json is for --check and --cache-check", hint="--progress json prints a build as JSON")
    if check and cache_check:
        raise InputError("--check and --cache-check are two questions", hint="ask one after the other")
    if check:
        from tools.cli.check import check as check_only

        if request.dockerfile is None:
            raise InputError("--check needs a Dockerfile that is here", hint="name it with -f FILE")
        check_only(request.dockerfile, request.frontend, as_json=as_json, offline=offline)
        return
    machine = Machine(runtime, proxies, snapshotter, offline, policies)
    progress = "quiet" if quiet else progress
    attend: Attend | None = None
    if on_failure == "shell":
        from tools.cli.shell import Leaving, Terminal

        attend = Terminal(before=False, leaving=Leaving())
        progress = "plain" if progress in {"auto", "tty"} else progress  # a display would draw over the shell
    run_request(request, machine, lent, progress, Report(iidfile, metadata_file, as_json), attend, bundle_on_failure)


def _check_stdout(progress: str) -> None:
    """Raises InputError when standard output is no place for an archive."""
    if progress in ("quiet", "json"):
        raise InputError(f"dest=- and --progress {progress} both want standard output", hint="write to a file")
    if sys.stdout.isatty():
        raise InputError("dest=-: an archive is not for a terminal", hint="redirect standard output, or name a file")


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
        async with granted(lent, roots.secret_places(root, build_id)) as grants:
            engine, connections = bootstrap.engine(
                root, build_id, machine.runtime, machine.ambient, machine.snapshotter, grants, offline=machine.offline,
                attend=attend, policies=machine.policies,
            )  # fmt: skip
            async with connections:
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
