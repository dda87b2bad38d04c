"""Edits to a multi-stage project, what each must run again, and what `refledger why` says of it.

`python -m tests.edits` builds them all and writes docs/cache-edits.md; tests/tools/test_edits.py checks every row.
"""

from __future__ import annotations

import json
import os
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

LEVEL, WORKDIR, SOURCE, OBJECT = "RUN echo", "WORKDIR", "COPY src", "RUN sed"
PROGRAM, TESTS, REPORT = "RUN cat /program.o", "COPY tests", "RUN sh /tests"
STYLE, INDEX, ROBOTS = "COPY assets/style", "COPY assets/index", "COPY <<robots"
APP, TOOL, SITE, CONF, LISTING = "COPY --from=tested", "COPY --from=tools", "COPY --from=site", "COPY etc", "RUN ls"
FINAL = (APP, TOOL, SITE, CONF, LISTING)


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


# ---------------------------------------------------------------- the edits


def _write(name: str, text: str) -> Change:
    return lambda shop: shop.file(name).write_text(text)


def _replace(old: str, new: str) -> Change:
    return lambda shop: shop.replace(old, new)


def _flags(*args: str) -> Change:
    return lambda shop: shop.args.extend(args)


def _retarget(shop: Shop) -> None:
    shop.file("src/main.link").unlink()
    shop.file("src/main.link").symlink_to("util.sh")


def _follow(shop: Shop) -> None:
    shop.file("src/main.link").unlink()
    shutil.copy(shop.file("src/main.sh"), shop.file("src/main.link"))


def _other_tag(shop: Shop, label: str = "") -> None:
    shop.base = shop.base.removesuffix(":1") + ":other"
    push_base(shop, "other", label=label)


def _other_secret(shop: Shop) -> None:
    shop.replace("id=token", "id=key")
    shop.args.append(f"--secret=id=key,src={shop.file('../token')}")


def _swap(shop: Shop) -> None:
    style, page = "COPY assets/style.css /site/\n", "COPY assets/index.html /site/\n"
    shop.replace(style + page, page + style)


COMPILED = (SOURCE, OBJECT, PROGRAM, TESTS, REPORT)
RUNS = (LEVEL, OBJECT, PROGRAM, TESTS, REPORT)
ALL = (LEVEL, WORKDIR, *COMPILED, STYLE, INDEX, ROBOTS, *FINAL)
DIRECTIVES = "# syntax=docker/dockerfile:1\n# check=skip=all\n"
HEX = "[0-9a-f]{12}"
COPIES = "files that it copies differ; "
NOTHING = "15 steps: 15 cached, 0 not"

EDITS = (
    Edit("nothing", lambda shop: None, (), NOTHING),
    Edit("a file touched", lambda shop: os.utime(shop.file("src/main.sh"), (1, 1)), (), NOTHING),
    Edit("a file written anew with the same content", _write("etc/app.conf", "port=80\n"), (), NOTHING),
    Edit("one byte of a file", _write("etc/app.conf", "port=81\n"), (CONF, LISTING),
         f"{COPIES}etc/app.conf  changed: was {HEX}, now {HEX}"),
    Edit("one byte that changes what is compiled", _write("src/main.sh", "# the program\necho Main\n"),
         (*COMPILED, *FINAL), f"{COPIES}src/main.sh  changed: was {HEX}, now {HEX}"),
    Edit("a comment in a source: the stage makes the same again", _write("src/main.sh", "# a program\necho main\n"),
         COMPILED, f"{COPIES}src/main.sh  changed: was {HEX}, now {HEX}"),
    Edit("a symlink replaced by what it points at", _follow, COMPILED,
         f"{COPIES}src/main.link  changed: was main.sh, now {HEX}"),
    Edit("a file's mode", lambda shop: shop.file("src/main.sh").chmod(0o755), COMPILED,
         f"{COPIES}src/main.sh  mode: was 0644, now 0755"),
    Edit("a new file that is not copied", _write("NOTES", "new"), (), NOTHING),
    Edit("a new file that is ignored", _write("src/a.tmp", "new"), (), NOTHING),
    Edit("a new file in a directory that is copied", _write("src/new.sh", "new"), COMPILED,
         f"{COPIES}src/new.sh  added {HEX}"),
    Edit("a file removed", lambda shop: shop.file("src/main.link").unlink(), COMPILED,
         f"{COPIES}src/main.link  removed main.sh"),
    Edit("a file renamed", lambda shop: shop.file("src/main.link").rename(shop.file("src/a.link")), COMPILED,
         f"{COPIES}src/a.link  added main.sh; src/main.link  removed main.sh"),
    Edit("a symlink's target", _retarget, COMPILED, f"{COPIES}src/main.link  changed: was main.sh, now util.sh"),
    Edit("a line of `.dockerignore` that hides a copied file", _write(".dockerignore", "**/*.tmp\nsrc/*.link\n"),
         COMPILED, r"\.dockerignore hides other files of what it copies; line added  src/\*\.link; "
                   r"src/main\.link  now ignored main\.sh"),
    Edit("a line of `.dockerignore` that hides none", _write(".dockerignore", "**/*.tmp\ndocs\n"), (), NOTHING),
    Edit("an ARG's default", _replace("LEVEL=1", "LEVEL=2"), (LEVEL, TOOL, SITE, CONF, LISTING),
         "variable LEVEL differs; was  1; now  2"),
    Edit("the default of an ARG that no stage asks for", _replace("FLAVOUR=plain", "FLAVOUR=sweet"), (), NOTHING),
    Edit("an ARG more in a stage, which no command uses", _replace("ARG LEVEL=1", "ARG LEVEL=1\nARG EXTRA=x"), (LEVEL,),
         "variable EXTRA differs; was  nothing; now  x"),
    Edit("`--build-arg LEVEL=3`", _flags("--build-arg", "LEVEL=3"), (LEVEL, TOOL, SITE, CONF, LISTING),
         "variable LEVEL differs; was  1; now  3"),
    Edit("`--build-arg LEVEL=1`, the default", _flags("--build-arg", "LEVEL=1"), (), NOTHING),
    Edit("an ENV's value", _replace("-O2", "-O3"), (OBJECT, PROGRAM, TESTS, REPORT),
         "variable CFLAGS differs; was  -O2; now  -O3"),
    Edit("an ENV less", _replace("ENV CC=cc CFLAGS=-O2", "ENV CC=cc"), (OBJECT, PROGRAM, TESTS, REPORT),
         "variable CFLAGS differs; was  -O2; now  nothing"),
    Edit("the order of ENV", _replace("CC=cc CFLAGS=-O2", "CFLAGS=-O2 CC=cc"), (OBJECT, PROGRAM, TESTS, REPORT),
         "the order of its variables differs; was  PATH CC CFLAGS; now  PATH CFLAGS CC"),
    Edit("the base image's tag moved to other content",
         lambda shop: push_base(shop, files=(("etc/release", b"2"),)), ALL,
         "what it takes is another; was  REGISTRY/base:1@was; now  REGISTRY/base:1@now"),
    Edit("another tag of the same base image", _other_tag, (), NOTHING),
    Edit("a base image with the same layers and another label", lambda shop: _other_tag(shop, "b"), (), NOTHING),
    Edit("a stage on another base: it makes the same again", _replace("${BASE} AS site", "scratch AS site"),
         (STYLE, INDEX, ROBOTS), "what it takes is another; was  REGISTRY/base:1@was; now  scratch"),
    Edit("`--platform linux/amd64/v2`", _flags("--platform", "linux/amd64/v2"), (*RUNS, LISTING),
         "platform differs; was  linux/amd64; now  linux/amd64/v2"),
    Edit("a secret's value", lambda shop: shop.file("../token").write_text("two"), (), NOTHING),
    Edit("a secret's id", _other_secret, (OBJECT, PROGRAM, TESTS, REPORT), "mount 0 id differs; was  token; now  key"),
    Edit("a cache mount's id", _replace("id=objects", "id=things"), (OBJECT, PROGRAM, TESTS, REPORT),
         "mount 1 id differs; was  objects; now  things"),
    Edit("WORKDIR", _replace("WORKDIR /src", "WORKDIR /work"), (WORKDIR, *COMPILED),
         "path differs; was  /src; now  /work"),
    Edit("WORKDIR written otherwise", _replace("WORKDIR /src", "WORKDIR /src/"), (), NOTHING),
    Edit("USER before a command", _replace("RUN ls", "USER 1000\nRUN ls"), (LISTING,),
         r"user differs; was  \(empty\); now  1000"),
    Edit("USER of the image only", _replace("USER app", "USER 1000"), (), NOTHING),
    Edit("LABEL and CMD", _replace('LABEL version=1\nCMD ["/app', 'LABEL version=2\nCMD ["sh", "/app'), (), NOTHING),
    Edit("comments, blank lines and case", _replace("COPY src .\n", "# sources\n\ncopy   src   .\n"), (), NOTHING),
    Edit("parser directives", _replace("ARG BASE\nARG", f"{DIRECTIVES}ARG BASE\nARG"), (), NOTHING),
    Edit("a stage renamed", _replace("compile", "cc"), (), NOTHING),
    Edit("a stage more that nothing needs", _replace("FROM compile", "FROM tools AS more\nRUN false\nFROM compile"), (),
         NOTHING),
    Edit("two instructions swapped: the stage makes the same again", _swap, (INDEX, STYLE, ROBOTS),
         r"it stands on another result; was  \[site 2/4\] COPY assets/style.css /site/"),
    Edit("the text of a RUN", _replace("chmod 755", "chmod 750"), (PROGRAM, TESTS, REPORT, *FINAL),
         r"its command differs; was  cat /program\.o > /program; chmod 755 /program; now  cat"),
    Edit("a step more", _replace("RUN sh", "RUN sh -n /program\nRUN sh"), ("RUN sh -n", REPORT),
         "never built; a new step: build BUILD has none in its place"),
    Edit("two steps less", _replace("COPY etc/app.conf /etc/app.conf\nRUN ls -ln /etc/app.conf\n", ""), (),
         "13 steps: 13 cached, 0 not"),
    Edit("a step less below others", _replace("COPY --from=tools /level /app/level\n", ""), (SITE, CONF, LISTING),
         r"it stands on another result; was  \[stage-4 3/6\] COPY --from=tools"),
    Edit("the destination of a COPY", _replace("app.conf /etc/app.conf", "app.conf /etc/"), (CONF, LISTING),
         "its destination differs; was  /etc/app.conf; now  /etc/"),
    Edit("a heredoc", _replace("User-agent: *", "User-agent: a"), (ROBOTS, SITE, CONF, LISTING),
         "its inline file differs; was  /site/robots.txt"),
    Edit("`COPY --chown`", _replace("COPY etc", "COPY --chown=1000 etc"), ("COPY --chown", LISTING),
         r"chown differs; was  \(empty\); now  1000"),
    Edit("`RUN --network=none`", _replace("RUN sh", "RUN --network=none sh"), ("RUN --network=none sh /tests",),
         "network differs; was  host; now  none"),
    Edit("`--target`", _flags("--target", "tested"), (), "6 steps: 6 cached, 0 not"),
    Edit("`--no-cache`", _flags("--no-cache"), ALL, "--no-cache; the build was told not to ask"),
)  # fmt: skip


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
    with tempfile.TemporaryDirectory() as name, RegistryProcess(Path(name) / "hub") as registry:
        warm = prepare(Path(name), registry, "edits/base")
        outcomes = []
        for edit in EDITS:
            outcomes.append((edit, attempt(warm, edit)))
            print(row(*outcomes[-1]), file=sys.stderr)  # progress, for who waits
        PAGE.write_text(page(outcomes))


if __name__ == "__main__":
    main()
