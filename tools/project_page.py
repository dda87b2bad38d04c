"""What is told of the projects of examples/: figures from their logs, and the page that has them."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tools.project_list import Get, Project

HEADER = """# Real projects

The projects of `examples/`, each with the Dockerfile that its users would write. `tools/projects --output
docs/projects.md` built them, each in an empty root, and made this page:

- *cold*: everything runs. Seconds are those of the whole command with its push to a registry on loopback, the pulls of
  its base images included; base images are Debian, made by `tools/lab/seed.py`. Counts are exact, seconds depend on
  what else the machine does;
- *warm*: the same again. Nothing may run, and nothing may be pulled;
- *after the change*: one line of the file named there was changed. Exactly the steps named in *what ran again* must
  run, no others, and nothing may be pulled;
- the images from before and after the change are fetched by skopeo, unpacked by umoci, run by runc, and asked.

A step is an instruction that makes files. Where pip, npm and apt take their packages from is the building machine's
business: its configuration is lent to the step as a secret. The token and the key that `signed-release` is lent are in
no file of its root or of the image as unpacked. `onbuild` pulls nothing because the form it stands on was built just
before.
"""


@dataclass(frozen=True)
class Figures:
    """One build: its steps by how they ended, seconds, compressed bytes of its base images' layers (`base`),
    and of those pulled."""

    seconds: float
    ran: tuple[str, ...]
    cached: tuple[str, ...]
    base: int
    pulled: int

    def __str__(self) -> str:
        return f"{self.seconds:.1f} s, {len(self.ran)} run, {len(self.cached)} cached"


@dataclass(frozen=True)
class Told:
    """What a whole project did; `answers` before and after the change, `exported` what an extra export had in it."""

    project: Project
    cold: Figures
    warm: Figures
    changed: Figures
    answers: tuple[str, str]
    exported: str


def figures(events: Sequence[Mapping[str, Any]], seconds: float) -> Figures:
    """Count what one build's events say. A step is an instruction that makes files; FROM and contexts are none."""
    steps: dict[str, list[str]] = {"VertexCompleted": [], "VertexCached": []}
    for event in events:
        if event["type"] in steps:
            place, _, instruction = event["data"]["name"].partition("] ")
            if not place.startswith(("[internal", "[context ")) and not instruction.startswith("FROM "):
                steps[event["type"]].append(instruction)
    layers = {
        layer["digest"]: layer["size"]
        for event in events if event["type"] == "RemoteCreated" for layer in event["data"]["layers"]
    }  # fmt: skip
    pulled = sum(event["data"]["bytes"] for event in events if event["type"] == "LayerPulled")
    ran, cached = steps["VertexCompleted"], steps["VertexCached"]
    return Figures(seconds, tuple(ran), tuple(cached), sum(layers.values()), pulled)


def document(told: Sequence[Told]) -> str:
    """What goes to docs/projects.md."""
    return f"{HEADER}\n{table(told)}"


def table(told: Sequence[Told]) -> str:
    """The figures as Markdown."""
    rows = [
        "| project | cold | pulled, of its bases' size | warm | after the change | what ran again | asked: answered |",
        "|---|---|---|---|---|---|---|",
    ]
    for one in told:
        project, cold = one.project, one.cold
        change = f"`{project.change.path}`: {one.changed}"
        again = "<br>".join(f"`{shortened(step)}`" for step in one.changed.ran)
        asked = f"GET {project.ask.path}" if isinstance(project.ask, Get) else " ".join(project.ask.arguments) or "run"
        first, second = (line_with(*pair) for pair in zip((project.before, project.after), one.answers, strict=True))
        answers = f"{asked}: `{first}`, then `{second}`"
        answers += f"; exported {one.exported}" if one.exported else ""
        pulled = f"{cold.pulled / 1e6:.1f} of {cold.base / 1e6:.1f} MB"
        rows.append(f"| [{project.name}](../examples/{project.name}): {project.what} | {cold} | {pulled} | {one.warm} "
                    f"| {change} | {again} | {answers} |")  # fmt: skip
    return "\n".join(rows) + "\n"


def line_with(expected: str, answer: str) -> str:
    """The line of `answer` that has the end of `expected` in it."""
    wanted = expected.strip().splitlines()[-1]
    return next(line for line in answer.splitlines() if wanted in line).strip().replace("|", "\\|")


def shortened(step: str) -> str:
    """The beginning of a step without its mounts, fit for a table."""
    text = re.sub(r"--mount=\S+ ", "", step).replace("|", "\\|").replace("`", "'")
    return text if len(text) <= 60 else text[:59] + "…"
