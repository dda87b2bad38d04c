"""What a replay says before it runs anything: the steps, where their inputs come from, what cannot be had again."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import TYPE_CHECKING

from engine.graph import Run, Scratch
from tools.format import human_bytes, local_time

if TYPE_CHECKING:
    from engine.replay import Survey
    from tools.replaying.replaying import Announcement

_STEPS = 12
_PLACES = {"here": "here", "bundle": "in the bundle", "provider": "at", "nowhere": "nowhere any more"}


def announce(said: Announcement) -> Iterator[str]:
    """Lines for people, not yet cleaned."""
    story = said.recorded.story
    host = story.started.get("host", {}).get("hostname", "?")
    where = ", from a bundle" if said.recorded.source else ""
    when = f"{story.record.status} {local_time(story.record.started)}"
    yield f"replaying build {story.record.id} ({when} on {host}{where})"
    if said.recorded.graph is None:
        yield "  reads the definition anew: the build ended before it had a graph"
        return
    again = {vertex.digest for vertex in said.steps.again}
    wanted = [v for v in said.steps.run if v.digest not in again and not isinstance(v.op, Scratch)]
    remade = [v for v in said.steps.again if not isinstance(v.op, Scratch)]
    for title, vertices in (("runs", wanted), ("runs again, as nobody has its result:", remade)):
        yield from (f"  {title} {vertex.name}" for vertex in vertices[:_STEPS])
        if len(vertices) > _STEPS:
            yield f"  {title} {len(vertices) - _STEPS} more steps"
    for digest, survey in said.surveys.items():
        if digest in again:
            continue
        yield f"  stands on {said.recorded.name(digest)}: {_places(survey)}"
    yield from (f"  cannot be had again: {item}" for item in _not_again(said))
    yield from (f"  left out of the bundle: {item['kind']} {item['name']}" for item in said.recorded.withheld)


def _places(survey: Survey) -> str:
    """`3 layers here, 1 in the bundle, 2 (2.4MB) at host/name`."""
    if not survey.places:
        return "nothing"
    parts = []
    for kind, name in _PLACES.items():
        layers = [place.layer for place in survey.places if place.kind == kind]
        if not layers:
            continue
        size = sum(layer.blob.size for layer in layers if layer.blob)
        hosts = sorted({str(layer.providers[0]) for layer in layers if layer.providers})
        at = f" {', '.join(hosts)}" if kind == "provider" else ""
        parts.append(f"{len(layers)} {name}{at}" + (f" ({human_bytes(size)})" if kind == "provider" else ""))
    count = len(survey.places)
    return f"{count} layer{'s' if count > 1 else ''}: {', '.join(parts)}"


def _not_again(said: Announcement) -> Iterator[str]:
    told = set()
    for vertex in said.steps.run:
        if not isinstance(vertex.op, Run):
            continue
        for mount in vertex.op.mounts:
            match mount.kind:
                case "secret" if mount.id not in said.offered.secrets:
                    told.add(f"secret {mount.id!r}, unless it is given (--secret id={mount.id},…)")
                case "ssh" if mount.id not in said.offered.agents:
                    told.add(f"ssh agent {mount.id!r}, unless it is given (--ssh {mount.id})")
                case "cache":
                    told.add(f"cache mount {mount.id or mount.target!r} as it was: it is what this root has of it")
        if vertex.op.network == "host":
            told.add("the network as it was: the step may reach whatever it reaches from here")
    yield from sorted(told)
    then, now = said.recorded.story.started.get("host", {}), os.uname()
    if (then.get("machine"), then.get("kernel")) != (now.machine, now.release):
        was = f"Linux {then.get('kernel', '?')} on {then.get('machine', '?')}"
        yield f"the host: {was} then, Linux {now.release} on {now.machine} now"
