"""What commands share that edit an image in a registry: each edit is an ordinary build in the log."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from storage.errors import InputError
from storage.interfaces.images import Reference
from tools import __version__, roots
from tools.cli.grants import read_grants
from tools.cli.options import read_epoch
from tools.cli.outputs import read_outputs
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
    from engine.images.definition import Definition

_OPTIONS = (
    tag_option, output_option, push_option, policy_option, snapshotter_option, iidfile_option, metadata_option,
    progress_option, quiet_option,
)  # fmt: skip


class Wanted(NamedTuple):
    """Options of every edit, as they were given."""

    tags: tuple[str, ...]
    outputs: tuple[str, ...]
    push: bool
    policies: tuple[str, ...]
    snapshotter: str
    iidfile: str | None
    metadata_file: str | None
    progress: str
    quiet: bool


def edit_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Give `command` the options that Wanted holds."""
    for option in reversed(_OPTIONS):
        command = option(command)
    return command


def edit(definition: Definition, name: str, asked: Sequence[str], wanted: Wanted, *, replaces: str = "") -> None:
    """Make the edit, called `name` for people, for the platforms `asked` for, and put its result where it is `wanted`.
    `replaces`: the image whose tag `--push` alone moves. Raises RefledgerError."""
    from engine.frontend.scope import FrontendOptions
    from engine.images.definition import FILENAME
    from engine.request import BuildRequest

    names = _names(wanted, replaces)
    epoch = read_epoch(os.environ.get("SOURCE_DATE_EPOCH"))
    outputs = read_outputs(wanted.outputs, push=wanted.push, names=names, platforms=asked or None, epoch=epoch)
    if not outputs:
        hint = "write -t NAME --push, or --output type=oci,dest=FILE"
        hint += "; --push alone moves its own tag" if replaces else ""
        raise InputError("it is not said where the image goes", hint=hint)
    request = BuildRequest(
        dockerfile=None,
        frontend=FrontendOptions(filename=FILENAME),
        directories={},
        names=names,
        outputs=outputs,
        jobs=os.cpu_count() or 1,
        epoch=epoch,
        options={"outputs": [item.written for item in outputs], "platforms": list(asked), "epoch": epoch},
        name=name,
        version=__version__,
        host=roots.host_facts(),
        definition=definition,
    )
    machine = Machine(None, {}, wanted.snapshotter, offline=False, policies=wanted.policies)
    report = Report(wanted.iidfile, wanted.metadata_file, as_json=False)
    run_request(request, machine, read_grants((), (), ()), "quiet" if wanted.quiet else wanted.progress, report)


def _names(wanted: Wanted, replaces: str) -> tuple[Reference, ...]:
    from storage.reference import LAYOUT, parse_reference

    if wanted.tags or not wanted.push or not replaces or replaces.startswith(LAYOUT):
        return tuple(map(parse_reference, wanted.tags))
    found = parse_reference(replaces)
    if found.digest is not None:
        raise InputError(f"{replaces} is no tag that could be moved", hint="name the result with -t REGISTRY/NAME:TAG")
    return (found,)
