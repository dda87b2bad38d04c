"""The scenarios of the load drill, each in a directory of its own, with figures of what it took."""

from __future__ import annotations

import hashlib
import random
import re
import statistics
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

from engine.ops.output import BURST, RATE
from tests.builder import Builder, base_image
from tests.faulty import Fault, FaultyProxy, Seen
from tests.load.crew import EVERY, Crew, Ran
from tests.registry_fixture import RegistryProcess

MB = 1e6


@dataclass(slots=True)
class Result:
    """What came of a scenario: `figures` for people, what was `wrong`."""

    name: str
    crew: Crew
    figures: dict[str, str] = field(default_factory=dict)
    wrong: list[str] = field(default_factory=list)

    def take(self, ran: Ran, what: str) -> Ran:
        """Note what a command took, and that it failed."""
        memory = f", {ran.peak / MB:.0f} MB" if ran.peak else ""
        self.figures[what] = f"{ran.seconds:.1f} s, {ran.cpu:.1f} s of CPU{memory}"
        if ran.code:
            self.wrong.append(f"{what}: exit {ran.code}: {ran.err.strip()[-600:]}")
        return ran

    def need(self, holds: bool, what: str) -> None:
        """Say what is wrong unless it `holds`."""
        if not holds:
            self.wrong.append(what)


@dataclass(frozen=True, slots=True)
class Scale:
    """How much of everything. The default is the whole drill; the suite takes less."""

    seconds: float = 300
    builds: int = 50
    runners: int = 8
    stages: int = 400
    layers: int = 500
    files: int = 100_000
    output: int = 10_000_000_000


SHORT = Scale(seconds=4, builds=6, runners=2, stages=12, layers=40, files=600, output=60_000_000)
Scenario = Callable[[Path, RegistryProcess, Scale], Result]


def _crew(directory: Path, **env: str) -> tuple[Crew, Builder]:
    builder = Builder(directory)
    return Crew(builder.root, env), builder


def _whole(result: Result) -> None:
    """What has to hold of the root at the end."""
    verified = result.crew.run("audit", "verify")
    result.need(verified.code == 0, f"audit verify: {verified.err.strip()[-400:]}")
    builder = Builder(result.crew.root.parent)
    left = builder.leftovers()
    result.need(not left, f"left behind: {left[:5]}")
    running = [item["id"] for item in builder.builds() if item["status"] == "running"]
    result.need(not running, f"builds without an end: {running[:5]}")


# ---------------------------------------------------------------- many builds


def builds(directory: Path, registry: RegistryProcess, scale: Scale) -> Result:
    """Many builds at once, kept going by a few runners, on one root and one registry, while all is pruned again and
    again. Half of them build what was built before: they must give the same digest."""
    crew, _ = _crew(directory, SOURCE_DATE_EPOCH="1700000000")
    result = Result("builds", crew)
    bases = [base_image(registry, f"load/base{number}", size=1_000_000)["reference"] for number in range(3)]
    known: dict[int, str] = {}
    took: list[float] = []
    prunes = again = 0
    until = time.monotonic() + scale.seconds
    lock = threading.Lock()

    def build_on(number: int) -> None:
        nonlocal again
        rng = random.Random(f"builder {number}")
        context = directory / f"context{number}"
        context.mkdir()
        while True:
            with lock:
                fresh = max(known, default=-1) + 1
            variant = rng.randrange(fresh) if fresh and rng.random() < 0.5 else fresh
            data = f"file of variant {variant}\n" * 1000
            digest = hashlib.sha256(data.encode()).hexdigest()
            (context / "file").write_text(data)
            (context / "Dockerfile").write_text(
                f"FROM {bases[variant % 3]}\nCOPY file /src/file\n"
                f'RUN test "$(/bin/busybox sha256sum < /src/file)" = "{digest}  -"; echo {variant} > /made\n'
                f"LABEL variant={variant}\n"
            )
            name = f"{registry.host}/load/app{number}:{variant}"
            ran = crew.run("build", str(context), "--push", "-t", name, "--progress=quiet")
            with lock:
                took.append(ran.seconds)
                if ran.code:
                    result.wrong.append(f"build of variant {variant}: exit {ran.code}: {ran.err.strip()[-500:]}")
                else:
                    again += variant in known
                    made = known.setdefault(variant, ran.out.strip())
                    same = made.startswith("sha256:") and made == ran.out.strip()
                    result.need(same, f"variant {variant}: {made} and {ran.out.strip()}")
            if time.monotonic() >= until:
                break

    def prune_on() -> None:
        nonlocal prunes
        while time.monotonic() < until:
            if not known:
                time.sleep(EVERY)
                continue
            ran = crew.run("prune", "--all")
            prunes += 1
            if ran.code:
                result.wrong.append(f"prune: exit {ran.code}: {ran.err.strip()[-500:]}")
            time.sleep(1)

    def runner(numbers: range) -> None:
        with ThreadPoolExecutor(len(numbers)) as some:
            list(some.map(build_on, numbers))

    begun = time.monotonic()
    with crew.watching(), ThreadPoolExecutor(scale.runners + 1) as threads:
        step = scale.runners
        work = [threads.submit(runner, range(number, scale.builds, step)) for number in range(step)]
        work.append(threads.submit(prune_on))
        for each in work:
            each.result()
    seconds = time.monotonic() - begun
    middle = statistics.median(took)
    result.need(len(took) >= scale.builds, "not every builder ended a build")
    result.figures |= {
        "at once": f"{scale.builds} builds, kept going by {scale.runners} runners, {prunes} prunes",
        "builds": f"{len(took)} in {seconds:.0f} s ({len(took) / seconds * 60:.0f} a minute), {again} built again",
        "one build": f"median {middle:.1f} s, longest {max(took):.1f} s ({max(took) / middle:.1f} times that)",
        "memory": f"largest process {max(ran.peak for ran in crew.ran) / MB:.0f} MB,"
        f" all together {max(sample.memory for sample in crew.samples) / MB:.0f} MB",
        "open files": f"{max(sample.files for sample in crew.samples)} in one process",
    }
    _whole(result)
    return result


# ---------------------------------------------------------------- large graphs, images, contexts


def _stages(base: str, count: int) -> Iterator[str]:
    """`count` stages of five steps, each standing on the one before the last and taking a file of the last one: wide,
    deep, and full of diamonds."""
    yield f"FROM {base} AS s0\nWORKDIR /s0\nCOPY file /s0/file\nLABEL n=0\nCOPY file /s0/b\nCOPY file /s0/c"
    yield f"FROM {base} AS s1\nWORKDIR /s1\nCOPY file /s1/file\nLABEL n=1\nCOPY file /s1/b\nCOPY file /s1/c"
    for number in range(2, count):
        on = base if number % 20 < 2 else f"s{number - 2}"
        yield (
            f"FROM {on} AS s{number}\nWORKDIR /s{number}\n"
            f"COPY --from=s{number - 1} /s{number - 1}/file /s{number}/file\nCOPY file /s{number}/b\n"
            f"COPY --from=s{number - 1} /s{number - 1}/b /s{number}/c\nCOPY file /s{number}/d"
        )
    yield f"FROM {base}\nCOPY --from=s{count - 1} /s{count - 1} /all"


def graph(directory: Path, registry: RegistryProcess, scale: Scale) -> Result:
    """A graph of 5 × `stages` vertices, built, then built again from the cache, then explained."""
    crew, builder = _crew(directory)
    result = Result("graph", crew)
    base = base_image(registry, "load/graph", layers=1)["reference"]
    builder.write({"file": "content\n", "Dockerfile": "\n".join(_stages(base, scale.stages)) + "\n"})
    context = str(builder.context)
    with crew.watching():
        result.take(crew.run("build", context, "--progress=quiet"), "built")
        result.take(crew.run("build", context, "--progress=quiet"), "again, all cached")
        build = builder.builds()[0]
        result.take(crew.run("show", build["id"], "--json"), "show")
        result.take(crew.run("why", build["id"], "--json"), "why")
        result.take(crew.run("audit", "report", build["id"], "--json"), "audit report")
        result.take(crew.run("report", build["id"], "-o", str(directory / "page.html")), "report, a page")
    [defined] = builder.events("GraphDefined", build=build["id"])
    result.figures["vertices"] = f"{defined['data']['vertices']:,}"
    result.need(build["cached"] > 4 * scale.stages, f"only {build['cached']} steps were cached")
    _whole(result)
    return result


def _files(base: str, count: int) -> str:
    """A Dockerfile that makes `count` layers on `base`."""
    return "\n".join([f"FROM {base}", *(f"COPY file /files/{number}" for number in range(count))]) + "\n"


def layers(directory: Path, registry: RegistryProcess, scale: Scale) -> Result:
    """An image of very many layers is made, pushed, started from in a fresh root, and copied; steps are run on it."""
    crew, builder = _crew(directory)
    result = Result("layers", crew)
    base = base_image(registry, "load/layers", layers=1)["reference"]
    builder.write({"file": "content\n", "Dockerfile": _files(base, scale.layers - 1)})
    context, name = str(builder.context), f"{registry.host}/load/layers:many"
    count = "RUN ls /files | /bin/busybox wc -l\n"
    with crew.watching():
        pushed = crew.run("build", context, "--push", "-t", name, "--progress=quiet")
        result.take(pushed, f"{scale.layers} layers made and pushed")
        other = Builder(directory / "other")
        other.write({"Dockerfile": f"FROM {name}\n{count}RUN test -f /files/1\n"})
        ran = crew.run("build", str(other.context), "--progress=plain", root=other.root)
        result.take(ran, "pulled, and two steps run on them")
        result.need(f" {scale.layers - 1}\n" in ran.err + ran.out, "the step saw other files")
        result.take(crew.run("copy", name, f"{registry.host}/load/layers-2:many"), "copied")
        builder.write({"Dockerfile": _files(base, scale.layers - 1) + count})
        ran = result.take(crew.run("build", context, "--progress=plain"), "a step run on those that were made")
        result.need(f" {scale.layers - 1}\n" in ran.err + ran.out, "the step saw other files")
    result.figures["log"] = f"{(crew.root / 'log.db').stat().st_size / MB:.1f} MB"
    _whole(result)
    return result


def context(directory: Path, registry: RegistryProcess, scale: Scale) -> Result:
    """A context of very many files: read, copied, unchanged, and one of them changed."""
    crew, builder = _crew(directory)
    result = Result("context", crew)
    base = base_image(registry, "load/context", layers=1)["reference"]
    for number in range(scale.files):
        path = builder.context / f"d{number % 97}" / f"e{number % 89}" / f"file{number}"
        if number < 97 * 89:
            path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"%d\n" % number)
    count = "RUN /bin/busybox find /src -type f | /bin/busybox wc -l"
    builder.write({"Dockerfile": f"FROM {base}\nCOPY . /src\n{count}\n"})
    with crew.watching():
        ran = result.take(crew.run("build", str(builder.context), "--progress=plain"), "built")
        result.need(f" {scale.files + 1}" in ran.err + ran.out, "the step saw another number of files")
        result.take(crew.run("build", str(builder.context), "--progress=quiet"), "again, nothing changed")
        (builder.context / "d0" / "e0" / "file0").write_text("changed\n")
        result.take(crew.run("build", str(builder.context), "--progress=quiet"), "again, one file changed")
        build = builder.builds()[0]["id"]
        why = result.take(crew.run("why", build), "why")
        result.need("file0" in why.out, "why does not name the file")
    result.figures["files"] = f"{scale.files:,}"
    _whole(result)
    return result


# ---------------------------------------------------------------- output, and a bad registry


def output(directory: Path, registry: RegistryProcess, scale: Scale) -> Result:
    """A step that prints very much, as fast as it can."""
    crew, builder = _crew(directory)
    result = Result("output", crew)
    base = base_image(registry, "load/output", layers=1)["reference"]
    line = "all work and no play makes a long log"
    printing = f"/bin/busybox yes '{line}' | /bin/busybox head -c {scale.output}; echo the-end"
    builder.write({"Dockerfile": f"FROM {base}\nRUN {printing}\n"})
    with crew.watching():
        ran = result.take(crew.run("build", str(builder.context), "--progress=quiet"), "built")
        build = builder.builds()[0]["id"]
        told = result.take(crew.run("output", build), "output")
    result.need("the-end" in told.out, "the end of the output is not there")
    log = (crew.root / "log.db").stat().st_size
    bound = 2 * (BURST + RATE * ran.seconds)
    result.need(log < bound, f"the log has grown to {log / MB:.0f} MB")
    result.figures["printed"] = f"{scale.output / MB:,.0f} MB, {scale.output / MB / ran.seconds:,.0f} MB/s"
    result.figures["log"] = f"{log / MB:.1f} MB"
    _whole(result)
    return result


def slow(directory: Path, registry: RegistryProcess, scale: Scale) -> Result:
    """A registry of 1 MB/s a connection, of which every fifth request fails, in one of three ways."""
    crew, builder = _crew(directory)
    result = Result("slow registry", crew)
    size = 2_000_000 if scale.builds > 10 else 300_000
    base = base_image(registry, "load/slow", size=size, layers=5)["reference"]
    rng = random.Random("slow")
    failed_of = Counter[str]()

    def some(share: float) -> Callable[[Seen], bool]:
        """That share of the requests, and no blob or manifest so often that a client rightly gives up."""

        def fails(seen: Seen) -> bool:
            about = re.search(r"sha256(:|%3A)\w+", seen.path) or re.search(r".*?(?=/uploads/|$)", seen.path)
            key = f"{seen.method} {about[0] if about else ''}"
            failing = failed_of[key] < 3 and rng.random() < share
            failed_of[key] += failing
            return failing

        return fails

    with FaultyProxy(
        registry.host,
        Fault(path="/blobs/", times=1, cut_after=50_000),
        Fault(when=some(0.07), status=503),
        Fault(path="/blobs/", when=some(0.07), cut_after=50_000, rate=1_000_000),
        Fault(method="(POST|PUT|PATCH|HEAD)", when=some(0.2), status=503),
        Fault(when=some(0.07), reset_after=0),
        Fault(rate=1_000_000),
    ) as proxy:
        builder.write({"Dockerfile": f"FROM {base.replace(registry.host, proxy.host)}\nRUN echo done > /done\n"})
        name = f"{proxy.host}/load/slow-made:1"
        with crew.watching():
            ran = crew.run("build", str(builder.context), "--push", "-t", name, "--progress=quiet")
            result.take(ran, "built and pushed")
        failed = sum(fault.fired for fault in proxy.faults[:-1])
        result.need(proxy.faults[0].fired == 1, "no request failed")
        result.figures["requests"] = f"{len(proxy.seen)}, of which {failed} failed"
    result.figures["image"] = f"{size * 4 / MB:.0f} MB"
    _whole(result)
    return result


ALL: tuple[Scenario, ...] = (builds, graph, layers, context, output, slow)


def told(result: Result) -> Iterator[str]:
    """A result as lines."""
    yield f"{result.name}: {'RIGHT' if not result.wrong else 'WRONG'}"
    for what, figure in result.figures.items():
        yield f"  {what:32}{figure}"
    yield from (f"  WRONG {line}" for line in result.wrong[:10])

