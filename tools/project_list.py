"""The real projects in examples/: what each builds on, what is changed in it, and what must then run again."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Change:
    """In `path` (below the project's directory) the only `old` becomes `new`."""

    path: str
    old: str
    new: str


@dataclass(frozen=True, slots=True)
class Command:
    """Run the image with these arguments (none: its own CMD) and standard input; what it prints is the answer."""

    arguments: tuple[str, ...] = ()
    stdin: str = ""


@dataclass(frozen=True, slots=True)
class Get:
    """Run the image as a service (HOST, PORT and ADDRESS say where it listens) and GET `path`."""

    path: str


@dataclass(frozen=True, slots=True)
class Export:
    """Build once more with `options` and `--output type=local`; `look` says what it finds, `expected` is in that."""

    options: tuple[str, ...]
    look: Callable[[Path], str]
    expected: str


@dataclass(frozen=True, slots=True)
class Project:
    """`bases`: kind of seed image by build arg; `reruns`: how the steps begin that run after the change, once each;
    `before`, `after`: the answer has this in it; `needs`: secret ids of host_registries, or `token` and `ssh`;
    `forms`: directory of an image that is built and pushed first, by build arg."""

    name: str
    what: str
    bases: Mapping[str, str]
    change: Change
    reruns: tuple[str, ...]
    ask: Command | Get
    before: str
    after: str
    needs: tuple[str, ...] = ()
    options: tuple[str, ...] = ()
    context: str = "."
    forms: Mapping[str, str] = field(default_factory=dict)
    contexts: Mapping[str, str] = field(default_factory=dict)
    export: Export | None = None


_MACHINES = {3: "386", 40: "arm", 62: "amd64", 183: "arm64"}  # e_machine (elf.h) by Go's names


def _machines(directory: Path) -> str:
    """The architectures of the ELF files in `directory`, as their headers say."""
    found = {}
    for path in sorted(directory.rglob("where")):
        head = path.read_bytes()[:20]
        found[str(path.relative_to(directory).parent)] = _MACHINES[int.from_bytes(head[18:20], "little")]
    return ", ".join(f"{where}: {machine}" for where, machine in found.items())


def _names(directory: Path) -> str:
    return ", ".join(sorted(path.name for path in directory.iterdir() if not path.name.startswith("greet-dbgsym")))


_PLATFORMS = ("--platform", "linux/amd64,linux/arm64,linux/arm/v7")

PROJECTS: tuple[Project, ...] = (
    Project(
        "flask-app", "Flask and gunicorn: pip with a cache mount, tests in a stage", {"BASE": "venv"},
        Change("rates.py", "BASE = 350", "BASE = 395"),
        ("COPY . .", "RUN python -m unittest", "COPY --from=tested"),
        Get("/price?kilos=2.5"), '{"cents":710}', '{"cents":755}', needs=("pip", "ca"),
    ),
    Project(
        "node-service", "npm ci with a cache mount, tests in a stage, shipped without npm",
        {"NPM": "npm", "NODE": "node"},
        Change("src/main.js", "{ seconds: found }", "{ text: request.params.duration, seconds: found }"),
        ("COPY src src", "COPY test test", "RUN node --test", "COPY --link --from=tested"),
        Get("/1h30m"), '{"seconds":5400}', '{"text":"1h30m","seconds":5400}', needs=("npm", "ca"),
    ),
    Project(
        "c-scratch", "a C program: compiler in one stage, one static file in the other", {"BASE": "gcc"},
        Change("tally.c", '*SEPARATOR = " "', '*SEPARATOR = "  "'),
        ("COPY Makefile", "RUN make tally", "COPY --from=build"),
        Command(("1",), "to be or not to be, to"), "3 to", "3  to",
    ),
    Project(
        "go-service", "Go: source only mounted, compiler's cache kept, shipped on scratch", {"BASE": "golang"},
        Change("slug.go", "separator = '-'", "separator = '_'"),
        ("RUN --mount=type=bind", "COPY --from=build"),
        Get("/?title=What+again"), "what-again", "what_again",
    ),
    Project(
        "static-site", "a site generated in one stage, served by busybox httpd", {"BASE": "busybox"},
        Change("pages/layers.txt", "Layers", "Layers of tar"),
        ("COPY pages pages", "RUN ./build.sh", "COPY --from=site"),
        Get("/"), ">Layers</a>", ">Layers of tar</a>",
    ),
    Project(
        "deb-package", "a Debian package: debhelper, exported, and installed in an image",
        {"BUILDER": "debhelper", "BASE": "small"},
        Change("greet.c", "Good day, %s!", "Good day to you, %s!"),
        ("COPY . .", "RUN dpkg-buildpackage", "COPY --from=build /packages", "RUN --mount=type=bind"),
        Command(), "Good day, world!", "Good day to you, world!",
        export=Export(("--target", "package"), _names, "greet_1.0_"),
    ),
    Project(
        "notebook", "a notebook with pandas and matplotlib, run from top to bottom", {"BASE": "venv"},
        Change("report.ipynb", "unit = 's'", "unit = 'seconds'"),
        ("COPY measured.csv report.ipynb",), Command(), "longest: pull 6.0 s\n", "longest: pull 6.0 seconds\n",
        needs=("pip", "ca"),
    ),
    Project(
        "ruby-cli", "a Ruby command: apt with cache mounts, checked in one stage, copied to another", {"BASE": "small"},
        Change("bin/roman", "#{word} = ", "#{word} is "),
        ("COPY --chmod=755 bin/roman",), Command(("1994",)), "1994 = MCMXCIV", "1994 is MCMXCIV",
        needs=("apt", "apt-options"),
    ),
    Project(
        "signed-release", "a download with a token (--secret), signed by the user's key (--ssh)", {"BASE": "ssh"},
        Change("shop.sh", "$cents cents", "$cents ct"),
        ("COPY shop.sh", "RUN sha256sum", "RUN --mount=type=ssh", "COPY --from=release",
         "WORKDIR /release"),
        Command(), "lamp: 1250 cents", "lamp: 1250 ct", needs=("token", "ssh"),
    ),
    Project(
        "onbuild", "a form with ONBUILD triggers, and a service built on it", {"BASE": "busybox"},
        Change("app/cgi-bin/sum", "unit=apples", "unit=pears"),
        ("COPY --chmod=755 cgi-bin", "RUN for script"),
        Get("/cgi-bin/sum?1+2+3"), "6 apples", "6 pears", context="app", forms={"FORM": "base"},
    ),
    Project(
        "go-cross", "Go for three platforms by BUILDPLATFORM and TARGETARCH", {"BASE": "golang"},
        Change("main.go", "made for", "built for"),
        ("COPY go.mod", *3 * ("RUN --mount=type=cache", "COPY --link")),
        Command(), "made for linux/", "built for linux/",
        options=_PLATFORMS,
        export=Export(_PLATFORMS, _machines, "linux_amd64: amd64, linux_arm64: arm64, linux_arm_v7: arm"),
    ),
    Project(
        "toolbox", "heredocs, a named context, --link, --parents, --exclude, health check", {"BASE": "busybox"},
        Change("settings/greeting.conf", "Hello", "Welcome"),
        ("COPY --from=settings", "COPY --chmod=755 <<EOF", "COPY <<EOF", "RUN test", "WORKDIR /data"),
        Command(("greet", "reader")), "Hello, reader.", "Welcome, reader.", contexts={"settings": "settings"},
    ),
)  # fmt: skip
