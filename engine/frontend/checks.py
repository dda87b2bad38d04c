"""The build checks: their names, what they say, what to do about it; and which of them a Dockerfile wants.

Names and messages are those of docker's build checks, so that a `# check=skip=…` means the same here.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from engine.errors import DockerfileError
from engine.frontend.instructions import directives
from engine.frontend.source import Source
from engine.record import Record

DIRECTIVE_ARG = "BUILDKIT_DOCKERFILE_CHECK"
"""The build argument that stands for the directive, and instead of it."""


class Finding(Record):
    """One thing that is allowed and better not done. `lines` (first, last) 1-based; `word`: the part that it is about,
    "" for none; `hint`: what to do."""

    rule: str
    message: str
    lines: tuple[int, int]
    hint: str
    word: str = ""

    @property
    def url(self) -> str:
        """Docker's page about the rule, "" for a rule of ours."""
        slug = re.sub(r"(?<=[a-z])(?=[A-Z])", "-", self.rule.replace("JSONArgs", "JsonArgs")).lower()
        return "" if self.rule in OURS else f"https://docs.docker.com/go/dockerfile/rule/{slug}/"

    def __str__(self) -> str:
        """One line for the end of a build."""
        return f"{self.rule}: {self.message} (line {self.lines[0]})"


RULES: Mapping[str, str] = {
    "StageNameCasing": "write the stage's name in lower case",
    "FromAsCasing": "write AS in the case of FROM",
    "NoEmptyContinuation": "remove the empty line, or make it a comment",
    "ConsistentInstructionCasing": "write all instructions in one case",
    "DuplicateStageName": "give each stage a name of its own",
    "ReservedStageName": "call the stage something else",
    "JSONArgsRecommended": 'write the command as a JSON list, as in ["executable", "argument"]',
    "MaintainerDeprecated": "write LABEL org.opencontainers.image.authors=… instead",
    "UndefinedArgInFrom": "declare it with ARG before the first FROM",
    "WorkdirRelativePath": "begin with an absolute WORKDIR",
    "UndefinedVar": "declare it with ARG or ENV before this line, or escape the $",
    "MultipleInstructionsDisallowed": "remove all but the last",
    "LegacyKeyValueFormat": "put a = between key and value",
    "RedundantTargetPlatform": "leave out --platform",
    "SecretsUsedInArgOrEnv": "use RUN --mount=type=secret: what is in ARG and ENV stays in the image or its history",
    "InvalidDefaultArgInFrom": "give the ARG a default that makes a valid image name",
    "FromPlatformFlagConstDisallowed": "use --platform=$BUILDPLATFORM or none, or name the stage after the platform",
    "CopyIgnoredFile": "take the path out of .dockerignore, or do not copy it",
    "InvalidDefinitionDescription": "begin the comment with the name, or put an empty line below it",
    "ExposeProtoCasing": "write the protocol in lower case",
    "ExposeInvalidFormat": "name the container's port only, as in EXPOSE 80/tcp",
    "UnusedStage": "remove it, use it, or build it with --target",
}
EXPERIMENTAL = frozenset({"CopyIgnoredFile", "InvalidDefinitionDescription"})
"""Off unless asked for, as in docker."""
OURS = frozenset({"UnusedStage"})
"""Rules that docker does not have: they never fail a build."""


def finding(rule: str, message: str, lines: tuple[int, int], word: str = "") -> Finding:
    """A finding with the rule's hint."""
    return Finding(rule, message, lines, RULES[rule], word)


@dataclass(frozen=True, slots=True)
class CheckSettings:
    """`skip`: rules that are not wanted, "all" for none at all; `experimental`: those that are, "all" for all;
    `error`: findings fail the build."""

    skip: frozenset[str] = frozenset()
    experimental: frozenset[str] = frozenset()
    error: bool = False

    def wants(self, rule: str) -> bool:
        """Is a finding of `rule` to be told?"""
        if "all" in self.skip or rule.lower() in self.skip:
            return False
        return rule not in EXPERIMENTAL or "all" in self.experimental or rule.lower() in self.experimental

    def choose(self, findings: Iterable[Finding]) -> tuple[Finding, ...]:
        """Those to be told, in order of lines, each once."""
        wanted = (found for found in findings if self.wants(found.rule))
        return tuple(sorted(dict.fromkeys(wanted), key=lambda found: (found.lines, found.rule, found.message)))

    def failing(self, findings: Iterable[Finding]) -> list[str]:
        """The names of the rules that fail the build."""
        return sorted({found.rule for found in findings if found.rule not in OURS}) if self.error else []


def check_settings(source: Source, build_args: Mapping[str, str]) -> CheckSettings:
    """From `# check=skip=A,B;error=true` or the build argument. Raises DockerfileError for one that is malformed."""
    text, line = directives(source).get("check", ("", 1))
    given = build_args.get(DIRECTIVE_ARG)
    settings = _parse(source, text if given is None else given, line)
    more = build_args.get(f"{DIRECTIVE_ARG}_EXPERIMENTAL", "")
    names = settings.experimental | _names(more)
    return CheckSettings(settings.skip, names, settings.error)


def _parse(source: Source, text: str, line: int) -> CheckSettings:
    skip: frozenset[str] = frozenset()
    experimental: frozenset[str] = frozenset()
    error = False
    for part in filter(None, (part.strip() for part in text.split(";"))):
        name, equals, value = part.partition("=")
        name = name.strip().lower()
        if not equals or name not in {"skip", "error", "experimental"}:
            raise _malformed(source, f"invalid check option '{part}'", line)
        if name == "skip":
            skip = _names(value)
        elif name == "experimental":
            experimental = _names(value)
        elif value.strip().lower() in {"true", "false", "1", "0", "t", "f"}:
            error = value.strip().lower() in {"true", "1", "t"}
        else:
            raise _malformed(source, f"invalid value '{value}' for the check option error", line)
    return CheckSettings(skip, experimental, error)


def _malformed(source: Source, what: str, line: int) -> DockerfileError:
    return source.error(what, (line, line), "write it as in # check=skip=StageNameCasing,FromAsCasing;error=true")


def _names(text: str) -> frozenset[str]:
    return frozenset(filter(None, (name.strip().lower() for name in text.split(","))))
