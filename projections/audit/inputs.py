"""What a build was, what went into it and what it gave, each with the event that says so."""

from __future__ import annotations

from typing import Any

from projections.audit.index import AuditIndex, Resolution
from projections.audit.statements import Attestation, Decision, Identity, Input, Result, Taint
from projections.audit.told import Told
from projections.fields import git_name, mapping, maybe_text, objects, size, text
from projections.mentions import GAVE, GIVEN
from projections.moments import event_at
from projections.steps import provider_name
from storage.errors import InputError
from storage.interfaces.log import Event

Json = dict[str, Any]
_ENDS = ("BuildCompleted", "BuildFailed", "BuildCancelled", "BuildInterrupted")
_SHOWN = ("target", "network", "no_cache", "epoch", "cache_from", "allow", "offline")
"""Options that change what a result is, beside those that are inputs of their own."""


def identity(told: Told) -> Identity:
    """The build itself. Raises LogError."""
    record = told.record
    begun, chosen = told.all("BuildStarted"), told.all("RuntimeChosen")
    data = begun[0].data if begun else {}
    runtime = f"{text(chosen[-1].data, 'runtime')} ({text(chosen[-1].data, 'version')})" if chosen else ""
    seqs = [event.seq for event in (*begun[:1], *chosen[-1:], *told.all(*_ENDS)[-1:])]
    return Identity(
        record.id, record.name, record.status, record.started, record.ended, text(data, "frontend", ""),
        text(data, "engine_version", ""), mapping(data, "host"), runtime, record.error or "", tuple(seqs),
    )  # fmt: skip


def results(told: Told) -> list[Result]:
    """What was exported, and the results that were not."""
    found = []
    for event in told.all("Exported", "CacheExported"):
        digest = text(event.data, "digest", "")
        ref, platform, seqs = _ref(told, digest)
        kind, target = text(event.data, "kind", "cache"), text(event.data, "target")
        found.append(Result(kind, target, digest, ref, platform, (event.seq, *seqs)))
    known = {(item.ref, item.digest) for item in found}
    for event in told.all("BuildCompleted"):
        for item in objects(event.data, "results"):
            ref, digest = text(item, "ref", ""), maybe_text(item, "digest") or ""
            if (ref, digest) not in known:
                found.append(Result("ref", text(item, "name", ""), digest, ref, text(item, "platform", ""),
                                    (event.seq,)))  # fmt: skip
    return found


def _ref(told: Told, digest: str) -> tuple[str, str, tuple[int, ...]]:
    """The ref and platform of an exported digest, and what says so."""
    for event in told.all("BuildCompleted"):
        for item in objects(event.data, "results"):
            if digest and item.get("digest") == digest:
                return text(item, "ref", ""), text(item, "platform", ""), (event.seq,)
    return "", "", ()


def inputs(told: Told) -> list[Input]:
    """Everything that went in, as far as the log knows it. Raises LogError."""
    found: list[Input] = []
    for event in told.all("BuildStarted"):
        found += _of_start(event)
    for event in told.all(*_FOUND):
        found.append(_FOUND[event.type](told, event))
    return found


def _plain(kind: str, name: str, value: str, event: Event, detail: str = "") -> Input:
    return Input(kind, name, value, detail, "", (), (event.seq,))


def _of_start(event: Event) -> list[Input]:
    data, options = event.data, mapping(event.data, "options")
    found = []
    if definition := text(data, "definition", ""):
        found.append(_plain("definition", text(data, "filename", "Dockerfile"), definition, event))
    if context := maybe_text(data, "context"):
        found.append(_plain("context", str(options.get("directory") or options.get("context") or ""), context, event))
    args = mapping(options, "args")
    found += [_plain("arg", str(name), str(value), event) for name, value in args.items()]
    for kind, key in (("secret", "secrets"), ("ssh", "ssh")):
        listed = options.get(key)
        found += [_plain(kind, str(name), "", event) for name in (listed if isinstance(listed, list) else ())]
    for name in _SHOWN:
        value = options.get(name)
        if value not in (None, "", [], {}, False):
            shown = ", ".join(map(str, value)) if isinstance(value, list) else str(value)
            found.append(_plain("option", name, shown, event))
    return found


def _image(told: Told, event: Event) -> Input:
    data = event.data
    digest, manifest = text(data, "digest"), text(data, "manifest")
    by, recalled = data.get("resolved_by"), data.get("recalled") is True
    who = provider_name(by if isinstance(by, dict) else mapping(data, "provider"))
    detail = f"{text(data, 'platform', '')} {'recalled, nobody was asked' if recalled else f'said {who}'}".strip()
    if manifest != digest:
        detail += f", manifest {manifest}"
    made, taint, seqs = _made_here(told, event, {digest, manifest})
    return Input("image", text(data, "reference"), digest, detail, made, taint, (event.seq, *seqs))


def _made_here(told: Told, event: Event, digests: set[str]) -> tuple[str, tuple[Taint, ...], tuple[int, ...]]:
    """The build of this log that gave the image first, and what its steps were lent."""
    for seq, _, build, _ in told.mentions.naming(digests, {GAVE}):
        if seq >= event.seq or build == told.record.id:
            break
        gave = event_at(told.log, seq)
        if gave.data.get("digest") not in digests or gave.data.get("kind") == "copy":
            continue
        try:
            record = told.history.get(build)
        except InputError:
            return build, (), (seq,)  # the log was begun in the midst of it
        lent = told.log.read(after=record.first_seq - 1, until=record.last_seq, types=frozenset(GIVEN))
        taint = tuple(
            Taint(GIVEN[item.type], text(item.data, "id", text(item.data, "security", "")),
                  text(item.data, "target", ""), "used", build, (item.seq,))
            for item in lent if item.build == build
        )  # fmt: skip
        return build, taint, (seq,)
    return "", (), ()


def _context(_told: Told, event: Event) -> Input:
    data = event.data
    files = size(data, "files")
    detail = f"{files} file{'' if files == 1 else 's'}, {size(data, 'bytes')} bytes that a step takes"
    return _plain("context", text(data, "name", ""), text(data, "listing"), event, detail)


def _http(_told: Told, event: Event) -> Input:
    recalled = "recalled, nobody was asked" if event.data.get("recalled") is True else ""
    return _plain("http", text(event.data, "url"), text(event.data, "digest"), event, recalled)


def _git(_told: Told, event: Event) -> Input:
    recalled = "recalled, nobody was asked" if event.data.get("recalled") is True else ""
    return _plain("git", git_name(event.data), text(event.data, "commit"), event, recalled)


def _definition(_told: Told, event: Event) -> Input:
    return _plain("definition", text(event.data, "filename", ""), text(event.data, "definition"), event)


def _layer(_told: Told, event: Event) -> Input:
    return _plain("layer", text(event.data, "name", "?"), text(mapping(event.data, "layer"), "digest"), event)


def _cache(_told: Told, event: Event) -> Input:
    records = size(event.data, "records")
    return _plain("cache", text(event.data, "source"), text(event.data, "digest", ""), event, f"{records} records")


_FOUND = {
    "DefinitionRead": _definition, "SourceResolved": _image, "HttpResolved": _http, "GitResolved": _git,
    "ContextScanned": _context, "LayerStored": _layer, "CacheImported": _cache,
}  # fmt: skip


def decisions(told: Told) -> list[Decision]:
    """What the policy said, in order; nothing for a build without one."""
    names = ("subject", "decision", "rule", "detail", "policy")
    found = told.all("PolicyDecided")
    return [Decision(**{name: text(event.data, name, "") for name in names}, seqs=(event.seq,)) for event in found]


def attestations(told: Told) -> list[Attestation]:
    """What was said of the build's images, in order."""
    names = ("image", "platform", "predicate_type", "statement", "envelope", "referrer", "key")
    found = told.all("Attested")
    return [Attestation(**{name: text(event.data, name, "") for name in names}, seqs=(event.seq,)) for event in found]


def resolutions(told: Told) -> list[Resolution]:
    """What the names that this build resolved were over time, in this log."""
    index = AuditIndex(told.views)
    asked: dict[tuple[str, str, str], None] = {}
    for event in told.all("SourceResolved", "HttpResolved", "GitResolved"):
        data = event.data
        match event.type:
            case "SourceResolved":
                asked["image", text(data, "reference"), text(data, "platform", "")] = None
            case "HttpResolved":
                asked["http", text(data, "url"), ""] = None
            case _:
                asked["git", git_name(data), ""] = None
    return [item for name in asked for item in index.resolutions(*name)]
