"""Dockerfiles whose steps BuildKit and we must give the same names, and the context that all of them have."""

from __future__ import annotations

import os
from pathlib import Path
from textwrap import dedent

GOLDEN = Path(__file__).with_name("golden")
CASES = {
    "run": """\
        FROM @base
        RUN echo hi > /a
        """,
    "metadata": """\
        FROM @base
        ENV A=1 B="two words"
        LABEL not=here
        USER 1000:1000
        RUN ["sh", "-c", "echo \\"<&>\\" é"]
        USER app
        EXPOSE 80
        WORKDIR /tmp
        SHELL ["/bin/sh", "-ec"]
        RUN echo a \\
            && echo b
        CMD ["sh"]
        """,
    "variables": """\
        ARG GLOBAL=global
        FROM @base AS first
        ARG V=1
        ENV Y=2 X=1
        ARG Z
        ARG W=w
        ENV W=env
        ARG GLOBAL
        FROM first
        ENV Y=3
        ARG V=2
        ARG TARGETARCH
        RUN one=$V; echo $Y
        """,
    "workdir": """\
        FROM @base
        WORKDIR /one
        WORKDIR two/three
        USER root
        WORKDIR /root-owned
        USER 12:34
        WORKDIR /numbers
        USER app:staff
        WORKDIR /names
        """,
    "copy": """\
        FROM @base
        COPY one.txt /one.txt
        COPY one.txt two.txt /both/
        COPY tree /tree
        COPY tree/ tree/sub /flat/
        COPY link linkdir /links/
        WORKDIR /here
        COPY one.txt exec.sh setuid ./
        COPY . .
        ADD two.txt /
        """,
    "owner": """\
        FROM @base
        COPY --chown=root:root one.txt /1
        COPY --chown=1000 --chmod=644 one.txt /2
        COPY --chown=0:5 two.txt /3
        COPY --chown=app:staff tree /4
        """,
    "pattern": """\
        FROM @base
        COPY *.txt /1/
        COPY on*.txt t*/s?b/x-*.y /2/
        COPY one.tx? /3
        COPY *.txt two.txt *o.txt /4/
        """,
    "from": """\
        FROM @base AS build
        WORKDIR /w
        RUN echo made > /out && mkdir /dir && echo x > /dir/x
        FROM @base
        COPY --from=build /out /o
        COPY --from=build /w/none* /dir /many/
        COPY --from=build /dir/x /dir/ /out /three/
        RUN cat /o
        """,
    "scratch": """\
        FROM @base AS build
        RUN echo made > /out && mkdir /dir
        FROM scratch AS first
        COPY --from=build /out /dir /
        COPY one.txt /
        FROM scratch AS second
        COPY one.txt two.txt /
        COPY --from=first / /first/
        FROM scratch
        WORKDIR /only
        COPY --from=second / /
        """,
    "base": """\
        FROM @rich
        RUN true
        COPY one.txt here.txt
        WORKDIR below
        """,
}
IGNORED = "tree/ignored\n*.log\n!tree/sub/kept.log\n"
FILES = {
    "one.txt": "one\n", "two.txt": "two two\n", "tree/a": "a", "tree/b.c": "b", "tree/sub/deep/c": "",
    "tree/sub/x-1.y": "1", "tree/sub/x-2.y": "2", "tree/sub.d": "sorts between", "tree/sub-e": "too", "tree/é": "é",
    "tree/ignored": "no", "tree/no.log": "no", "tree/sub/kept.log": "yes", "exec.sh": "#!/bin/sh\n", "setuid": "s",
}  # fmt: skip
MODES = {"exec.sh": 0o755, "setuid": 0o4711, "two.txt": 0o600, "tree/sub": 0o710, "tree/sub/deep": 0o1777}
LINKS = {"link": "one.txt", "linkdir": "tree", "tree/link": "../one.txt", "tree/gone": "/nowhere", "tree/up": ".."}


def lay(context: Path) -> None:
    """Make the context."""
    context.chmod(0o755)
    for name, text in FILES.items():
        path = context / name
        path.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
        path.write_text(text)
        path.chmod(0o644)
    for name, mode in MODES.items():
        (context / name).chmod(mode)
    for name, target in LINKS.items():
        (context / name).symlink_to(target)
    os.link(context / "tree/a", context / "tree/hard")
    (context / ".dockerignore").write_text(IGNORED)
    (context / ".dockerignore").chmod(0o644)


def dockerfile(name: str, images: dict[str, str]) -> str:
    """The text of a case; `images`: the references of the bases."""
    text = dedent(CASES[name])
    for base, reference in images.items():
        text = text.replace(f"@{base}", reference)
    return text
