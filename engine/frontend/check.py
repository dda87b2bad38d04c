"""`refledger build --check`: what is wrong with a Dockerfile, without building it. Pure, as compiling is."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from engine.errors import DockerfileError, RefledgerError
from engine.frontend.checks import Finding, finding
from engine.frontend.compile import Resolve, look_over, watch
from engine.frontend.definition import Dockerfile, read_dockerfile
from engine.frontend.scope import FrontendOptions
from engine.frontend.source import Source
from engine.frontend.stages import find_target, needed_stages
from engine.frontend.variables import Watcher
from engine.graph import ResolvedImage
from engine.record import Record
from storage.digest import sha256
from storage.interfaces.images import Provider


class Report(Record):
    """`findings` in order of lines; `failing`: rules that `# check=error=true` makes a failure; `error`: why the
    Dockerfile cannot be built at all, or None; `unasked`: images whose variables nobody knows, as they could not be
    reached, so that what may be one of them was not called undefined."""

    source: Source
    findings: tuple[Finding, ...] = ()
    failing: tuple[str, ...] = ()
    error: DockerfileError | None = None
    unasked: tuple[str, ...] = ()


async def check_dockerfile(text: str, options: FrontendOptions, resolve: Resolve) -> Report:
    """Check all stages. `resolve` is asked only where a variable is undefined unless the base image sets it; when it
    fails, such variables are passed over. Raises InputError for an option that is none."""
    source = Source(options.filename, text)
    try:
        dockerfile = read_dockerfile(text, options)
    except DockerfileError as error:
        return Report(source, error=error)
    found = list(dockerfile.lint())
    unasked: tuple[str, ...] = ()
    try:
        found += _unused(dockerfile)
        seen, failure = await _look(dockerfile, _stand_in, unknown=True)
    except DockerfileError as error:
        return _report(dockerfile, found, error)
    if seen.unsure and (failure is not None or dockerfile.settings.wants("UndefinedVar")):
        try:
            # looking inserts triggers: begin with untouched stages
            seen, failure = await _look(read_dockerfile(text, options), resolve, unknown=False)
        except RefledgerError:
            unasked = tuple(dict.fromkeys(image for image, _ in seen.unsure))
            lines = {item.lines[0] for _, item in seen.unsure}
            if failure is not None and failure.line in lines:  # with the image's variables it may be fine
                failure = None
    return _report(dockerfile, [*found, *seen.findings], failure, unasked)


async def _look(
    dockerfile: Dockerfile, resolve: Resolve, *, unknown: bool
) -> tuple[Watcher, DockerfileError | None]:
    """What was seen up to the error, if any. Raises what `resolve` raises."""
    watcher = watch(dockerfile)
    try:
        await look_over(dockerfile, resolve, watcher, unknown=unknown)
    except DockerfileError as error:
        return watcher, error
    return watcher, None


def _report(
    dockerfile: Dockerfile,
    found: Sequence[Finding],
    error: DockerfileError | None,
    unasked: tuple[str, ...] = (),
) -> Report:
    findings = dockerfile.settings.choose(found)
    return Report(dockerfile.source, findings, tuple(dockerfile.settings.failing(findings)), error, unasked)


def _unused(dockerfile: Dockerfile) -> Iterator[Finding]:
    stages = dockerfile.stages
    target = find_target(dockerfile.source, stages, dockerfile.options.target)
    needed = {stage.index for stage in needed_stages(dockerfile.source, stages, [target])}
    for stage in stages:
        if stage.index not in needed:
            message = f"Stage '{stage.title}' is not needed for '{target.title}', which is built"
            yield finding("UnusedStage", message, stage.origin.lines)


async def _stand_in(wanted: Sequence[tuple[str, str]]) -> Mapping[tuple[str, str], ResolvedImage]:
    """Images that have nothing in them."""
    nothing, nowhere = sha256(b""), Provider.of("localhost", "nothing")
    return {
        (reference, platform): ResolvedImage(reference, nothing, nothing, platform, nowhere, (), {})
        for reference, platform in wanted
    }
