"""What steps take from contexts: selected and hashed before anything runs, and kept for whoever asks later."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from engine.aside import shown_step
from engine.errors import DiskError, RefledgerError
from engine.events import ContextKept, ContextScanned
from engine.graph import ContextSource, Copy, Graph, Run, Vertex, VertexError
from engine.ledger import Facts
from engine.ops.executor import Task
from engine.ops.rules import source_of
from engine.ops.select import select
from engine.ops.selection import Selection
from engine.refs.ref import Remote
from engine.solver.answers import CacheLookup
from storage.digest import Digest
from storage.interfaces.blobs import BlobStore
from storage.threads import in_thread


@dataclass(slots=True)
class Taken:
    """What the steps of one graph take from the `directories` that some sources stand for, by vertex: `selections` of
    COPY and ADD, `mounted` of RUN by the mount's number, and `contents`, the digests of their stored listings (the
    mount's number, None for a COPY)."""

    directories: Mapping[Digest, Path]
    facts: Facts
    blobs: BlobStore
    cache: CacheLookup
    selections: dict[Digest, Selection] = field(default_factory=dict)
    mounted: dict[Digest, dict[int, Selection]] = field(default_factory=dict)
    contents: dict[Digest, dict[int | None, Digest]] = field(default_factory=dict)

    async def read(self, graph: Graph) -> None:
        """Read all that `graph` takes. Raises VertexError."""
        for source, uses in _uses(graph, self.directories).items():
            context = graph.by_digest[source]
            async with shown_step(self.facts, context.name, source):
                for vertex, number, op in uses:
                    try:
                        await self._take(context, vertex, number, op)
                    except RefledgerError as error:
                        raise VertexError(vertex, error) from error  # the line at fault is the step's
        inline = [v for v in graph.vertices if isinstance(v.op, Copy) and len(v.inputs) == 1]
        self.selections |= {vertex.digest: Selection((), (), 0, 0) for vertex in inline}

    async def _take(self, context: Vertex, vertex: Vertex, number: int | None, op: Copy) -> None:
        excludes = context.op.excludes if isinstance(context.op, ContextSource) else ()
        root, literal = self.directories[context.digest], isinstance(vertex.op, Run)
        selection = await asyncio.to_thread(select, op, root, excludes, hash_files=True, literal=literal)
        if number is None:
            self.selections[vertex.digest] = selection
        else:
            self.mounted.setdefault(vertex.digest, {})[number] = selection
        # The stored listing's digest is the content part: two keys agree when the listings do.
        listing = await asyncio.to_thread(self.blobs.put, selection.listing())
        self.contents.setdefault(vertex.digest, {})[number] = listing
        self.facts.post(
            ContextScanned(
                name=context.op.name if isinstance(context.op, ContextSource) else context.name,
                listing=str(listing),
                step=str(vertex.digest),
                files=selection.files,
                bytes=selection.bytes,
            ),
            vertex=context.digest,
        )

    def directory(self, vertex: Vertex) -> str:
        """The context that a Copy takes from, "" for other steps."""
        return next((str(self.directories[digest]) for digest in vertex.inputs if digest in self.directories), "")

    def mounts(self, vertex: Vertex) -> dict[int, str]:
        """The contexts that mounts of a Run take from, by the mount's number."""
        if not isinstance(vertex.op, Run):
            return {}
        taken = ((number, vertex.inputs[m.input]) for number, m in enumerate(vertex.op.mounts) if m.input >= 0)
        return {number: str(self.directories[digest]) for number, digest in taken if digest in self.directories}

    def task(
        self, build: str, vertex: Vertex, inputs: tuple[Remote, ...], attempt: int, epoch: int | None
    ) -> Task:
        """The execution of `vertex` on `inputs` that is `attempt` of `build`."""
        return Task(
            vertex, f"{build}-{vertex.digest.short}-{attempt}", attempt, inputs, self.directory(vertex),
            selection=self.selections.get(vertex.digest), epoch=epoch, mounted=self.mounted.get(vertex.digest, {}),
            directories=self.mounts(vertex),
        )  # fmt: skip

    async def keep(self, vertex: Vertex, ref: Remote) -> None:
        """Say where the files that `vertex` took stay, now that `ref` is its result; durable before that can be a cache
        hit."""
        for number, listing in self.contents.get(vertex.digest, {}).items():
            if self.cache.keeps(listing):
                continue
            if number is None:
                assert isinstance(vertex.op, Copy), "others take by mounts"
                selection, directory = self.selections[vertex.digest], self.directory(vertex)
                await self._keep(vertex, vertex.op, selection, directory, listing, ref)
            else:
                directory = self.mounts(vertex)[number]
                await self._keep(vertex, None, self.mounted[vertex.digest][number], directory, listing, ref)

    async def keep_failed(self, vertex: Vertex, base: Remote | None) -> None:
        """The same for a step that has no result, on `base`: whoever replays it needs all that it took."""
        for number, listing in self.contents.get(vertex.digest, {}).items():
            if base is None or self.cache.keeps(listing):
                continue
            selection = self.selections[vertex.digest] if number is None else self.mounted[vertex.digest][number]
            directory = self.directory(vertex) if number is None else self.mounts(vertex)[number]
            await self._keep(vertex, None, selection, directory, listing, base)

    async def _keep(
        self, vertex: Vertex, op: Copy | None, selection: Selection, directory: str, listing: Digest, ref: Remote
    ) -> None:
        from engine.ops.keep import pack_lost

        layer = ref.layers[-1].name if op is not None and ref.layers else ""
        before = self.cache.packs()
        try:
            packs = await in_thread(lambda: pack_lost(op, selection, Path(directory), self.blobs, before))
        except OSError as error:
            raise DiskError.of(error, "keeping the context") from error
        await self.facts.record(
            ContextKept(ref=ref.id, listing=str(listing), layer=layer, packs=tuple(map(str, packs))),
            vertex=vertex.digest,
        )


def _uses(graph: Graph, directories: Mapping[Digest, Path]) -> dict[Digest, list[tuple[Vertex, int | None, Copy]]]:
    """Who takes what from each of `directories`: the vertex, the number of its mount (None for a COPY), and what it
    takes as a COPY would."""
    uses: dict[Digest, list[tuple[Vertex, int | None, Copy]]] = {}
    for vertex in graph.vertices:
        wanted: list[tuple[int, int | None, Copy]] = []
        match vertex.op:
            case Copy() if len(vertex.inputs) > 1:  # else only inline files
                wanted.append((1, None, vertex.op))
            case Run(mounts=mounts):
                wanted += [(m.input, n, source_of(m, from_context=True)) for n, m in enumerate(mounts) if m.input >= 0]
        for index, number, op in wanted:
            source = vertex.inputs[index]
            if source in directories:
                uses.setdefault(source, []).append((vertex, number, op))
    return uses
