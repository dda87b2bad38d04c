"""Ten builds that fail for ten reasons: bundled in one root, which is deleted, and replayed in a new one.

Exit code 0 when each fails the same again, with the same exit code and output; 1 when not; 3 when the host refuses.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from storage.errors import RefledgerError
from tools.format import human_bytes
from tools.lab import PROJECT
from tools.lab.loopback_registry import LoopbackRegistry
from tools.lab.seed import Seeded, seed


@dataclass(frozen=True, slots=True)
class Case:
    """One build: `image` names its base (a kind of tools.lab.seed), `steps` follow FROM, `files` are its context;
    `spoil` is done to the registry between the base's push and the build."""

    name: str
    image: str
    steps: str
    files: tuple[tuple[str, bytes], ...] = ()
    spoil: Callable[[LoopbackRegistry, Seeded], None] | None = None


def _flip_a_bit(registry: LoopbackRegistry, base: Seeded) -> None:
    """In the middle of the base's last layer, where the registry keeps it."""
    name = base.layers[-1][0].partition(":")[2]
    (path,) = registry.directory.rglob(f"blobs/sha256/{name[:2]}/{name}/data")
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


_ARM = b"\x7fELF\x02\x01\x01" + bytes(9) + b"\x02\x00\xb7\x00\x01" + bytes(100)  # ELF header, EM_AARCH64

CASES = (
    Case("compile error", "gcc", "COPY . /app\nRUN cd /app && gcc -Wall -o prog main.c\n",
         (("main.c", b"int main(void) { return undeclared; }\n"),)),
    Case("test failure", "small", "WORKDIR /app\nCOPY . .\nRUN mkdir out && echo 41 > out/answer\nRUN sh test.sh\n",
         (("test.sh", b'read got < out/answer\n[ $got = 42 ] || { echo "FAIL: got $got" >&2; exit 4; }\n'),)),
    Case("missing package", "small", "RUN --network=none apt-get install -y no-such-package\n"),
    Case("out of memory", "small", "RUN ulimit -v 300000; perl -e 'my $x = \"a\" x (1 << 30); print length $x'\n"),
    Case("disk full", "small",
         "RUN --mount=type=tmpfs,target=/out,size=1048576 head -c 4000000 /dev/zero > /out/big\n"),
    Case("killed by signal", "small", "RUN echo about to die; perl -e 'kill SEGV => $$'; exit $?\n"),
    Case("wrong architecture", "small", "COPY --chmod=755 tool /usr/bin/tool\nRUN [\"/usr/bin/tool\"]\n",
         (("tool", _ARM),)),
    Case("network down", "small", "RUN --network=none bash -c 'exec 3<>/dev/tcp/192.0.2.1/80'\n"),
    Case("corrupt base layer", "busybox", "RUN true\n", spoil=_flip_a_bit),
    Case("missing secret", "small", "RUN --mount=type=secret,id=token,required cat /run/secrets/token\n"),
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Row:
    """What was seen of one case: exit codes of refledger, and those of the step's command, then and now; sizes in
    bytes."""

    name: str
    then: int
    now: int
    statuses: tuple[int | None, int | None]
    verdict: str
    same_output: bool
    bundle: int
    fetched: int
    error: str

    @property
    def good(self) -> bool:
        """The same failure in all that was asked for?"""
        same = self.then == self.now and len(set(self.statuses)) == 1 and self.same_output
        return same and self.verdict == "same failure"


def drill(case: Case, registry: LoopbackRegistry, directory: Path) -> Row:
    """Build, bundle, forget, replay."""
    there, elsewhere, context = (directory / name for name in ("there", "elsewhere", "context"))
    base = seed(registry.host, f"drill/{case.name.replace(' ', '-')}", case.image)
    if case.spoil is not None:
        case.spoil(registry, base)
    context.mkdir()
    for name, data in (*case.files, ("Dockerfile", f"FROM {base.reference}\n{case.steps}".encode())):
        (context / name).write_bytes(data)
    bundle = directory / "bundle"
    built = _refledger(there, "build", str(context), "--progress", "plain", "--bundle-on-failure", str(bundle))
    shutil.rmtree(there)
    if not bundle.exists():
        raise SystemExit(f"{case.name}: the build left no bundle (exit code {built.returncode}): {built.stderr[-600:]}")
    done = _refledger(elsewhere, "replay", str(bundle), "--json", hostname="elsewhere")
    try:
        said: dict[str, Any] = json.loads(done.stdout)
    except ValueError:
        raise SystemExit(f"{case.name}: the replay gave no verdict: {done.stderr[-600:]}") from None
    size = bundle.stat().st_size
    statuses = (said["then"]["status"], said["now"]["status"])
    shutil.rmtree(directory)
    return Row(
        case.name, built.returncode, done.returncode, statuses, said["verdict"], not said["output"], size,
        said["fetched"], said["now"]["error"].partition("\n")[0],
    )  # fmt: skip


def _refledger(root: Path, *arguments: str, hostname: str = "") -> subprocess.CompletedProcess[str]:
    command = [str(PROJECT / "tools/refledger"), *arguments]
    if hostname:
        command = ["unshare", "--uts", "sh", "-c", f'hostname {hostname} && exec "$@"', "-", *command]
    env = {**os.environ, "REFLEDGER_ROOT": str(root)}
    return subprocess.run(command, env=env, capture_output=True, text=True, errors="replace", check=False)


def main() -> int:
    """Run all, or those whose names begin with an argument."""
    wanted = [case for case in CASES if not sys.argv[1:] or case.name.startswith(tuple(sys.argv[1:]))]
    print_row = "{:19} {:5} {:8} {:17} {:7} {:>7} {:>8}  {}".format
    rows = []
    with tempfile.TemporaryDirectory(prefix="refledger-drill-") as text:
        registry = LoopbackRegistry(Path(text) / "registry").start()
        try:
            sys.stdout.write(
                print_row("BUILD", "EXIT", "COMMAND", "VERDICT", "OUTPUT", "BUNDLE", "FETCHED", "ERROR") + "\n"
            )
            for case in wanted:
                place = Path(text) / "case"
                place.mkdir()
                row = drill(case, registry, place)
                rows.append(row)
                output = "same" if row.same_output else "differs"
                sizes = human_bytes(row.bundle), human_bytes(row.fetched)
                codes = f"{row.then} {row.now}", " ".join("-" if s is None else str(s) for s in row.statuses)
                line = print_row(row.name, *codes, row.verdict, output, *sizes, row.error[:90])
                sys.stdout.write(line + "\n")
                sys.stdout.flush()
        finally:
            registry.stop()
    return 0 if all(row.good for row in rows) else 1


if __name__ == "__main__":
    try:
        sys.exit(main())
    except RefledgerError as error:
        sys.stderr.write(f"ERROR: {error}\n")
        sys.exit(error.exit_code)
