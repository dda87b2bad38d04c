"""`refledger build`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from storage.errors import InputError
from tools.cli.attests import attest_option, provenance_option, sbom_option
from tools.cli.destinations import writable
from tools.cli.grants import read_grants
from tools.cli.options import Asked, read_request
from tools.cli.policy_option import policy_option
from tools.cli.request import Machine, Report, run_request
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

if TYPE_CHECKING:
    from engine.ops.attend import Attend


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
def build(**options: Any) -> None:
    """Build an image from a Dockerfile. CONTEXT is a directory, a git repository, the URL of a tar, or - for a tar or
    a Dockerfile on standard input.

    Nothing is pulled before a step needs it. Exit codes: 0 done, 1 a step failed, 2 wrong usage or input,
    3 network, disk or permission, 4 verification failed, 130 interrupted.
    """
    asked = Asked(**options)
    lent = read_grants(asked.secrets, asked.ssh, asked.allow)
    request, proxies = read_request(asked, lent.offered)
    if asked.as_json and not (asked.check or asked.cache_check):
        raise InputError("--json is for --check and --cache-check", hint="--progress json prints a build as JSON")
    if asked.check and asked.cache_check:
        raise InputError("--check and --cache-check are two questions", hint="ask one after the other")
    if asked.check:
        from tools.cli.check import check

        if request.dockerfile is None:
            raise InputError("--check needs a Dockerfile that is here", hint="name it with -f FILE")
        check(request.dockerfile, request.frontend, as_json=asked.as_json, offline=asked.offline)
        return
    machine = Machine(asked.runtime, proxies, asked.snapshotter, asked.offline, asked.policies)
    progress = "quiet" if asked.quiet else asked.progress
    attend: Attend | None = None
    if asked.on_failure == "shell":
        from tools.cli.shell import Leaving, Terminal

        attend = Terminal(before=False, leaving=Leaving())
        progress = "plain" if progress in {"auto", "tty"} else progress  # a display would draw over the shell
    report = Report(asked.iidfile, asked.metadata_file, asked.as_json)
    run_request(request, machine, lent, progress, report, attend, asked.bundle_on_failure)
