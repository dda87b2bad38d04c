"""Contexts: what one is written as, and how named ones take the place of stages and images. Pure.

Sources: docker's manual ("Build context", "docker buildx build --build-context"); BuildKit for the order of names.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace

from engine.frontend.instructions import Instruction
from engine.frontend.mounts import with_origin
from engine.frontend.names import TREE
from engine.frontend.stages import Stage, find_stage
from engine.frontend.urls import parse_git, parse_http, redacted, refuse_other
from engine.graph import ArchiveSource, ContextSource, GitSource
from engine.record import Record
from storage.errors import InputError
from storage.reference import LAYOUT, parse_reference

_ARCHIVES = (b"BZh", b"\x1f\x8b\x08", b"\xfd7zXZ\x00", b"\x28\xb5\x2f\xfd")
_MAGIC_AT, _MAGIC = 257, b"ustar"
_OWN_SCHEME = re.compile(r"([a-z][a-z-]+):(.*)")


class ImageContext(Record):
    """An image: its name, or `oci-layout:///absolute/path[:tag][@digest]`."""

    reference: str


class StageContext(Record):
    """A stage of the same Dockerfile."""

    stage: str


Tree = ContextSource | GitSource | ArchiveSource
NamedContext = Tree | ImageContext | StageContext


def remote_context(text: str) -> GitSource | ArchiveSource | None:
    """The context that `text` names elsewhere: a git repository, or a file of the web; None for a path."""
    if git := parse_git(text, context=True):
        return git
    if http := parse_http(text):
        return ArchiveSource(http.url)
    refuse_other(text)
    return None


def named_context(text: str) -> NamedContext | None:
    """What `--build-context NAME=text` names; None for a path. An `oci-layout://` path is as written."""
    found = _OWN_SCHEME.fullmatch(text)
    if found is not None and found[1] in {"docker-image", "oci-layout", "target"}:
        value = found[2].removeprefix("//")
        if not value:
            raise InputError(f"--build-context {text!r} names nothing", hint=f"write {found[1]}:…")
        if found[1] == "target":
            return StageContext(value)
        return ImageContext(value if found[1] == "docker-image" else LAYOUT + value)
    return None if text.startswith("github.com/") else remote_context(text)


def is_archive(start: bytes) -> bool:
    """Is what begins with these (512) bytes a tar, maybe compressed? As docker tells it from a Dockerfile."""
    return start.startswith(_ARCHIVES) or start[_MAGIC_AT : _MAGIC_AT + len(_MAGIC)] == _MAGIC or _old_tar(start)


def _old_tar(start: bytes) -> bool:
    """A header without magic (V7): its checksum tells."""
    if len(start) < 512:
        return False
    try:
        stored = int(start[148:156].strip(b" \0"), 8)
    except ValueError:
        return False
    return stored == sum(start[:148]) + sum(start[156:512]) + 8 * 0x20


def context_name(name: str) -> str:
    """The one spelling of a name of a context, stage or image: docker's familiar form, without `:latest`.
    Raises InputError."""
    reference = parse_reference(name)
    familiar = f"{reference.registry}/{reference.repository}".removeprefix("docker.io/").removeprefix("library/")
    if reference.tag and reference.tag != "latest":
        familiar += f":{reference.tag}"
    return f"{familiar}@{reference.digest}" if reference.digest else familiar


class Contexts:
    """The named contexts of a build. They go before stages and images of the same name."""

    def __init__(self, named: Mapping[str, NamedContext]) -> None:
        self._named = named

    @property
    def layouts(self) -> frozenset[str]:
        """The OCI layouts among them."""
        images = (context.reference for context in self._named.values() if isinstance(context, ImageContext))
        return frozenset(reference for reference in images if reference.startswith(LAYOUT))

    def find(self, name: str) -> NamedContext | None:
        """The context called `name`, a name as FROM or --from has it."""
        if not self._named:
            return None
        try:
            return self._named.get(context_name(name))
        except InputError:
            return None

    def apply(self, stages: Sequence[Stage]) -> None:
        """Put the contexts in their places: as stages of that name, below FROM, behind --from. Raises InputError."""
        if not self._named:
            return
        for stage in stages:
            own = self.find(stage.name) if stage.name else None
            if own is not None:
                stage.commands = []
                self._stand_on(stages, stage, own)
            elif stage.base_stage is None and (base := self.find(stage.base)) is not None:
                self._stand_on(stages, stage, base)
            stage.commands = [self.rewritten(stages, command) for command in stage.commands]

    def _stand_on(self, stages: Sequence[Stage], stage: Stage, context: NamedContext) -> None:
        stage.base_stage = None
        if not isinstance(context, StageContext):
            stage.base = self.token(context)
            return
        found = find_stage(stages, context.stage)
        if found is None or found.index >= stage.index:
            raise InputError(f"context target:{context.stage}: no stage of that name comes before {stage.title!r}")
        stage.base, stage.base_stage = context.stage, found.index

    def rewritten(self, stages: Sequence[Stage], command: Instruction) -> Instruction:
        """`command` with its flags, where they name a stage or a context, pointing to what that is."""
        flags = tuple((name, self._flag(stages, command.name, name, value)) for name, value in command.all_flags)
        return replace(command, flags=dict(flags), all_flags=flags)

    def _flag(self, stages: Sequence[Stage], instruction: str, flag: str, value: str) -> str:
        if instruction in {"COPY", "ADD"} and flag == "from":
            return self._replaced(stages, value)
        if instruction == "RUN" and flag == "mount":
            return with_origin(value, lambda name: self._replaced(stages, name))
        return value

    def _replaced(self, stages: Sequence[Stage], name: str) -> str:
        if find_stage(stages, name) is not None or (context := self.find(name)) is None:
            return name  # a stage of that name was replaced as a whole
        if isinstance(context, StageContext):
            return context.stage
        return self.token(context)

    def tree(self, token: str) -> Tree | None:
        """The tree that `token` stands for; None when it is an image's or a stage's name."""
        if not token.startswith(TREE):
            return None
        found = self._named.get(token.removeprefix(TREE))
        if found is None:  # somebody wrote it so
            raise InputError(f"{token[:200]!r} is not an image's name: there is no context of that name")
        assert isinstance(found, ContextSource | GitSource | ArchiveSource)
        return found

    def token(self, context: Tree | ImageContext) -> str:
        """What stands for `context` in the place of a name."""
        if isinstance(context, ImageContext):
            return context.reference
        return TREE + next(name for name, value in self._named.items() if value == context)


def context_title(source: GitSource | ArchiveSource) -> str:
    """Where a context comes from, for people; "" for standard input."""
    if isinstance(source, ArchiveSource):
        return redacted(source.url)
    return redacted(source.remote) + (f"#{source.ref}" if source.ref else "")


def tree_title(name: str, tree: Tree) -> str:
    """What the step is called that reads `tree`, the context `name`."""
    match tree:
        case ContextSource():
            return f"[context {name}] load"
        case _:  # a GitSource or an ArchiveSource
            return f"[context {name}] {context_title(tree)}"


def image_title(reference: str) -> str:
    """The name of an image for people, complete."""
    return reference if reference.startswith(LAYOUT) else str(parse_reference(reference))
