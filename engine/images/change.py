"""Changes of an image's config that need no step: instructions of a Dockerfile, as `docker import --change` takes."""

from __future__ import annotations

from collections.abc import Sequence

from engine.errors import DockerfileError, InputError
from engine.frontend.config import ImageConfig
from engine.frontend.instructions import Instruction, parse_dockerfile
from engine.frontend.names import StepNames
from engine.frontend.scope import FrontendOptions
from engine.frontend.source import Source
from engine.frontend.stage import METADATA, Reading, StageState
from engine.frontend.steps import workdir
from engine.graph import HistoryStep
from storage.digest import sha256

_NAMES = tuple(sorted({*METADATA, "WORKDIR"} - {"ARG"}))


def apply_changes(image: ImageConfig, changes: Sequence[str], comment: str) -> list[HistoryStep]:
    """Apply `changes` to `image`, in order; the history's entries of them. Raises InputError."""
    if not changes:
        return []
    state = StageState("", StepNames("", 0), sha256(b""), image.platform, image)
    reading = Reading(FrontendOptions(filename="--change"), "\\", {})
    return [HistoryStep(_apply(state, text, reading), comment=comment) for text in changes]


def _apply(state: StageState, text: str, reading: Reading) -> str:
    instruction = _read(text)
    try:
        if instruction.name == "WORKDIR":
            workdir(state, instruction, reading)  # sets the config; the directory itself would be a layer
            return f"WORKDIR {state.image.working_dir}"
        return METADATA[instruction.name](state, instruction, reading)
    except InputError as error:
        raise InputError(f"--change {text[:200]!r}: {error.what}", hint=error.hint) from error


def _read(text: str) -> Instruction:
    try:
        found, _ = parse_dockerfile(Source("--change", text))
    except DockerfileError as error:
        raise InputError(f"--change {text[:200]!r}: {error.what}", hint=error.hint) from error
    if len(found) != 1:
        raise InputError(f"--change {text[:200]!r} is no single instruction", hint="write one --change for each")
    if found[0].name not in _NAMES:
        what = f"--change {text[:200]!r}: {found[0].name} needs a build"
        raise InputError(what, hint=f"it takes {', '.join(_NAMES)}")
    return found[0]
