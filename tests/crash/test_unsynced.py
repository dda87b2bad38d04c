"""What a power loss may take is told to the byte and name: a harness that takes too little finds nothing."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from tests.builder import PROJECT
from tests.crash.unsynced import lose

_PROCESS = """\
import json, os, sys
from pathlib import Path
from tests.crash.unsynced import Unsynced
where = Path(sys.argv[1])
unsynced = Unsynced(str(where), json.loads(sys.argv[2]))
unsynced.watch()

def flush(path):
    fd = os.open(path, os.O_RDONLY)
    os.fsync(fd)
    os.close(fd)

with (where / "grown").open("wb") as file:
    file.write(b"safe")
    file.flush()
    os.fsync(file.fileno())
    file.write(b", lost")
fd = os.open(where / "lock", os.O_RDWR | os.O_CREAT)
os.close(fd)
(where / "kept").write_bytes(b"old and ")
flush(where / "kept")
(where / "made").mkdir()
(where / "made/named").write_bytes(b"x")
flush(where / "made/named")
(where / "new").write_bytes(b"never flushed")
flush(where)
flush(where / "found")
(where / "new").rename(where / "moved")
with (where / "before").open("ab") as file:
    file.write(b" and more")
print(json.dumps(unsynced.loss()))
"""


def test_I6_what_was_not_flushed_is_lost_and_nothing_else(tmp_path: Path) -> None:
    (tmp_path / "lock").write_bytes(b"of others")
    (tmp_path / "before").write_bytes(b"durable")
    before = []
    for name in ("found", "unseen"):  # by a process that died since
        (tmp_path / name).mkdir()
        (tmp_path / name / "file").write_bytes(b"x")
        before.append(["name", str(tmp_path / name / "file")])
    told = subprocess.run(
        [sys.executable, "-c", _PROCESS, str(tmp_path), json.dumps(before)],
        cwd=PROJECT, capture_output=True, text=True, check=True,
    )  # fmt: skip
    lose(json.loads(told.stdout))
    left = {str(path.relative_to(tmp_path)): path for path in tmp_path.rglob("*")}
    assert {name: path.read_bytes() for name, path in left.items() if path.is_file()} == {
        "grown": b"safe", "lock": b"of others", "before": b"durable", "kept": b"old and ", "new": b"",
        "found/file": b"x",
    }  # fmt: skip
    assert sorted(left) == ["before", "found", "found/file", "grown", "kept", "lock", "made", "new", "unseen"]
