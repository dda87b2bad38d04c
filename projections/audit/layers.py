"""The layers of a build: which of them were ever looked at here, by whom they were served, which were let go."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import Any

from projections.audit.statements import (
    BEGUN,
    DIGEST_ONLY,
    LAID_OUT,
    MADE,
    NEVER,
    PART,
    WHOLE,
    Layer,
    LetGo,
    Result,
    Served,
)
from projections.audit.told import Told, layers_of, ref_event, refs_used
from projections.fields import mapping, objects, size, text, texts
from projections.mentions import GAVE, events_at
from projections.served import Served as Given
from projections.served import served
from projections.steps import provider_name, provider_names
from storage.interfaces.log import Event

Json = dict[str, Any]
_DONE = {
    "mounted": "mounted from {} by the registry: its bytes never came here",
    "present": "the target had it already: its bytes never came here",
    "uploaded": "uploaded",
    "": "its bytes never came here",
}
_Look = tuple[str, set[str]]
_WHOLLY: _Look = (WHOLE, {"digest", "diff_id"})
_LESS: tuple[_Look, ...] = ((DIGEST_ONLY, {"digest"}), (PART, {"toc"}), (PART, {"chunks"}))
"""The most telling one first."""


@dataclass(slots=True)
class _Use:
    """A layer and what names it. `packed`: its blobs, of a snapshot; `moved`: the entry of an export."""

    layer: Json
    result: bool
    named: set[int] = field(default_factory=set)
    providers: str = ""
    packed: list[Event] = field(default_factory=list)
    moved: Json = field(default_factory=dict)

    @property
    def names(self) -> set[str]:
        """All digests and ids of it."""
        named = {str(self.layer[key]) for key in ("digest", "diff_id", "snapshot") if self.layer.get(key)}
        return named | {str(event.data.get("digest")) for event in self.packed}


@dataclass(frozen=True, slots=True)
class Layers:
    """`layers` in the order in which refs of the build have them, `served` and `let_go` in the log's."""

    layers: list[Layer]
    served: list[Served]
    let_go: list[LetGo]


def layers(told: Told, results: Iterable[Result]) -> Layers:
    """Look at every layer that the build's refs and exports name. Raises LogError."""
    uses = _uses(told, {item.ref for item in results if item.ref}, {item.digest for item in results if item.digest})
    blobs = {name for use in uses for name in use.names if name.startswith("sha256:")}
    given: dict[str, list[Given]] = {}
    for item in served(told.log, told.mentions, blobs):
        given.setdefault(item.digest, []).append(item)
    stored = {
        str(event.data["layer"]["digest"]): event
        for event in events_at(told.log, told.mentions.seqs(blobs, {"LayerStored"}, last=1))
    }  # fmt: skip
    found = [_layer(told, use, given, stored) for use in uses]
    return Layers(found, [*_documents(told, given), *_served(given)], _let_go(told, uses))


def _uses(told: Told, results: set[str], digests: set[str]) -> list[_Use]:
    uses: dict[str, _Use] = {}
    for ref in dict.fromkeys((*results, *refs_used(told))):
        event = ref_event(told, ref)
        if event is None:
            continue
        known = provider_names(objects(event.data, "providers"))
        for layer in layers_of(event):
            name = str(layer.get("snapshot") or layer.get("digest") or layer.get("diff_id"))
            use = uses.setdefault(name, _Use(layer, ref in results))
            use.named.add(event.seq)
            use.result = use.result or ref in results
            use.providers = use.providers or provider_names(objects(layer, "providers")) or known
    _pack(told, uses)
    blobs = {name: use for use in uses.values() for name in use.names}
    for event in _exports(told, digests):
        for moved in objects(event.data, "layers"):
            digest = text(moved, "digest", "")
            use = blobs.get(digest) or uses.setdefault(digest, _Use({"digest": digest}, result=True))
            use.moved = moved
            use.named.add(event.seq)
    _pack(told, {name: use for name, use in uses.items() if not use.packed})
    return list(uses.values())


def _pack(told: Told, uses: dict[str, _Use]) -> None:
    """Which blobs the snapshots became, and which blobs were made here, of a snapshot or of another blob."""
    for event in events_at(told.log, told.mentions.seqs(uses, {"BlobCreated"}, until=told.record.last_seq)):
        data = event.data
        names = [text(data, "digest")]
        if not text(data, "source", ""):
            names.append(text(data, "snapshot", "") or text(data, "ref", ""))
        for name in names:
            if name in uses:
                uses[name].packed.append(event)


def _exports(told: Told, digests: set[str]) -> list[Event]:
    """Exports of this build; of one that had nothing to move, and so names no layers, the last that did."""
    found = told.all("Exported", "CacheExported")
    if not any(objects(event.data, "layers") for event in found):
        seqs = told.mentions.seqs(digests, {GAVE}, until=told.record.last_seq, last=20)
        known = [event for event in events_at(told.log, seqs) if objects(event.data, "layers")]
        found += known[-1:]
    return found


def _layer(told: Told, use: _Use, given: dict[str, list[Given]], stored: dict[str, Event]) -> Layer:
    layer, snapshot = use.layer, str(use.layer.get("snapshot") or "")
    digest = str(layer.get("digest") or "")
    named = tuple(sorted(use.named))
    if use.packed:
        last = use.packed[-1]
        digest = text(last.data, "digest")
        layer = {**layer, "diff_id": text(last.data, "diff_id", "")}
    known = Layer(digest, str(layer.get("diff_id") or ""), snapshot, MADE, "", "", use.result, "", named)
    if snapshot or use.packed:
        build = snapshot.partition("-")[0] or (use.packed[-1].build or "")
        seqs = {*named, *(event.seq for event in use.packed)}
        detail = "" if use.packed else "not packed: it has no digest yet"
        if use.packed and (source := text(use.packed[-1].data, "source", "")):
            detail = f"converted from {source}"
        return replace(known, build=build, seqs=tuple(sorted(seqs)), detail=detail)
    if digest in stored:
        event = stored[digest]
        detail = f"came as file {text(event.data, 'name', '?')}"
        return replace(known, state=WHOLE, build=event.build or "", detail=detail, seqs=(event.seq,))
    return _looked_at(told, known, use, given.get(digest, []))


def _looked_at(told: Told, known: Layer, use: _Use, given: list[Given]) -> Layer:
    """The most that was ever looked at of a layer from elsewhere."""
    found = _checked(known, given, _WHOLLY) or _laid_out(told, known) or _checked(known, given, *_LESS)
    if found is not None:
        (seq,) = found.seqs
        later = "" if seq <= (told.record.last_seq or seq) else ", after this build"
        return replace(found, seqs=tuple(sorted({*known.seqs, seq})), detail=f"{found.detail}{later}")
    if begun := _begun(told, known.digest):
        detail = f"build {begun.build or '?'} began to pull it"
        who = provider_name(mapping(begun.data, "provider"))
        return replace(known, state=BEGUN, provider=who, detail=detail, seqs=tuple(sorted({*known.seqs, begun.seq})))
    done = str(use.moved.get("transport") or "")
    source = str(use.moved.get("source") or "")
    detail = _DONE.get(done, done).format(source or "elsewhere")
    return replace(known, state=NEVER, provider=use.providers or source, detail=detail)


def _checked(known: Layer, given: list[Given], *looks: _Look) -> Layer | None:
    """By what was checked of its blob when somebody gave it."""
    for state, wanted in looks:
        for item in given:
            if wanted <= set(item.verified):
                return replace(
                    known, state=state, build=item.build, provider=item.provider, detail=item.how, seqs=(item.seq,)
                )
    return None


def _laid_out(told: Told, known: Layer) -> Layer | None:
    """What says that the content of a layer came to be mountable here, without a pull of its blob."""
    names = {known.diff_id} - {""}
    for event in events_at(told.log, told.mentions.seqs(names, {"LayerLaidOut", "LayerPulled"})):
        if event.data.get("diff_id") != known.diff_id:
            continue
        provider = provider_name(mapping(event.data, "provider")) if event.type == "LayerPulled" else ""
        return replace(
            known, state=LAID_OUT, build=event.build or "", provider=provider, detail=_came(event), seqs=(event.seq,)
        )
    return None


def _came(event: Event) -> str:
    if event.type == "LayerPulled":
        return f"its content came as blob {text(event.data, 'digest')}"
    if text(event.data, "how", "") == "unpacked":
        return "unpacked from the blob, which lay here: all of it has the diff ID"
    looked = "read again: all of it has the diff ID" if "diff_id" in texts(event.data, "verified") else (
        "looked at again: no file has another size or time than when it was laid out"
    )  # fmt: skip
    return f"found to be mountable here, and {looked}; no event tells who gave it"


def _begun(told: Told, digest: str) -> Event | None:
    """The last pull of a blob whose end is in no event."""
    names = {digest} - {""}
    begun: dict[str | None, Event] = {}
    for event in events_at(told.log, told.mentions.seqs(names, {"PullStarted", "PullFailed"})):
        if event.data.get("digest") == digest:
            begun[event.build] = event
    open_ = [event for event in begun.values() if event.type == "PullStarted"]
    return max(open_, key=lambda event: event.seq, default=None)


# ---------------------------------------------------------------- who served what


def _served(given: dict[str, list[Given]]) -> list[Served]:
    found = [
        Served(
            item.digest, "", item.provider, item.mirror_of, item.how, item.bytes, item.verified, item.build, item.time,
            (item.seq,),
        )
        for items in given.values() for item in items
    ]  # fmt: skip
    return sorted(found, key=lambda item: item.seqs)


_VERBS = {"resolve": "said what the tag is", "manifest": "gave the manifest", "pull": "gave the document"}


def _documents(told: Told, given: dict[str, list[Given]]) -> list[Served]:
    """Manifests, configs and tags that registries were asked for. A digest that was asked for by name is checked."""
    found = []
    for event in told.all("SourceTried"):
        data = event.data
        verb, name = text(data, "verb", ""), text(data, "name", "")
        if text(data, "outcome", "") != "ok" or verb not in _VERBS or name in given:
            continue
        digest = name if name.startswith("sha256:") else ""
        checked = ("digest",) if digest and verb != "resolve" else ()
        who = data.get("provider")
        found.append(Served(
            digest, "" if digest else name, provider_name(who if isinstance(who, dict) else {}),
            text(data, "mirror_of", ""), _VERBS[verb], size(data, "bytes"), checked, told.record.id, event.time,
            (event.seq,),
        ))  # fmt: skip
    return found


def _let_go(told: Told, uses: list[_Use]) -> list[LetGo]:
    """Bytes of these layers that were let go since the build began."""
    names = {name for use in uses for name in use.names}
    found = []
    for event in events_at(told.log, told.mentions.seqs(names, {"Pruned", "Demoted"})):
        data = event.data
        if event.seq < told.record.first_seq or not {data.get("name"), data.get("digest")} & names:
            continue
        during = told.record.last_seq is None or event.seq < told.record.last_seq
        found.append(LetGo(
            text(data, "kind"), text(data, "name"), provider_names(objects(data, "providers")),
            text(data, "policy", ""), text(data, "by", ""), size(data, "bytes"), event.time, during, (event.seq,),
        ))  # fmt: skip
    return found
