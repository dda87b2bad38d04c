"""A layer with this machine's Python in it, as much as `inside.py` needs: probes then run in any builder."""

from __future__ import annotations

import re
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

INSIDE = Path(__file__).with_name("inside.py")
_IMPORTS = "import __future__, ctypes, errno, json, os, resource, signal, socket, stat, struct, sys"
_LISTED = "print(*sorted({m.__file__ for m in sys.modules.values() if getattr(m, '__file__', None)}), sep='\\n')"
_LIBRARY = re.compile(r"(?:=> )?(/\S+) \(0x", re.MULTILINE)

PYTHON = "/bin/ld.so --library-path /bin/lib /bin/python3 -s -S"
"""The command. The loader is named because files of a test's layer are executable in /bin only."""


@cache
def python_layer() -> dict[str, bytes]:
    """Files by name, for `push_image`; the image needs the variable of `python_home` besides."""
    done = subprocess.run(
        [sys.executable, "-I", "-S", "-c", f"{_IMPORTS}\n{_LISTED}"], capture_output=True, text=True, check=True
    )
    modules = [Path(line) for line in done.stdout.splitlines()]
    python = Path(sys.executable).resolve()
    libraries = {Path(name) for path in (python, *modules) if path.suffix in {".so", ""} or path == python
                 for name in _LIBRARY.findall(_ldd(path))}  # fmt: skip
    loader = [path for path in libraries if path.name.startswith("ld-")]
    if not loader:
        pytest.skip("this Python is linked in a way that the tests cannot take along")
    files = {str(path).lstrip("/"): path.read_bytes() for path in modules}
    files |= {f"bin/lib/{path.name}": path.read_bytes() for path in libraries}
    return {**files, "bin/python3": python.read_bytes(), "bin/ld.so": loader[0].read_bytes(), "mnt/": b"",
            "probe/inside.py": INSIDE.read_bytes()}  # fmt: skip


def python_home() -> str:
    """What has to be in the environment."""
    return f"PYTHONHOME={sys.base_prefix}"


def _ldd(path: Path) -> str:
    return subprocess.run(["ldd", path], capture_output=True, text=True, check=False).stdout
