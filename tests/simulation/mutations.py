"""Bugs planted in the core: each a few characters of its source changed, to see that the simulation finds it.

`python -m tests.simulation.mutations` looks for a seed that catches each, and prints the table of docs/simulation.md.
"""

from __future__ import annotations

import argparse

from tests.simulation.drawing import scenario
from tests.simulation.driver import Case
from tests.simulation.planting import Change, Mutation, search

TAKEN_AWAY = tuple(
    seed for seed in range(300)
    if len(rounds := scenario(seed).rounds) > 1 and [act.kind for act in rounds[1]][1:] in (["prune"], ["demote"])
)  # fmt: skip
"""Seeds of scenarios in which somebody takes away what is made again just now."""
_RECORD_REQUEST = "requested = await self.facts.record("
_RECORD_START = "started = await self.facts.record("
_PUSH = "moved = await together(self.mover.move(layer, target, shown) for layer in made.everything.values())"
_PUT_TAG = "await self.target.put_manifest(target, tag, made.media_type, made.top)"

MUTATIONS = (
    Mutation(
        "a blob is named before it is durable: no fsync of the file",
        (Change("storage.blobs:FileBlobWriter.commit", "os.fsync(self._fd)", "pass"),),
    ),
    Mutation(
        "a layer is published before it is durable: no fsync of the image",
        (Change("storage.layers.erofs.image:ImageWriter.finish", "os.fsync(self._fd)", "pass"),),
        point="commit log.db",
        kind="power loss",
    ),
    Mutation(
        "a layer's name is not durable: no fsync of the directory",
        (Change("storage.layers.erofs.layers:ErofsLayers.unpack", "fsync_directory(self._layers)", "pass"),),
        seeds=(1, 0, 2, 3),
        point="commit log.db",
        kind="power loss",
    ),
    Mutation(
        "push order: the tag goes before layers and config",
        (Change("engine.exporters.push:Pusher._push", _PUSH, f"{_PUT_TAG}\n    {_PUSH}"),),
    ),
    Mutation(
        "an export does not wait until its start is in the log",
        (Change("engine.exporters.push:Pusher._push", _RECORD_START, "started = self.facts.post("),),
    ),
    Mutation(
        "layers are fetched before the request for them is in the log",
        (Change("engine.refs.materializer:Materializer._bring", _RECORD_REQUEST, "requested = 0; self.facts.post("),),
    ),
    Mutation(
        "two processes fetch one layer at once: the locks of layer and blob are forgotten",
        (
            Change(
                "engine.refs.materializer:Materializer._fly",
                'async with locked(self.locks, f"layer-{layer.name}"):', "if True:",
            ),
            Change(
                "engine.refs.fetch:Fetcher._alone",
                'async with locked(self.locks, f"partial-{blob.digest}"), self._slots:', "async with self._slots:",
            ),
        ),
    ),
    Mutation(
        "the diff ID of a layer is not looked at",
        (Change("storage.layers.readahead:ReadAhead.check", "if found != diff_id:", "if False:"),),
        seeds=(38,),
    ),
    Mutation(
        "what is streamed from one registry to another is not digested",
        (Change("engine.refs.relay:Relay.stream", "if not start and hasher.digest() != blob.digest:", "if False:"),),
        seeds=(40,),
    ),
    Mutation(
        "a projection folds an event twice: the position is off by one",
        (Change("projections.runner:Views._fold_once", "after=start,", "after=max(start - 1, 0),"),),
        seeds=(0, 1, 2),
        point="commit log.db",
        kind="crash",
    ),
    Mutation(
        "a step's event comes before its content",
        (
            Change(
                "engine.ops.local:LocalExecutor._step", "size = await in_thread(snapshot.commit)",
                "made = await self._finish(task, base, 0, exit_code)\n        await in_thread(snapshot.commit)\n"
                "        return made",
            ),
        ),
        seeds=(1, 0, 2, 3),
        point="rename snapshots",
        kind="crash",
    ),
    Mutation(
        "a lost layer is fatal: nothing is revoked",
        (Change("engine.solver.solve:Solver._recoverable", "return bool(holders) and", "return False and"),),
        seeds=(13, 46, 112),
    ),
    Mutation(
        "a build's own lock is let go of early",
        (Change("tools.roots:owning", "with lock:\n        yield", "with lock:\n        pass\n    yield"),),
    ),
    Mutation(
        "a collection ignores what running builds need",
        (
            Change("tools.collecting:_used_since", "if not running:", "if running or not running:"),
            Change("projections.collect:_protected", "if item.in_use:", "if False:"),
        ),
        seeds=(111, 109, *TAKEN_AWAY[:10]),
    ),
    Mutation(
        "what a dead build left is not removed",
        (Change("tools.roots:recover", "removed = sweep(root.tmp, is_alive, found_by)", "removed = []"),),
        point="commit log.db",
        kind="crash",
    ),
    Mutation(
        "a build that died is not said to have been interrupted",
        (Change("tools.roots:recover", "for build in silent if", "for build in silent if False and"),),
        point="commit log.db",
        kind="crash",
    ),
    Mutation(
        "a key does not count the command",
        (Change("engine.solver.cache:cache_key", '[("argv", arg) for arg in op.argv]', "[]"),),
        seeds=(37, 71, 502),
    ),
    Mutation(
        "a key does not count what the step stands on",
        (
            Change(
                "engine.solver.cache:cache_key", 'components += [("input", str(digest)) for digest in inputs]', "pass"
            ),
        ),
        seeds=(229, 109, 125, 312, 321),
    ),
    Mutation(
        "a reader is not told that more of a blob came: a lost wakeup",
        (Change("engine.refs.spool:Spool.write", "self._news.notify()", "pass"),),
    ),
    Mutation(
        "a step's end is not recorded when it is interrupted",
        (
            Change(
                "engine.solver.scheduler:Scheduler._attempt",
                "self.facts.post(VertexCancelled(name=vertex.name, attempt=attempt), vertex=vertex.digest)", "pass",
            ),
        ),
    ),
    Mutation(
        "an interruption adds a second end to a build",
        (Change("engine.operation:conclude", "await settle(recording)", "await recording"),),
        seeds=(4, 0, 1, 2),
        point="commit log.db",
        kind="interrupt",
    ),
    Mutation(
        "a build that died is said to have been interrupted without another look at the log",
        (Change("tools.roots:_bury", 'if History(root.views).get(build).status != "running":', "if False:"),),
        seeds=(519, 656, 137),
        point="lock locks",
        kind="stalled",
    ),
    Mutation(
        "a blob is said to be here that a collection took meanwhile",
        (Change("engine.together:made_and_told", "if here(made):", "if True:"),),
        seeds=(120, *TAKEN_AWAY[:10]),
        point="commit log.db",
        kind="stalled",
    ),
    Mutation(
        "a leftover that cannot be removed ends a build with a traceback",
        (Change("storage.scratch:clear_away", "with suppress(OSError):", "if True:"),),
        point="unlink tmp",
        kind="EIO",
    ),
    Mutation(
        "a layer counts as here when a process has it half unpacked: it is renamed before it is written",
        (
            Change(
                "storage.layers.erofs.layers:ErofsLayers.unpack", "path = self._scratch.name()",
                "path = self._image(diff_id)",
            ),
        ),
    ),
    Mutation(
        "what goes is gone before the log says so",
        (
            Change(
                "tools.collecting:_let_go",
                "        root.log.append(*(_tombstone(action, policy) for action in present))\n"
                "        taken = [path for action in present for path in disk.take(action.item.key)]\n",
                "        taken = [path for action in present for path in disk.take(action.item.key)]\n"
                "        root.log.append(*(_tombstone(action, policy) for action in present))\n",
            ),
        ),
        seeds=(4, 12, 0, 21),
        point="commit log.db",
        kind="crash",
    ),
    Mutation(
        "a result that was revoked is believed again",
        (Change("engine.solver.solve:Solver._revoke", "self._answers[vertex.digest] = Miss(LOST)", "pass"),),
        seeds=(13, 46, 112, 20, 24),
    ),
    Mutation(
        "where there is a mirror, the provider itself is not asked",
        (
            Change(
                "engine.refs.places:Places.of", "for mirror in self._before(provider)), provider):",
                "for mirror in self._before(provider)),) or (provider,):",
            ),
        ),
    ),
    Mutation(
        "the first platform of an index is taken for the wanted one",
        (
            Change(
                "storage.platform:choose_platform", "if rank is not None and (best is None or rank < best[0]):",
                "rank = rank or 0\n        if best is None:",
            ),
        ),
    ),
    Mutation(
        "an exported cache names a config that is not there",
        (
            Change(
                "engine.cache.export:CacheExporter._write",
                "config_blob = await self._put(to, cache_config.MEDIA_TYPE, cache_config.write(config))",
                "data = cache_config.write(config)\n"
                "    config_blob = Descriptor(cache_config.MEDIA_TYPE, sha256(data), len(data))",
            ),
        ),
        seeds=(7, 10, 13, 19),
    ),
    Mutation(
        "an interrupted pull goes on behind a gap",
        (Change("storage.partial:FilePartial.gaps", "if position < start:", "if position < start and not position:"),),
        seeds=(0, 1, 2),
        point="registry.piece",
        kind="crash",
    ),
    Mutation(
        "output is numbered from 0 each time",
        (Change("engine.ops.output:OutputRecorder._emit", "self._offset += len(data)", "pass"),),
        seeds=(5, 1, 7, 11),
    ),
    Mutation(
        "a key does not count which directory is made",
        (Change("engine.solver.cache:cache_key", '("path", op.path), ', ""),),
        seeds=(205, 339, 544, 1300),
    ),
    Mutation(
        "secrets are printed as they are",
        (Change("engine.ops.redact:Redactor.write", "if self._pattern is None:", "if True:"),),
        seeds=(5, 1, 7, 11),
    ),
    Mutation(
        "who only looks sets the mode of a directory",
        (
            Change(
                "tools.roots:read_root", "with Views.read_only(",
                '(path / "tmp").chmod(0o700)\n        with Views.read_only(',
            ),
        ),
        seeds=(1, 12, 13),
    ),
    Mutation(
        "a layout's index is written in place",
        (
            Change(
                "storage.layout.target:try_enter", "replace_file(layout / \"index.json\", canonical_json(index))",
                "(layout / \"index.json\").write_bytes(canonical_json(index))",
            ),
        ),
        seeds=(15, 20, 33, 40),
    ),
    Mutation(
        "an inline cache gives a result some of whose layers are missing",
        (
            Change(
                "engine.cache.imports:Cache._found", "Remote(known.ref, layers)",
                "Remote(known.ref, layers[:1])",
            ),
        ),
    ),
    Mutation(
        "what an inline cache has is not found",
        (Change("engine.cache.imports:CacheImports.lookup", "return [", "return [] and ["),),
    ),
    Mutation(
        "a copy has its name before its layers",
        (
            Change(
                "engine.images.copy:Copier._copy", "    moved = await self.placer.place(image, target, name)\n",
                "    await self.placer.mover.target.put_manifest(\n"
                "        target, destination.tag, load.top.media_type, load.top.data\n"
                "    )\n"
                "    moved = await self.placer.place(image, target, name)\n",
            ),
        ),
        seeds=(21, *range(10)),
    ),
    Mutation(
        "a blob that cannot be read is an exception of the system's",
        (Change("storage.blobs:_Stored.readinto", 'raise DiskError.of(error, "reading a blob") from error', "raise"),),
        seeds=(4, 8),
        point="read blobs",
        kind="EIO",
    ),
    Mutation(
        "a blob that lies here is believed without being read",
        (Change("storage.blobs:DirectoryBlobs.sound", "if size is None or digest in self._sound:", "if True:"),),
        seeds=(1767,),
    ),
    Mutation(
        "an archive has its name before its bytes are durable",
        (Change("storage.durable:Unfinished.commit", "os.fsync(self.file.fileno())", "pass"),),
        seeds=(8, 16, 24),
    ),
    Mutation(
        "an image that could not be flushed is flushed once more, and believed",
        (
            Change(
                "storage.layers.erofs.image:ImageWriter.finish", "os.fsync(self._fd)",
                "try:\n        os.fsync(self._fd)\n    except OSError:\n        os.fsync(self._fd)",
            ),
        ),
        seeds=(2,),
        point="fsync tmp",
        kind="EIO",
    ),
    Mutation(
        "a lock that cannot be opened is an exception of the system's",
        (Change("storage.locks:FileLocks.held", 'raise DiskError.of(error, "testing a lock") from error', "raise"),),
        seeds=(4, 8),
        point="open locks",
        kind="EIO",
    ),
    Mutation(
        "what no event names is never let go of",
        (Change("projections.inventory:_kind", 'roles.get(name, ""), "unnamed")', 'roles.get(name, ""), "record")'),),
        seeds=(4, 0, 1),
        point="commit log.db",
        kind="crash",
    ),
    Mutation(
        "the bytes of a blob depend on who makes it",
        (
            Change(
                "storage.packing:_pack", "layer = _sink(compression)",
                "from dataclasses import replace\n"
                "    layer = _sink(replace(compression, level=1 + int(blobs._scratch._owner, 16) % 2))",
            ),
        ),
        seeds=(5, 0, 1),
    ),
)


def main() -> None:
    """Look for what catches each."""
    parser = argparse.ArgumentParser(prog="python -m tests.simulation.mutations", description=__doc__)
    parser.add_argument("--runs", type=int, default=60, help="for each, at most")
    parser.add_argument("--only", default="", help="those that have this in their name")
    given = parser.parse_args()
    print("| what is planted | seed (and faults) that catches it | what is said then |\n|---|---|---|")
    for mutation in MUTATIONS:
        if given.only in mutation.name:
            found = search(mutation, given.runs)
            case, said = found if found is not None else (Case(0), "")
            told = case.command.removeprefix("python -m tests.simulation ") if said else "not found"
            print(f"| {mutation.name} | `{told}` | {said[:100].splitlines()[0] if said else ''} |", flush=True)


if __name__ == "__main__":
    main()
