"""The clocks of tools/bench/materialize find what they are put around, and count."""

from __future__ import annotations

import json
import subprocess
import sys

from tests.builder import PROJECT

# in a process of its own: the methods stay wrapped
COUNTED = """
import gzip, io, json
from storage.decompression import decompress
from storage.digest import Hasher
from tools.lab.stage_clocks import Clocks, install
clocks = Clocks()
install(clocks)
hasher, source = Hasher(), decompress(io.BytesIO(gzip.compress(bytes(1 << 20))), "")
while data := source.read():
    hasher.update(data)
print(json.dumps([hasher.size, sorted(clocks.busy), sorted(clocks.cpu)]))
"""


def test_time_counts_for_the_stage_it_was_spent_in() -> None:
    done = subprocess.run([sys.executable, "-c", COUNTED], cwd=PROJECT, capture_output=True, check=False)
    assert done.returncode == 0, done.stderr.decode()
    size, busy, cpu = json.loads(done.stdout)
    assert size == 1 << 20
    assert busy == cpu == ["decompression", "hashing (blob and diff ID)"]
