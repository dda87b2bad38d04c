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
from engine.graph import ResolvedImage
from engine.record import Record
from storage.digest import sha256
from storage.interfaces import Provider


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
        found = [*dockerfile.lint(), *_unused(dockerfile)]
    except DockerfileError as error:
        return Report(source, error=error)
    unasked: tuple[str, ...] = ()
    failure: DockerfileError | None = None
    watcher = watch(dockerfile)
    try:
        await look_over(dockerfile, _stand_in, watcher, unknown=True)
    except DockerfileError as error:
        failure = error
    if failure is None and any(dockerfile.settings.wants(item.rule) for _, item in watcher.unsure):
        again = read_dockerfile(text, options)  # looking inserts triggers: begin with untouched stages
        sure = watch(again)
        try:
            await look_over(again, resolve, sure, unknown=False)
            watcher = sure
        except DockerfileError as error:
            watcher, failure = sure, error
        except RefledgerError:
            unasked = tuple(dict.fromkeys(image for image, _ in watcher.unsure))
    findings = dockerfile.settings.choose([*found, *watcher.findings])
    return Report(source, findings, tuple(dockerfile.settings.failing(findings)), failure, unasked)


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
        (reference, platform): ResolvedImage(reference, nothing, nothing, platform, nowhere, (), nothing, {})
        for reference, platform in wanted
    }
