"""A Dockerfile to the graph of what its target needs. Pure: base images come from a resolver that is passed in.

Sources: Dockerfile reference; BuildKit for what it leaves open (names of steps, history, defaults of the config).
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from engine.errors import ChecksFailed, InputError
from engine.frontend.config import ImageConfig
from engine.frontend.contexts import Tree, context_title, image_title, tree_title
from engine.frontend.definition import Dockerfile, read_dockerfile
from engine.frontend.expand import LARGEST, too_large
from engine.frontend.instructions import Instruction
from engine.frontend.names import CONTEXT_NAME, TREE, StepNames
from engine.frontend.remote import selected, title
from engine.frontend.scope import FrontendOptions, unused_arguments
from engine.frontend.stage import METADATA, Reading, StageState
from engine.frontend.stages import (
    Stage,
    find_origin,
    find_target,
    insert_triggers,
    needed_images,
    needed_stages,
    taken_from,
)
from engine.frontend.steps import Step, UnsupportedError, copy, run, workdir
from engine.frontend.variables import Watcher
from engine.graph import (
    ContextSource,
    Copy,
    GitSource,
    Graph,
    HistoryStep,
    ImageSource,
    Merge,
    Mount,
    Op,
    ResolvedImage,
    Result,
    Run,
    Scratch,
    Vertex,
    vertex,
)
from engine.record import changed
from storage.digest import Digest
from storage.platform import parse_platform

__all__ = ["FrontendOptions", "Resolve", "compile_dockerfile"]

Images = Mapping[tuple[str, str], ResolvedImage]
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
    compiler = _Compiler(dockerfile, images, watcher)
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
    compiler = _Compiler(dockerfile, images, watcher, unknown=unknown)
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


class _Compiler:
    def __init__(self, dockerfile: Dockerfile, images: Images, watcher: Watcher, *, unknown: bool = False) -> None:
        self._contexts = dockerfile.contexts
        self._source = dockerfile.source
        self._stages = dockerfile.stages
        self._images = images
        self._unknown = unknown
        self._reading = Reading(dockerfile.options, dockerfile.escape, dockerfile.scope)
        self._watcher = watcher
        self._states: dict[int, StageState] = {}
        self._vertices: dict[Digest, Vertex] = {}
        self._size = 0
        self.warnings: list[str] = []

    # ------------------------------------------------------------ vertices

    def _add(
        self, op: Op, inputs: tuple[Digest, ...], name: str, stage: str = "", lines: tuple[int, int] = (0, 0)
    ) -> Digest:
        made = vertex(op, inputs, name, stage=stage, lines=lines)
        self._vertices.setdefault(made.digest, made)  # the first to ask for a step gives it its name
        return made.digest

    def _image(self, reference: str, platform: str, names: StepNames | None, stage: str, origin: Instruction) -> Digest:
        """The vertex of an image's file system; one without layers is the empty one."""
        text = f"FROM {image_title(reference)}"
        name = names.next(text) if names else text
        image = self._images[(reference, platform)]
        if not image.layers:
            return self._add(Scratch(), (), name, stage, origin.lines)
        op = ImageSource(reference, image.manifest, image.platform, image.provider, image.layers)
        return self._add(op, (), name, stage, origin.lines)

    # ------------------------------------------------------------ stages

    def read_stage(self, stage: Stage) -> None:
        """Read a stage; those it needs were read before. Raises DockerfileError."""
        state = self._begin(stage)
        for instruction in stage.commands:
            self._watcher.see(state, instruction)
            try:
                self._read(stage, state, instruction)
            except UnsupportedError as error:
                raise self._source.unsupported(error.what, instruction.lines) from error
            except InputError as error:
                raise self._source.error(error.what, instruction.lines, error.hint) from error
        self._states[stage.index] = state

    def _begin(self, stage: Stage) -> StageState:
        title = "" if self._is_alone(stage) else stage.title
        names = StepNames(self._prefix(stage, title), stage.steps)
        if stage.base_stage is not None:
            return self._states[stage.base_stage].child(title, names)
        if stage.base == "scratch":
            base = self._add(Scratch(), (), "FROM scratch", title, stage.origin.lines)
            platform = self._reading.options.platform
            return StageState(title, names, base, str(parse_platform(platform)), ImageConfig.scratch(platform))
        if (tree := self._contexts.tree(stage.base)) is not None:
            return self._begin_tree(stage, tree, title, names)
        base = self._image(stage.base, stage.platform, names, title, stage.origin)
        data = self._images[(stage.base, stage.platform)].config
        try:
            config = ImageConfig.of_base(data, stage.platform)
        except InputError as error:
            raise self._source.error(f"image {stage.base}: {error.what}", stage.origin.lines) from error
        config.config.pop("OnBuild", None)  # its triggers are this stage's first commands
        self._compare_platforms(stage, config)
        history = data.get("history")
        entries = tuple(item for item in history if isinstance(item, dict)) if isinstance(history, list) else ()
        unknown = stage.base if self._unknown else ""
        return StageState(
            title, names, base, stage.platform, config, base_history=entries, unknown_base=unknown
        )

    def _begin_tree(self, stage: Stage, tree: Tree, title: str, names: StepNames) -> StageState:
        """A stage that stands on the files of a context: they are its first layer."""
        name = stage.base.removeprefix(TREE)
        base = self._add(Scratch(), (), "FROM scratch", title, stage.origin.lines)
        op = Copy(sources=(".",), dest="/", from_context=isinstance(tree, ContextSource))
        step = names.next(f"FROM {name}")
        made = self._add(op, (base, self._tree(tree, stage.base)), step, title, stage.origin.lines)
        history = [HistoryStep(f"COPY . / # the context {name}", made)]
        config = ImageConfig.scratch(stage.platform)
        return StageState(title, names, made, stage.platform, config, history=history)

    def _prefix(self, stage: Stage, title: str) -> str:
        """The stage's name in those of its steps, behind its platform when there are several, as buildx has it."""
        if not self._reading.options.several:
            return title
        own, target = parse_platform(stage.platform), parse_platform(self._reading.options.platform)
        shown = str(own)
        if own != target:
            shown += "->" + str(target).removeprefix(f"{own.os}/")
        return f"{shown} {title}".rstrip()

    def _is_alone(self, stage: Stage) -> bool:
        """Nothing but this stage has a name: BuildKit then leaves it out of the steps' names."""
        return len(self._stages) == 1 and not any(name for c in stage.commands for name in taken_from(c))

    def _compare_platforms(self, stage: Stage, config: ImageConfig) -> None:
        wanted, found = parse_platform(stage.platform), config.top
        if (found.get("os"), found.get("architecture")) != (wanted.os, wanted.architecture):
            line = stage.origin.lines[0]
            self.warnings.append(f"line {line}: image {stage.base} is for {config.platform}, not for {wanted}")

    # ------------------------------------------------------------ instructions

    def _read(self, stage: Stage, state: StageState, instruction: Instruction) -> None:
        name = instruction.name
        if name in METADATA:
            self._note(state, METADATA[name](state, instruction, self._reading))
            return
        if name == "RUN":
            self._run(stage, state, instruction)
        elif name == "WORKDIR":
            made = workdir(state, instruction, self._reading)
            if made is None:
                self._note(state, "WORKDIR /")
            else:
                self._step(state, made, instruction, ())
        else:
            self._copy(stage, state, instruction)

    def _run(self, stage: Stage, state: StageState, instruction: Instruction) -> None:
        made = run(state, instruction, self._reading)
        assert isinstance(made.op, Run)
        inputs: list[Digest] = []
        mounts: list[Mount] = []
        for mount, written in zip(made.op.mounts, made.mount_origins, strict=True):
            if written is None:
                mounts.append(mount)
                continue
            found = find_origin(self._source, self._stages, stage, written, instruction)
            digest = self._origin(found, instruction)
            if digest not in inputs:
                inputs.append(digest)
            mounts.append(mount.at(inputs.index(digest) + 1))  # input 0 is the base
        op = made.op.with_mounts(tuple(mounts)) if inputs else made.op
        self._step(state, Step(op, made.name, made.created_by), instruction, tuple(inputs))

    def _copy(self, stage: Stage, state: StageState, instruction: Instruction) -> None:
        written = instruction.flags.get("from", "")
        origin = find_origin(self._source, self._stages, stage, written, instruction)
        made = copy(state, instruction, self._reading, from_context=self._is_local(origin))
        if made.remotes and isinstance(made.op, Copy):
            self._add_remote(state, made, made.op, instruction)
            if not made.op.sources:
                return
        takes_files = isinstance(made.op, Copy) and made.op.sources  # there may be heredocs only
        inputs = (self._origin(origin, instruction),) if takes_files else ()
        self._step(state, made, instruction, inputs)

    def _add_remote(self, state: StageState, made: Step, op: Copy, instruction: Instruction) -> None:
        """Add what lies elsewhere; what the same ADD takes from the context comes in a layer of its own."""
        trees = tuple(self._add(source, (), title(source), lines=instruction.lines) for source in made.remotes)
        tree = trees[0]
        if len(trees) > 1:
            tree = self._add(Merge(), trees, f"[internal] lay {len(trees)} sources over one another")
        files = () if op.sources else op.files
        remote = changed(op, sources=selected(made.remotes), files=files, from_context=False)
        self._step(state, replace(made, op=remote), instruction, (tree,))

    def _origin(self, origin: Stage | str | None, instruction: Instruction) -> Digest:
        if origin is None:
            return self._own_context()
        if isinstance(origin, str) and (tree := self._contexts.tree(origin)) is not None:
            return self._tree(tree, origin)
        if isinstance(origin, Stage):
            return self._states[origin.index].vertex
        if origin == "scratch":
            return self._add(Scratch(), (), "FROM scratch", "", instruction.lines)
        return self._image(origin, str(parse_platform(self._reading.options.platform)), None, "", instruction)

    def _is_local(self, origin: Stage | str | None) -> bool:
        """Is it a directory of this machine, whose files become root's? Those of other contexts keep their owners."""
        if origin is None:
            return self._reading.options.context is None
        return isinstance(origin, str) and isinstance(self._contexts.tree(origin), ContextSource)

    def _own_context(self) -> Digest:
        context = self._reading.options.context
        if context is None:
            return self._add(ContextSource(excludes=self._reading.options.ignore), (), CONTEXT_NAME)
        kind = "git source" if isinstance(context, GitSource) else "build context"
        return self._add(context, (), f"[internal] load {kind} {context_title(context)}".rstrip())

    def _tree(self, tree: Tree, token: str) -> Digest:
        return self._add(tree, (), tree_title(token.removeprefix(TREE), tree))

    def _note(self, state: StageState, created_by: str, made: Digest | None = None, more: int = 0) -> None:
        """An entry of the history. All that variables made is in one, but for the `more` characters of an op."""
        self._size += len(created_by) + more
        if self._size > LARGEST:
            raise too_large()
        state.history.append(HistoryStep(created_by, made))

    def _step(self, state: StageState, made: Step, instruction: Instruction, inputs: tuple[Digest, ...]) -> None:
        name = state.names.next(made.name)
        state.vertex = self._add(made.op, (state.vertex, *inputs), name, state.title, instruction.lines)
        self._note(state, made.created_by, state.vertex, made.size)

    # ------------------------------------------------------------ the result

    def graph(self, target: Stage) -> Graph:
        """The graph with `target` as its one result."""
        state = self._states[target.index]
        options = self._reading.options
        image = state.image
        if parse_platform(options.platform) != parse_platform(options.build_platform):
            image.set_platform(options.platform)  # asked for, so the result is that, whatever its base was made for
        if options.labels:
            image.config["Labels"] = {**image.config.get("Labels", {}), **options.labels}
        result = Result(state.vertex, image.platform, image.to_json(), state.base_history, tuple(state.history))
        return Graph(self._below(state.vertex), (result,), tuple(self.warnings))

    def _below(self, root: Digest) -> tuple[Vertex, ...]:
        """`root` and all it stands on, in order: a stage named by a COPY of heredocs alone gives nothing to it."""
        needed: set[Digest] = set()
        waiting = [root]
        while waiting:
            digest = waiting.pop()
            if digest not in needed:
                needed.add(digest)
                waiting.extend(self._vertices[digest].inputs)
        return tuple(item for digest, item in self._vertices.items() if digest in needed)
