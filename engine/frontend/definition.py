"""A Dockerfile read as far as that needs no image: instructions, global arguments, stages, and what checks find."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from engine.errors import InputError
from engine.frontend.checks import CheckSettings, Finding, check_settings
from engine.frontend.contexts import Contexts
from engine.frontend.dockerignore import IgnoreMatcher
from engine.frontend.instructions import Instruction, parse_dockerfile
from engine.frontend.lint import lint, lint_from
from engine.frontend.scope import FrontendOptions, global_arguments
from engine.frontend.source import Source
from engine.frontend.stages import Stage, read_stages, split_stages
from storage.platform import parse_platform


@dataclass(frozen=True, slots=True)
class Dockerfile:
    """`scope`: the global arguments; `before`: what stands before the first FROM."""

    source: Source
    options: FrontendOptions
    settings: CheckSettings
    instructions: Sequence[Instruction]
    escape: str
    before: Sequence[Instruction]
    scope: Mapping[str, str]
    stages: Sequence[Stage]
    contexts: Contexts

    def lint(self) -> Iterator[Finding]:
        """What the checks find that need no image."""
        yield from lint(self.source, self.instructions, self.stages, self.escape)
        plain = replace(self.options, build_args={})
        try:
            defaults = global_arguments(self.source, self.before, plain, self.escape)
        except InputError:
            defaults = dict(self.scope)  # a default that fails without its --build-arg says so itself: ${A:?why}
        declared = [word.partition("=")[0] for instruction in self.before for word in instruction.args]
        yield from lint_from(self.stages, self.scope, defaults, declared, self.escape)


def read_dockerfile(text: str, options: FrontendOptions) -> Dockerfile:
    """Instructions, global arguments and stages. Raises DockerfileError, InputError (an option)."""
    IgnoreMatcher(options.ignore)  # reason: a malformed pattern is an error now, not in the middle of the build
    source = Source(options.filename, text)
    instructions, escape = parse_dockerfile(source)
    settings = check_settings(source, options.build_args)
    before, groups = split_stages(instructions)
    scope = global_arguments(source, before, options, escape)
    if not groups:
        raise source.error("the Dockerfile has no FROM", instructions[-1].lines, "a stage begins with FROM image")
    stages = read_stages(source, groups, scope, escape, str(parse_platform(options.platform)))
    contexts = Contexts(options.named)
    contexts.apply(stages)
    return Dockerfile(source, options, settings, instructions, escape, before, scope, stages, contexts)
