"""When rules are asked, and of what: each thing once, and nobody where nobody may be asked."""

from __future__ import annotations

import asyncio

import pytest

from engine.errors import PolicyViolation
from engine.events import PolicyDecided
from engine.graph import ArchiveSource, Graph, HttpSource, Mount, Run, Scratch, vertex
from engine.policy.gate import Gate
from engine.policy.parse import parse_policy
from engine.policy.subjects import of_graph
from engine.refs.ref import Layer
from storage.digest import sha256
from storage.interfaces.images import Provider
from storage.reference import parse_reference
from storage.signing.notes import new_signer
from tests.engine.solver.kit import Recorded

KEY = str(new_signer("ours.example", b"k" * 32).verifier)
IMAGE = parse_reference("debian:12")


def gate(told: Recorded, rule: str) -> Gate:
    policy = parse_policy(f'[[rule]]\nname = "r"\n{rule}\n'.encode(), "p.toml")
    return Gate((policy,), told, lambda: 0, None, lambda layers: [True for _ in layers])


def test_what_is_asked_twice_is_decided_and_told_once() -> None:
    told = Recorded()
    asked = gate(told, 'kind = "images"\ndeny = ["evil.example"]')
    for _ in range(2):
        asked.named(IMAGE)
    assert [fact.decision for fact in told.of(PolicyDecided)] == ["allowed"]
    for _ in range(2):
        with pytest.raises(PolicyViolation):
            asked.named(parse_reference("evil.example/x"))
    assert [fact.decision for fact in told.of(PolicyDecided)] == ["allowed", "denied"]


def test_where_nobody_may_be_asked_nobody_vouches() -> None:
    digest = sha256(b"manifest")
    with pytest.raises(PolicyViolation, match=r"nothing that ours\.example signed vouches"):
        asyncio.run(
            gate(Recorded(), f'kind = "signatures"\nkeys = ["{KEY}"]').resolved(
                IMAGE, digest, digest, Provider.of("docker.io", "library/debian"), None
            )
        )


def test_of_a_graph_rules_are_asked_what_steps_fetch_and_what_they_are_lent() -> None:
    below = vertex(Scratch(), (), "FROM scratch")
    mounts = (Mount("cache", target="/c"), Mount("secret", id="key", target="/k"))
    run = vertex(Run(argv=("x",), env=(), cwd="/", mounts=mounts), (below.digest,), "RUN x")
    given = vertex(ArchiveSource("", str(sha256(b"tar"))), (), "context")
    page = vertex(HttpSource("https://h.example/f", "f"), (), "ADD")
    asked = [(subject.kind, subject.name) for _, subject in of_graph(Graph((below, run, given, page), ()))]
    assert asked == [("network", "host"), ("secret", "key"), ("url", "h.example/f")]


@pytest.mark.parametrize("first", ["images", "layers"])
def test_what_one_of_several_policies_forbids_is_forbidden_also_of_layers(first: str) -> None:
    """A policy that has nothing to say of layers takes nothing from one that has, wherever it stands."""
    rules = {"images": 'kind = "images"\ndeny = ["evil.example"]', "layers": 'kind = "layers"\nfetch = true'}
    order = (first, *(kind for kind in rules if kind != first))
    policies = [parse_policy(f'[[rule]]\nname = "{kind}"\n{rules[kind]}\n'.encode(), kind) for kind in order]
    asked = Gate(tuple(policies), Recorded(), lambda: 0, None, lambda layers: [False for _ in layers])
    assert asked.fetches
    with pytest.raises(PolicyViolation, match="never byte-verified here"):
        asked.layers([Layer(sha256(b"layer"))])
    with pytest.raises(PolicyViolation):
        asked.named(parse_reference("evil.example/x"))
