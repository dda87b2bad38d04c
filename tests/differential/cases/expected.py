"""What no other builder here knows: expectations written by hand from the reference.

`tree` has every path that the build changes in the base, and no other: `"0644 0:0 text"` for a file with that text,
`"d0755 0:0"` for a directory, `"-> target"` for a link, `None` for one that is gone. `config`: keys of the config.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from tests.differential.cases.case import Case

Files = Mapping[str, str | bytes | None]
Expected = Mapping[str, str | None]


@dataclass(frozen=True, slots=True)
class Handwritten:
    """A build, and what comes out by that paragraph of the reference."""

    paragraph: str
    text: str
    tree: Expected = field(default_factory=dict)
    config: Mapping[str, Any] = field(default_factory=dict)
    files: Files = field(default_factory=dict)
    args: tuple[str, ...] = ()

    @property
    def case(self) -> Case:
        """For Builders.build: of nobody else."""
        lacks = dict.fromkeys(("buildkit", "buildah"), "does not know this")
        return Case(self.text, self.files, self.args, lacks)


def _env(expression: str, value: str) -> Handwritten:
    text = f"ENV f=a/b.c/d.tar.gz e=\nENV r={expression}"
    return Handwritten(
        "Environment replacement", text, config={"Env": ["PATH=/bin", "f=a/b.c/d.tar.gz", "e=", f"r={value}"]}
    )


HEREDOCS = "Here-Documents"
HANDWRITTEN = {
    "heredoc-run": Handwritten(
        HEREDOCS, "RUN <<EOF\necho one > /x\necho two >> /x\nEOF", {"/x": "0644 0:0 one\ntwo\n"}),
    "heredoc-run-expands-in-the-shell": Handwritten(
        HEREDOCS, "ENV a=1\nRUN <<EOF\nb=2; echo $a$b > /x\nEOF", {"/x": "0644 0:0 12\n"}),
    "heredoc-run-shebang": Handwritten(
        HEREDOCS, "RUN <<EOF\n#!/bin/busybox sh\necho $0 | busybox cut -c1 > /x\nEOF", {"/x": "0644 0:0 /\n"}),
    "heredoc-run-command": Handwritten(
        HEREDOCS, "RUN cat > /x <<EOF\nhello\nEOF", {"/x": "0644 0:0 hello\n"}),
    "heredoc-run-quoted": Handwritten(
        HEREDOCS, "RUN cat > /x <<'EOF'\n$HOME\nEOF", {"/x": "0644 0:0 $HOME\n"}),
    "heredoc-run-chomped": Handwritten(
        HEREDOCS, "RUN <<-EOF\n\techo a > /x\n\tEOF", {"/x": "0644 0:0 a\n"}),
    "heredoc-copy": Handwritten(
        HEREDOCS, "COPY <<EOF /dir/file\nhello\nEOF",
        {"/dir": "d0755 0:0", "/dir/file": "0644 0:0 hello\n"}),
    "heredoc-copy-expanded": Handwritten(
        HEREDOCS, "ARG a=1\nENV b=2\nCOPY <<EOF /x\n$a ${b} ${c:-3} \\$d\nEOF", {"/x": "0644 0:0 1 2 3 $d\n"}),
    "heredoc-copy-quoted": Handwritten(
        HEREDOCS, 'ENV b=2\nCOPY <<"EOF" /x\n$b\nEOF', {"/x": "0644 0:0 $b\n"}),
    "heredoc-copy-several": Handwritten(
        HEREDOCS, "COPY <<one <<two one.txt /d/\n1\none\n2\ntwo",
        {"/d": "d0755 0:0", "/d/one": "0644 0:0 1\n", "/d/two": "0644 0:0 2\n", "/d/one.txt": "0644 0:0 one.txt"}),
    "heredoc-copy-owner-mode": Handwritten(
        "COPY --chmod", "COPY --chown=app:staff --chmod=640 <<EOF /x\na\nEOF", {"/x": "0640 1000:50 a\n"}),
    "heredoc-copy-chomped": Handwritten(
        HEREDOCS, "COPY <<-EOF /x\n\ta\n\t\tb\n\tEOF", {"/x": "0644 0:0 a\nb\n"}),
    "heredoc-add": Handwritten(HEREDOCS, "ADD <<EOF /x\na\nEOF", {"/x": "0644 0:0 a\n"}),
    "expand-prefix-short": _env("${f#*/}", "b.c/d.tar.gz"),
    "expand-prefix-long": _env("${f##*/}", "d.tar.gz"),
    "expand-suffix-short": _env("${f%.*}", "a/b.c/d.tar"),
    "expand-suffix-long": _env("${f%%.*}", "a/b"),
    "expand-replace-first": _env("${f/a/z}", "z/b.c/d.tar.gz"),
    "expand-replace-all": _env("${f//a/z}", "z/b.c/d.tzr.gz"),
    "expand-unset-only-default": _env("[${e-x}${u-x}]", "[x]"),
    "expand-unset-only-alternative": _env("[${e+x}${u+x}]", "[x]"),
    "expand-required-and-there": _env("${f:?unset}", "a/b.c/d.tar.gz"),
    "copy-parents": Handwritten(
        "COPY --parents", "COPY --parents one.txt tree/a.txt /p/",
        {"/p": "d0755 0:0", "/p/one.txt": "0644 0:0 one.txt", "/p/tree": "d0750 0:0",
         "/p/tree/a.txt": "0644 0:0 tree/a.txt"}),
    "copy-no-parents": Handwritten(
        "COPY --parents", "COPY --parents=false one.txt tree/a.txt /p/",
        {"/p": "d0755 0:0", "/p/one.txt": "0644 0:0 one.txt", "/p/a.txt": "0644 0:0 tree/a.txt"}),
    "copy-parents-pivot": Handwritten(
        "COPY --parents", "COPY --parents tree/./sub/deep/c.txt /p/",
        {"/p": "d0755 0:0", "/p/sub": "d0710 0:0", "/p/sub/deep": "d0755 0:0",
         "/p/sub/deep/c.txt": "0644 0:0 tree/sub/deep/c.txt"}),
    "copy-parents-double-star": Handwritten(
        "COPY --parents", "COPY --parents tree/**/c.txt /p/",
        {"/p": "d0755 0:0", "/p/tree": "d0750 0:0", "/p/tree/sub": "d0710 0:0", "/p/tree/sub/deep": "d0755 0:0",
         "/p/tree/sub/deep/c.txt": "0644 0:0 tree/sub/deep/c.txt"}),
    "copy-exclude": Handwritten(
        "COPY --exclude", "COPY --exclude=*.txt --exclude=sub --exclude=hard --exclude=link --exclude=gone tree /p/",
        {"/p": "d0755 0:0", "/p/.hidden": "0644 0:0 tree/.hidden"}),
    "copy-exclude-deep": Handwritten(
        "COPY --exclude", "COPY --exclude=**/c.txt tree/sub /p/", {"/p": "d0755 0:0", "/p/deep": "d0755 0:0"}),
    "add-exclude": Handwritten(
        "ADD --exclude", "ADD --exclude=two.* one.txt two.txt /p/",
        {"/p": "d0755 0:0", "/p/one.txt": "0644 0:0 one.txt"}),
    "copy-link": Handwritten(
        "COPY --link", "COPY --link one.txt /new/dir/",
        {"/new": "d0755 0:0", "/new/dir": "d0755 0:0", "/new/dir/one.txt": "0644 0:0 one.txt"}),
    "copy-link-over-a-link-of-the-base": Handwritten(
        "COPY --link", "RUN ln -s data /l\nCOPY --link one.txt /l/",
        {"/l": "d0755 0:0", "/l/one.txt": "0644 0:0 one.txt"}),
    "copy-link-chown": Handwritten("COPY --link", "COPY --link --chown=3:4 one.txt /x", {"/x": "0644 3:4 one.txt"}),
    "copy-chmod-symbolic": Handwritten(
        "COPY --chmod", "COPY --chmod=u+x,g=u,o= one.txt /x", {"/x": "0770 0:0 one.txt"}),
    "copy-chmod-symbolic-directories": Handwritten(
        "COPY --chmod", "COPY --chmod=go=rX sibling exec.sh /p/",
        {"/p": "d0755 0:0", "/p/file": "0644 0:0 sibling/file", "/p/exec.sh": "0755 0:0 exec.sh"}),
    "copy-chmod-variable": Handwritten("COPY --chmod", "ARG m=604\nCOPY --chmod=$m one.txt /x", {"/x": "0604 0:0 one.txt"}),
    "add-keeps-an-archive": Handwritten(
        "ADD --unpack", "ADD --unpack=false small.tar /p/", {"/p": "d0755 0:0", "/p/small.tar": "0644 0:0 not read"},
        files={"small.tar": "not read"}),
    "add-unpacks-when-told": Handwritten(
        "ADD --unpack", "ADD --unpack=true plain.tar /p/",
        {"/p": "d0755 0:0", "/p/top": "d0751 5:6", "/p/top/file": "0640 5:6 content", "/p/top/set": "4755 5:6 set",
         "/p/top/hard": "0640 5:6 content", "/p/top/soft": "-> file", "/p/top/fifo": "fifo0600 5:6"}),
    "run-network-none": Handwritten(
        "RUN --network", "RUN --network=none ls /sys/class/net | busybox tr '\\n' ' ' > /x", {"/x": "0644 0:0 lo "}),
    "mount-secret-as-variable": Handwritten(
        "RUN --mount=type=secret", "RUN --mount=type=secret,id=k,env=K test -n \"$K\" && echo y > /x\nRUN echo [$K] > /y",
        {"/x": "0644 0:0 y\n", "/y": "0644 0:0 []\n"}, args=("--secret", "id=k,env=HOME")),
    "healthcheck-start-interval": Handwritten(
        "HEALTHCHECK", "HEALTHCHECK --start-interval=2s CMD true",
        config={"Healthcheck": {"Test": ["CMD-SHELL", "true"], "StartInterval": 2_000_000_000}}),
    "named-dockerignore": Handwritten(
        ".dockerignore file", "COPY *.txt /p/", {"/p": "d0755 0:0", "/p/two.txt": "0644 0:0 two.txt"},
        files={".dockerignore": "two.txt\n", "Dockerfile.dockerignore": "one.txt\n[[]odd*\n"}),
    "syntax-labs": Handwritten(
        "Parser directives", "# syntax=docker/dockerfile:1-labs\nFROM @base\nCOPY --exclude=a* one.txt /x",
        {"/x": "0644 0:0 one.txt"}),
    "onbuild-heredoc": Handwritten(
        "ONBUILD", "FROM @base AS a\nONBUILD RUN <<EOF\necho t > /t\nEOF\nFROM a\nRUN cat /t > /u",
        {"/t": "0644 0:0 t\n", "/u": "0644 0:0 t\n"}),
    "expose-protocol-case": Handwritten("EXPOSE", "EXPOSE 80/TCP", config={"ExposedPorts": {"80/tcp": {}}}),
}
