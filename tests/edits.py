"""Tries edits of a multi-stage project, and tells what ran again and what `refledger why` said of it.

`python -m tests.edits` tries those of tests/edit_table.py and writes docs/cache-edits.md;
tests/tools/test_edits.py checks every row.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from click.testing import CliRunner

from tests.builder import PROJECT, Builder, busybox_layer
from tests.registry_fixture import RegistryProcess, push_image
from tools.cli.main import cli

PAGE = PROJECT / "docs/cache-edits.md"
DOCKERFILE = """\
ARG BASE
ARG FLAVOUR=plain
FROM ${BASE} AS tools
ARG LEVEL=1
RUN echo "echo level $LEVEL" > /level

FROM ${BASE} AS compile
WORKDIR /src
ENV CC=cc CFLAGS=-O2
COPY src .
RUN --mount=type=secret,id=token \\
    --mount=type=cache,id=objects,target=/objects \\
    sed 's/^# .*//' main.sh util.sh > /objects/all; cat /objects/all > /program.o
RUN cat /program.o > /program; chmod 755 /program

FROM compile AS tested
COPY tests /tests
RUN sh /tests/all.sh > /report

FROM ${BASE} AS site
COPY assets/style.css /site/
COPY assets/index.html /site/
COPY <<robots /site/robots.txt
User-agent: *
robots

FROM ${BASE}
COPY --from=tested /program /report /app/
COPY --from=tools /level /app/level
COPY --from=site /site /srv
COPY etc/app.conf /etc/app.conf
RUN ls -ln /etc/app.conf
USER app
LABEL version=1
CMD ["/app/program"]
"""
FILES = {
    "src/main.sh": "# the program\necho main\n", "src/util.sh": "# its helper\necho util\n",
    "tests/all.sh": "sh /program\n", "assets/style.css": "b { color: red }\n", "assets/index.html": "<p>shop</p>\n",
    "etc/app.conf": "port=80\n", "README": "read me\n", ".dockerignore": "**/*.tmp\n",
}  # fmt: skip


@dataclass(slots=True)
class Shop:
    """The project in one directory, with a root of its own. `args` of `refledger build`."""

    builder: Builder
    registry: RegistryProcess
    base: str
    dockerfile: str = DOCKERFILE
    args: list[str] = field(default_factory=list)

    def build(self) -> str:
        """Build it; returns the build's id."""
        secret = f"id=token,src={self.file('../token')}"
        arguments = ["--build-arg", f"BASE={self.base}", "--secret", secret, *self.args]
        done = self.builder.must_build(self.dockerfile, *arguments)
        found = re.search("^build ([0-9a-f]{12}) done in ", done.err, re.MULTILINE)
        assert found, done.err
        return found[1]

    def replace(self, old: str, new: str) -> None:
        """Edit the Dockerfile."""
        assert old in self.dockerfile
        self.dockerfile = self.dockerfile.replace(old, new)

    def file(self, name: str) -> Path:
        """A file of the context."""
        return self.builder.context / name

    def read(self, *args: str) -> str:
        """What a reading command prints into a pipe."""
        done = CliRunner().invoke(cli, ["--root", str(self.builder.root), *args], catch_exceptions=False)
        assert done.exit_code == 0, done.output
        return done.output


Change = Callable[[Shop], object]


@dataclass(frozen=True, slots=True)
class Edit:
    """`what` a person did, as the page has it; `runs`: how the steps begin that must run again, each once; `says`: what
    `refledger why` says of the first of them, a pattern."""

    what: str
    change: Change
    runs: tuple[str, ...] = ()
    says: str = "nothing ran"


@dataclass(frozen=True, slots=True)
class Outcome:
    """`ran`: the names of the steps that ran, without their places; `line`: what `refledger why` said of the first one
    that differs, as one line without what changes from run to run; `told`: its JSON, `text` all it printed."""

    ran: tuple[str, ...]
    line: str
    told: dict[str, object]
    text: str


def prepare(directory: Path, registry: RegistryProcess, repository: str) -> Shop:
    """Build the project once, in `directory`/warm."""
    shop = Shop(Builder(directory / "warm"), registry, f"{registry.host}/{repository}:1")
    push_base(shop)
    shop.builder.write(FILES)
    shop.file("src/main.link").symlink_to("main.sh")
    shop.file("../token").write_text("one")
    shop.build()
    return shop


def push_base(shop: Shop, tag: str = "1", files: Sequence[tuple[str, bytes]] = (), label: str = "") -> None:
    """Push the base image, with `files` in a layer below."""
    name = shop.base.partition("/")[2].partition(":")[0]
    layers = [dict(files)] * bool(files) + [busybox_layer()]
    config = {"Env": ["PATH=/bin"], "Cmd": ["sh"], **({"Labels": {"a": label}} if label else {})}
    push_image(shop.registry.host, name, layers, config=config, tag=tag)


def attempt(warm: Shop, edit: Edit) -> Outcome:
    """Try `edit` on a copy of the project that was built in the same place."""
    here = warm.builder.root.parent
    kept = here.with_name("kept")
    if not kept.exists():
        subprocess.run(["cp", "-a", str(here), str(kept)], check=True)
    shutil.rmtree(here)
    subprocess.run(["cp", "-a", str(kept), str(here)], check=True)
    shop = Shop(warm.builder, warm.registry, warm.base)
    edit.change(shop)
    build = shop.build()
    if shop.base == warm.base:
        push_base(warm)  # an edit may have moved the tag
    told, text = json.loads(shop.read("why", build, "--json")), shop.read("why", build)
    events = map(json.loads, shop.read("events", "--build", build, "--type", "VertexCompleted", "--json").splitlines())
    ended = [event["data"]["name"] for event in events]
    asked = {step["name"] for step in told["steps"]}
    ran = tuple(_title(name) for name in ended if name in asked)
    return Outcome(ran, _line(text, shop), told, text)


def _title(name: str) -> str:
    return re.sub(r"^\[[^]]*\] ", "", re.sub(r"--mount=\S+ ", "", name))


def _line(text: str, shop: Shop) -> str:
    """Of `refledger why`: the first paragraph about a step, as one line, or its count of steps when there is none."""
    paragraphs = text.split("\n\n")
    if len(paragraphs) > 1:
        heading, *lines = (line.strip() for line in paragraphs[1].splitlines())
        said = f"{re.sub('^[0-9]+  ', '', heading)}: {'; '.join(lines)}"
    else:
        said = paragraphs[0].splitlines()[1]
    for value, name in ((shop.registry.host, "REGISTRY"), (shop.base.partition("/")[2].partition(":")[0], "base")):
        said = said.replace(value, name)
    said = re.sub(r"(was|now)  (\S+)@[0-9a-f]{12}", r"\1  \2@\1", said)  # the base has this machine's busybox in it
    return re.sub(r"build [0-9a-f]{12}", "build BUILD", said)


# ---------------------------------------------------------------- the page

_HEAD = """# Edits and the cache

What each edit to a multi-stage project runs again, and what `refledger why` says of the first step that differs.
`python -m tests.edits` built them all, each from the same warm root, and made this page; `tests/tools/test_edits.py`
checks every row. The project is the Dockerfile below, on a base image with a shell. A step that the table does not name
was cached. A stage whose result is the same again stops there: what copies from it is found by the content that it
takes.

```dockerfile
"""


def page(outcomes: Sequence[tuple[Edit, Outcome]]) -> str:
    """docs/cache-edits.md."""
    rows = [row(edit, outcome) for edit, outcome in outcomes]
    head = f"{_HEAD}{DOCKERFILE}```\n\n| edit | must run | ran | `refledger why` |\n|---|---|---|---|\n"
    return head + "".join(f"{line}\n" for line in rows)


def row(edit: Edit, outcome: Outcome) -> str:
    """Its line of the table; what ran is called as it was expected, so that equal cells are equal."""
    names = [next((item for item in edit.runs if name.startswith(item)), name) for name in outcome.ran]
    order = {name: number for number, name in enumerate(edit.runs)}
    names.sort(key=lambda name: order.get(name, len(order)))
    cells = [edit.what, _steps(edit.runs), _steps(names), f"`` {outcome.line} ``"]
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def _steps(names: Sequence[str]) -> str:
    return "<br>".join(f"`{name} …`" for name in names) or "–"


def main() -> None:
    """Build them all and write the page."""
    from tests.edit_table import EDITS

    with tempfile.TemporaryDirectory() as name, RegistryProcess(Path(name) / "hub") as registry:
        warm = prepare(Path(name), registry, "edits/base")
        outcomes = []
        for edit in EDITS:
            outcomes.append((edit, attempt(warm, edit)))
            print(row(*outcomes[-1]), file=sys.stderr)  # progress, for who waits
        PAGE.write_text(page(outcomes))


if __name__ == "__main__":
    main()
