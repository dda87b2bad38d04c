"""Many crashes: several at once where they do not meet, each told of in a file as it is over."""

from __future__ import annotations

import json
import random
import time
import traceback
from collections import Counter
from collections.abc import Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, replace
from multiprocessing import get_context
from pathlib import Path

from tests.crash.crash import HOWS, Crash, disk_of, kind_of, registries, staged
from tests.crash.scenes import SCENES
from tests.processes import close_zygotes


@dataclass(frozen=True, slots=True)
class Task:
    """Crashes of one scene in one place: every `parts`-th moment of the chosen ones, from `part` on. `hows` need the
    same file system. `done`: moments that need not be had again."""

    scene: str
    hows: tuple[str, ...]
    moments: tuple[str, ...] = ()
    at_most: int = 10**9
    seed: int = 1
    part: int = 0
    parts: int = 1
    done: frozenset[str] = frozenset()
    verbose: bool = False


def run_all(tasks: Iterable[Task], directory: Path, results: Path, jobs: int) -> list[str]:
    """All of them, `jobs` at once, in `directory`; each crash becomes a line of `results`. Returns what kept a task
    from being done."""
    with registries(directory) as (hub, second), ProcessPoolExecutor(jobs, get_context("spawn")) as pool:
        begun = {
            pool.submit(_work, task, directory / f"stage{number}", hub.host, second.host, results): task
            for number, task in enumerate(tasks)
        }
        return [f"{task.scene}: {error}" for future, task in begun.items() if (error := future.exception())]


def _work(task: Task, directory: Path, host: str, second: str, results: Path) -> None:
    """Blocking; in a process of its own. Raises RuntimeError for what kept it from being done."""
    dice = random.Random(task.seed)
    try:
        with staged(SCENES[task.scene], directory, host, second, on=disk_of(task.hows[0])) as stage:
            if not task.part:
                ops = len(stage.undisturbed.ops)
                print(f"{task.scene}: {stage.undisturbed.events} events, {ops} changes of files", flush=True)
            chosen = [moment for moment in task.moments if kind_of(moment) in task.hows]
            for how in () if task.moments else task.hows:
                moments = list(stage.moments([how]))
                chosen += sorted(dice.sample(moments, min(task.at_most, len(moments))), key=moments.index)
            for moment in chosen[task.part :: task.parts]:
                if moment in task.done:
                    continue
                began = time.monotonic()
                crash = stage.crash(moment)
                if crash.wrong or task.verbose:
                    print(f"{crash} [{time.monotonic() - began:.1f} s]", flush=True)
                with results.open("ab", buffering=0) as file:  # in one piece: others write there, too
                    file.write(json.dumps(asdict(crash)).encode() + b"\n")
    except Exception as error:
        raise RuntimeError(f"{error!r}\n{traceback.format_exc()}") from None  # reason: not every error can be pickled
    finally:
        close_zygotes()


def tasks(scenes: Iterable[str], hows: Iterable[str], parts: int, like: Task, done: Iterable[Crash]) -> Iterator[Task]:
    """For each of `scenes`, those of `hows` that need no file system, and then each of the others."""
    groups: dict[str, list[str]] = {}
    for how in hows:
        groups.setdefault(disk_of(how), []).append(how)
    had: dict[str, set[str]] = {}
    for crash in done:
        had.setdefault(crash.scene, set()).add(crash.moment)
    for group in groups.values():
        for scene in scenes:
            for part in range(parts):
                yield replace(
                    like, scene=scene, hows=tuple(group), part=part, parts=parts, done=frozenset(had.get(scene, ()))
                )


def read(results: Path) -> list[Crash]:
    """What is told there."""
    lines = results.read_bytes().splitlines() if results.exists() else []
    told = [json.loads(line) for line in lines]
    return [Crash(**{**one, "wrong": tuple(one["wrong"]), "outlived": tuple(one["outlived"])}) for one in told]


def table(found: list[Crash]) -> list[str]:
    """Markdown: crashes by command and by what was met."""
    lines = []
    for title in ("scene", "met"):
        counts = Counter((str(getattr(one, title)), kind_of(one.moment)) for one in found)
        kinds = [how for how in HOWS if any(kind == how for _, kind in counts)]
        lines += ["", f"| {title} | {' | '.join(kinds)} | all |", "|---" * (len(kinds) + 2) + "|"]
        for row in sorted({row for row, _ in counts}):
            numbers = [counts[row, kind] for kind in kinds]
            lines.append(f"| {row} | {' | '.join(map(str, numbers))} | {sum(numbers)} |")
        totals = [sum(count for (_, kind), count in counts.items() if kind == column) for column in kinds]
        lines.append(f"| all | {' | '.join(map(str, totals))} | {sum(totals)} |")
    outlived = sum(bool(one.outlived) for one in found)
    return [*lines, "", (f"{len(found)} crashes, {sum(bool(one.wrong) for one in found)} with something wrong; "
            f"after {outlived} a process of the victim was alive until the next start")]
