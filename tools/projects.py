"""Builds real projects, runs what came out, builds them again, changes a line, and tells what that cost.

    tools/projects [NAME...] [--output docs/projects.md]

Each project starts with an empty root. Cold: everything runs. Warm: everything is cached, nothing is pulled. Then one
line of its source changes, and exactly the steps run again that tools/project_list.py names. Both images are run by
runc and must answer as expected. The base images are Debian, from tools/lab/seed.py; where pip and npm fetch from is
asked of this host and lent as secrets. Exit code 0 when all was as expected, 1 when not, 3 when the host refuses, 130
when interrupted.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import secrets
import shutil
import signal
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

from storage.errors import HostError, RefledgerError
from tools.cli.destinations import check_file
from tools.demo import interrupted
from tools.lab import PROJECT
from tools.lab.host_registries import host_registries
from tools.lab.image_runner import BrokenPromise, answer, run, served
from tools.lab.loopback_registry import LoopbackRegistry
from tools.lab.peers import workplace
from tools.lab.seed import seed
from tools.project_list import PROJECTS, Get, Project
from tools.project_page import Figures, Told, document, figures, table

PRICES = b"lamp,1250\nrope,300\n"


class Bench:
    """A root of its own for one project, and what it is lent."""

    def __init__(self, project: Project, directory: Path, registry: str, lent: Mapping[str, Path]) -> None:
        self.project = project
        self.directory = directory
        self.registry = registry
        self.source = directory / "source"
        self.root = directory / "root"
        self.token = secrets.token_urlsafe(24)
        self._lent = lent
        self._arguments: list[str] = []
        shutil.copytree(PROJECT / "examples" / project.name, self.source)

    def prepare(self, stack: contextlib.ExitStack) -> None:
        """Make base images and what the project needs of its user."""
        for argument, kind in self.project.bases.items():
            base = seed(self.registry, f"base/{kind}", kind)
            self._arguments += ["--build-arg", f"{argument}={base.reference}"]
        for name, where in self.project.contexts.items():
            self._arguments += ["--build-context", f"{name}={self.source / where}"]
        for need in self.project.needs:
            if need in self._lent:
                self._arguments += ["--secret", f"id={need},src={self._lent[need]}"]
            elif need == "token":
                url = stack.enter_context(price_list(self.token))
                (self.directory / "token").write_text(self.token + "\n")
                self._arguments += ["--secret", f"id=token,src={self.directory / 'token'}"]
                self._arguments += ["--build-arg", f"PRICES_URL={url}"]
            elif need == "ssh":
                key = self.directory / "key"
                run("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "builder", "-f", str(key))
                self._arguments += ["--ssh", f"default={key}"]
        for argument, where in self.project.forms.items():
            name = f"{self.registry}/{self.project.name}/{where}:1"
            self.refledger("build", str(self.source / where), *self._arguments, "-t", name, "--push")
            self._arguments += ["--build-arg", f"{argument}={name}"]

    def build(self, *options: str) -> Figures:
        """Build the project as it lies there now."""
        seen = {event["build"] for event in self.events()}
        started = time.monotonic()
        context = str(self.source / self.project.context)
        self.refledger("build", context, *self._arguments, *options)
        seconds = time.monotonic() - started
        return figures([event for event in self.events() if event["build"] not in seen], seconds)

    def push(self, tag: str) -> tuple[Figures, str]:
        """Build and push; the figures and the reference."""
        reference = f"{self.registry}/{self.project.name}/app:{tag}"
        return self.build(*self.project.options, "-t", reference, "--push"), reference

    def change(self) -> None:
        """The one-line change."""
        change = self.project.change
        path = self.source / change.path
        text = path.read_text()
        if text.count(change.old) != 1:
            raise BrokenPromise(f"{change.path} does not have {change.old!r} once")
        path.write_text(text.replace(change.old, change.new))

    def export(self) -> str:
        """What the project's extra export has in it."""
        wanted = self.project.export
        if wanted is None:
            return ""
        out = self.directory / "exported"
        self.build(*wanted.options, "--output", f"type=local,dest={out}")
        found = wanted.look(out)
        require(wanted.expected in found, f"exported {found!r}, not {wanted.expected!r}")
        return found

    def answer(self, reference: str) -> str:
        """What the image answers when it is run and asked as the project says."""
        ask = self.project.ask
        if isinstance(ask, Get):
            return served(reference, ask.path, self.directory)
        return answer(reference, ask.arguments, ask.stdin, self.directory)

    def refledger(self, *arguments: str) -> str:
        """The command line in this project's root; BrokenPromise with its last words when it fails."""
        environment = {**os.environ, "REFLEDGER_ROOT": str(self.root)}
        return run(str(PROJECT / "tools/refledger"), *arguments, environment=environment)

    def events(self) -> list[dict[str, Any]]:
        """The whole log."""
        if not self.root.exists():
            return []
        return [json.loads(line) for line in self.refledger("events", "--json").splitlines()]

    def find_lent(self) -> list[str]:
        """Files of the root and of the unpacked image in which the token or the private key is found."""
        values = []
        if "token" in self.project.needs:
            values.append(self.token.encode())
        if "ssh" in self.project.needs:
            values.append((self.directory / "key").read_bytes().splitlines()[2])
        places = [self.root, self.directory / "bundle"] if values else []
        files = [path for place in places for path in place.rglob("*") if path.is_file() and not path.is_symlink()]
        return [str(path.relative_to(self.directory)) for path in files if any(v in path.read_bytes() for v in values)]


def tell(project: Project, directory: Path, registry: str, lent: Mapping[str, Path]) -> Told:
    """Put one project through all of it. Raises BrokenPromise."""
    bench = Bench(project, directory, registry, lent)
    with contextlib.ExitStack() as stack:
        bench.prepare(stack)
        cold, reference = bench.push("1")
        require(bool(cold.ran) and not cold.cached, f"cold, {cold.cached} were cached")
        first = bench.answer(reference)
        require(project.before in first, f"it answered {first.strip()!r}, not {project.before!r}")
        warm, _ = bench.push("1")
        require(not warm.ran and bool(warm.cached), f"warm, {warm.ran} ran")
        require(warm.pulled == 0, f"warm, {warm.pulled} bytes were pulled")
        bench.change()
        changed, reference = bench.push("2")
        expect_steps(project.reruns, changed.ran)
        require(changed.pulled == 0, f"after the change, {changed.pulled} bytes were pulled")
        second = bench.answer(reference)
        require(project.after in second, f"it answered {second.strip()!r}, not {project.after!r}")
        exported = bench.export()
        found = bench.find_lent()
        require(not found, f"what was lent lies in {found}")
    return Told(project, cold, warm, changed, (first, second), exported)


def expect_steps(expected: Sequence[str], ran: Sequence[str]) -> None:
    """Each of `expected` begins one step that ran, and no other step ran."""
    left = list(ran)
    for start in expected:
        found = next((step for step in left if step.startswith(start)), None)
        if found is None:
            raise BrokenPromise(f"{start!r} did not run again; {list(ran)} did")
        left.remove(found)
    require(not left, f"{left} ran again without need")


@contextlib.contextmanager
def price_list(token: str) -> Iterator[str]:
    """The URL of a list on 127.0.0.1 that only `token` opens."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            allowed = secrets.compare_digest(self.headers.get("Authorization", ""), f"Bearer {token}")
            self.send_response(200 if allowed else 401)
            self.end_headers()
            if allowed:
                self.wfile.write(PRICES)

        def log_message(self, *_: object) -> None:
            """Nobody reads it."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = Thread(target=server.serve_forever, daemon=True)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}/prices.csv"
        finally:
            server.shutdown()
            thread.join()


def require(held: bool, otherwise: str) -> None:
    """BrokenPromise saying `otherwise` unless it held."""
    if not held:
        raise BrokenPromise(otherwise)


def chosen(names: Sequence[str]) -> list[Project]:
    """The projects of these names, all without names. Raises HostError for others."""
    known = {project.name: project for project in PROJECTS}
    if unknown := sorted(set(names) - set(known)):
        raise HostError(f"no such project: {', '.join(unknown)}", hint=f"there are {', '.join(known)}")
    return [project for project in PROJECTS if not names or project.name in names]


def tell_all(projects: Sequence[Project]) -> tuple[list[Told], int]:
    """All of them, one after the other; what went well, and how many did not."""
    told, broken = [], 0
    with workplace() as directory, LoopbackRegistry(directory / "registry") as registry:
        lent = directory / "lent"
        with host_registries(lent) as registries:
            for project in projects:
                place = directory / project.name
                place.mkdir()
                note(f"{project.name}: {project.what}")
                try:
                    one = tell(project, place, registry.host, registries)
                except BrokenPromise as error:
                    broken += 1
                    note(f"  ✗ {error}")
                else:
                    told.append(one)
                    note(f"  ✓ cold {one.cold}; warm {one.warm}; changed {one.changed}")
                    shutil.rmtree(place, ignore_errors=True)
    return told, broken


def note(text: str) -> None:
    """One line for who watches."""
    print(text, file=sys.stderr, flush=True)


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line."""
    parser = argparse.ArgumentParser(prog="tools/projects", description="Build and run the projects of examples/.")
    parser.add_argument("names", nargs="*", metavar="NAME", help="these only")
    parser.add_argument("--output", metavar="FILE", help="write the table there")
    given = parser.parse_args(arguments)
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, interrupted)
    try:
        if given.output:
            check_file(given.output)
        told, broken = tell_all(chosen(given.names))
    except RefledgerError as error:
        note(f"projects: {error}")
        return error.exit_code
    except KeyboardInterrupt:
        note("interrupted; everything it started is stopped.")
        return 130
    print(table(told), end="")
    if given.output and not broken:
        Path(given.output).write_text(document(told))
    note(f"{len(told)} as expected, {broken} not")
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main())
