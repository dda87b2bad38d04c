"""A Dockerfile to the graph of what its target needs. Pure: base images come from a resolver that is passed in.

Sources: Dockerfile reference; BuildKit for what it leaves open (names of steps, history, defaults of the config).
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any

from engine.errors import ChecksFailed
from engine.frontend.compiler import Compiler, Images
from engine.frontend.definition import Dockerfile, read_dockerfile
from engine.frontend.instructions import Instruction
from engine.frontend.scope import FrontendOptions, unused_arguments
from engine.frontend.stages import Stage, find_target, insert_triggers, needed_images, needed_stages
from engine.frontend.variables import Watcher
from engine.graph import Graph, ResolvedImage
from storage.platform import parse_platform

__all__ = ["FrontendOptions", "Resolve", "compile_dockerfile"]

Resolve = Callable[[Sequence[tuple[str, str]]], Awaitable[Images]]
"""Image names as written with a platform each → what they are; one call for all that a build needs."""


async def compile_dockerfile(text: str, options: FrontendOptions, resolve: Resolve) -> Graph:
    """The graph of the target stage. `resolve` is asked once, for exactly the images the target needs, if any, and
    once more where ONBUILD triggers of those name others.

    Raises DockerfileError (a line of `text`), InputError (an option), ChecksFailed (`# check=error=true`) and whatever
    `resolve` raises.
    """
    dockerfile = read_dockerfile(text, options)
    found = list(dockerfile.lint())
    target = find_target(dockerfile.source, dockerfile.stages, options.target)
    needed, images = await _resolve_needed(dockerfile, [target], resolve)
    watcher = watch(dockerfile)
    compiler = Compiler(dockerfile, images, watcher)
    compiler.warnings += [
        f"--build-arg {name} was given, but no ARG declares it"
        for name in unused_arguments(options, dockerfile.instructions)
    ]
    for stage in needed:
        compiler.read_stage(stage)
    findings = dockerfile.settings.choose([*found, *watcher.findings])
    if failing := dockerfile.settings.failing(findings):
        raise ChecksFailed(failing, options.filename, findings[0].lines[0])
    compiler.warnings += [str(item) for item in findings]
    return compiler.graph(target)


def watch(dockerfile: Dockerfile) -> Watcher:
    """What looks at each instruction before it is read."""
    return Watcher(dockerfile.escape, dockerfile.options.ignore, tuple(dockerfile.scope))


async def look_over(dockerfile: Dockerfile, resolve: Resolve, watcher: Watcher, *, unknown: bool) -> None:
    """Show `watcher` the instructions of all stages, needed or not; `unknown`: `resolve` knows no images, it only
    stands for them. Raises DockerfileError and whatever `resolve` raises; `watcher` has seen what came before."""
    needed, images = await _resolve_needed(dockerfile, dockerfile.stages, resolve)
    compiler = Compiler(dockerfile, images, watcher, unknown=unknown)
    for stage in needed:
        compiler.read_stage(stage)


async def _resolve_needed(
    dockerfile: Dockerfile, targets: Sequence[Stage], resolve: Resolve
) -> tuple[list[Stage], Images]:
    """The stages that `targets` need, ONBUILD triggers inserted, and the images that these need."""
    source, stages = dockerfile.source, dockerfile.stages
    platform = str(parse_platform(dockerfile.options.platform))
    images: dict[tuple[str, str], ResolvedImage] = {}

    def rewrite(trigger: Instruction) -> Instruction:
        return dockerfile.contexts.rewritten(stages, trigger)

    for stage in stages:
        if stage.base_stage is not None:
            base = stages[stage.base_stage]
            texts = [command.args[0] for command in base.commands if command.name == "ONBUILD"]
            insert_triggers(source, stage, texts, f"stage {base.title}", rewrite)
    while True:
        needed = needed_stages(source, stages, targets)
        found = needed_images(source, stages, needed, dockerfile.scope, platform, dockerfile.contexts.layouts)
        uses = [(use.reference, use.platform) for use in found]
        wanted = [use for use in dict.fromkeys(uses) if use not in images]
        if not wanted:
            return needed, images
        images.update(await resolve(wanted))
        for stage in needed:
            image = images.get((stage.base, stage.platform))
            if stage.base_stage is None and image is not None:
                insert_triggers(source, stage, _triggers(image.config), f"image {stage.base}", rewrite)


def _triggers(config: Mapping[str, Any]) -> list[str]:
    inner = config.get("config")
    found = inner.get("OnBuild") if isinstance(inner, dict) else None
    return [text for text in found if isinstance(text, str)] if isinstance(found, list) else []
