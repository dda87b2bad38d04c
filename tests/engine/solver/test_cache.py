"""Cache keys: what a key depends on is in it, in plain text, and nothing else is."""

from __future__ import annotations

from typing import Any

import pytest

from engine.graph import Copy, Mount, Run
from engine.solver.cache import CacheKey, cache_key
from storage.digest import sha256

_RUN: dict[str, Any] = {"argv": ("/bin/sh", "-c", "x"), "env": (("A", "1"),), "cwd": "/"}


def _key(op: Run | Copy, *inputs: str, contents: dict[int | None, str] | None = None) -> CacheKey:
    keys = [sha256(name.encode()) for name in inputs]
    return cache_key(op, keys, {number: sha256(text.encode()) for number, text in (contents or {}).items()})


def _mounting(*mounts: Mount) -> CacheKey:
    return _key(Run(**_RUN, mounts=mounts), "base")


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ({"id": "a"}, {"id": "b"}),
        ({"target": "/a"}, {"target": "/b"}),
        ({"sharing": "shared"}, {"sharing": "locked"}),
        ({"readonly": True}, {"readonly": False}),
        ({"mode": 0o700}, {"mode": -1}),
        ({"uid": 1}, {"uid": 0}),
        ({"gid": 1}, {"gid": 0}),
        ({"source": "a"}, {"source": "a/b"}),
        ({"kind": "secret"}, {"kind": "ssh"}),
        ({"kind": "secret", "required": True}, {"kind": "secret"}),
        ({"kind": "secret", "env": "E"}, {"kind": "secret"}),
        ({"kind": "tmpfs", "size": 1}, {"kind": "tmpfs"}),
        ({"input": 1}, {"input": 2}),
    ],
)
def test_every_option_of_a_mount_makes_another_key(one: dict[str, Any], other: dict[str, Any]) -> None:
    base: dict[str, Any] = {"kind": "cache", "target": "/t"}
    assert _mounting(Mount(**{**base, **one})) != _mounting(Mount(**{**base, **other}))


def test_mounts_are_plain_components_by_option() -> None:
    components = dict(_mounting(Mount("cache", "/c", id="pip", sharing="locked"), Mount("ssh", "/s")).components)
    assert components["mount 0 id"] == "pip"
    assert components["mount 0 sharing"] == "locked"
    assert components["mount 1 kind"] == "ssh"


def test_options_of_one_mount_cannot_pass_for_those_of_another() -> None:
    assert _mounting(Mount("cache", "/a", id="b"), Mount("cache", "/c")) != _mounting(
        Mount("cache", "/a"), Mount("cache", "/c", id="b")
    )


def test_the_content_of_a_context_mount_counts_under_its_mount() -> None:
    mounts = (Mount("bind", "/a", input=1), Mount("bind", "/a", input=2))
    op = Run(**_RUN, mounts=mounts)
    context_first = _key(op, "base", "stage", contents={0: "files"})
    context_second = _key(op, "base", "stage", contents={1: "files"})
    assert context_first != context_second
    assert _key(op, "base", "stage", contents={0: "other"}) != context_first


@pytest.mark.parametrize("change", [{"link": True}, {"parents": True}, {"excludes": ("x",)}, {"chmod": "u+x"}])
def test_flags_of_copy_are_in_its_key(change: dict[str, Any]) -> None:
    plain = _key(Copy(("a",), "/b"), "base", contents={None: "files"})
    assert _key(Copy(("a",), "/b", **change), "base", contents={None: "files"}) != plain


def test_keys_of_steps_that_use_nothing_new_are_those_of_earlier_versions() -> None:
    names = [name for name, _ in _key(Run(**_RUN), "base").components]
    assert names == ["schema", "op", "argv", "argv", "argv", "env", "cwd", "user", "network", "platform", "input"]
    names = [name for name, _ in _key(Copy(("a",), "/b"), "base", contents={None: "files"}).components]
    assert names == ["schema", "op", "source", "dest", "chown", "chmod", "unpack", "input", "content"]


def test_insecure_is_another_key() -> None:
    assert _key(Run(**_RUN, security="insecure"), "base") != _key(Run(**_RUN), "base")
