"""The edits that tests/edits.py tries, what each must run again, and what `refledger why` says of the first."""

from __future__ import annotations

import os
import shutil

from tests.edits import Change, Edit, Shop, push_base

LEVEL, WORKDIR, SOURCE, OBJECT = "RUN echo", "WORKDIR", "COPY src", "RUN sed"
PROGRAM, TESTS, REPORT = "RUN cat /program.o", "COPY tests", "RUN sh /tests"
STYLE, INDEX, ROBOTS = "COPY assets/style", "COPY assets/index", "COPY <<robots"
APP, TOOL, SITE, CONF, LISTING = "COPY --from=tested", "COPY --from=tools", "COPY --from=site", "COPY etc", "RUN ls"
FINAL = (APP, TOOL, SITE, CONF, LISTING)


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
         "the image that it takes differs; was  REGISTRY/base:1@was; now  REGISTRY/base:1@now"),
    Edit("another tag of the same base image", _other_tag, (), NOTHING),
    Edit("a base image with the same layers and another label", lambda shop: _other_tag(shop, "b"), (), NOTHING),
    Edit("a stage on another base: it makes the same again", _replace("${BASE} AS site", "scratch AS site"),
         (STYLE, INDEX, ROBOTS), "the image that it takes differs; was  REGISTRY/base:1@was; now  scratch"),
    Edit("`--platform linux/amd64/v2`", _flags("--platform", "linux/amd64/v2"), (*RUNS, LISTING),
         "its platform differs; was  linux/amd64; now  linux/amd64/v2"),
    Edit("a secret's value", lambda shop: shop.file("../token").write_text("two"), (), NOTHING),
    Edit("a secret's id", _other_secret, (OBJECT, PROGRAM, TESTS, REPORT),
         "the id of its mount 1 differs; was  token; now  key"),
    Edit("a cache mount's id", _replace("id=objects", "id=things"), (OBJECT, PROGRAM, TESTS, REPORT),
         "the id of its mount 2 differs; was  objects; now  things"),
    Edit("WORKDIR", _replace("WORKDIR /src", "WORKDIR /work"), (WORKDIR, *COMPILED),
         "the directory that it makes differs; was  /src; now  /work"),
    Edit("WORKDIR written otherwise", _replace("WORKDIR /src", "WORKDIR /src/"), (), NOTHING),
    Edit("USER before a command", _replace("RUN ls", "USER 1000\nRUN ls"), (LISTING,),
         r"its user differs; was  \(empty\); now  1000"),
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
         r"its inline file differs; -User-agent: \*; \+User-agent: a"),
    Edit("`COPY --chown`", _replace("COPY etc", "COPY --chown=1000 etc"), ("COPY --chown", LISTING),
         r"--chown differs; was  \(empty\); now  1000"),
    Edit("`RUN --network=none`", _replace("RUN sh", "RUN --network=none sh"), ("RUN --network=none sh /tests",),
         "its network differs; was  host; now  none"),
    Edit("`--network none`", _flags("--network", "none"), (*RUNS, LISTING),
         "its network differs; was  host; now  none"),
    Edit("`--target`", _flags("--target", "tested"), (), "6 steps: 6 cached, 0 not"),
    Edit("`--no-cache`", _flags("--no-cache"), ALL, "--no-cache; the build was told not to ask"),
)  # fmt: skip
