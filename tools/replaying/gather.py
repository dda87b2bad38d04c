"""What a bundle takes along of the bytes of a root: documents, files of contexts, and layers nobody else has."""

from __future__ import annotations

import tarfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, BinaryIO

from engine.frontend.dockerignore import IgnoreMatcher
from engine.graph import Copy, Graph
from engine.ops.keep import listed
from engine.refs.ref import Layer
from storage.bundle.form import Index, Member
from storage.digest import Digest, Hasher, sha256
from storage.errors import InputError
from storage.interfaces.blobs import BlobStore
from storage.interfaces.images import Descriptor, Provider
from storage.layers.tars import StoredTars, regular_files
from storage.tar.filelist import dump, list_tar
from storage.tar.pack import encode
from storage.tar.reader import BLOCK, HARD_LINK, REGULAR, TarReader
from tools.documents import small_blobs
from tools.replaying.story import Kept, Story, as_packed, layers_of

LAYER_TAR = "application/vnd.oci.image.layer.v1.tar"
_READ = 1 << 20
_NOTHING = sha256(b"")
Fetch = Callable[[Layer, Callable[[bytes], Any]], None]
"""Brings the blob of a layer from one of its providers; raises RegistryError, VerificationError."""


@dataclass(frozen=True, slots=True)
class Wish:
    """`full`: the bytes of all layers; `context`: files of contexts; `redact`: patterns, as in .dockerignore, of files
    that must not leave."""

    full: bool = False
    context: bool = True
    redact: tuple[str, ...] = ()


@dataclass(slots=True)
class Gathering:
    """Gathers into `staging`, a directory that the caller removes. `fetch`: only for `full`; `providers`: everyone
    known to have a blob."""

    story: Story
    graph: Graph | None
    blobs: BlobStore
    tars: StoredTars
    staging: Path
    wish: Wish
    providers: Callable[[Digest], Sequence[Provider]]
    fetch: Fetch
    _members: dict[Digest, Member] = field(default_factory=dict)
    _layers: dict[str, dict[str, Any]] = field(default_factory=dict)
    _kept: dict[str, list[str]] = field(default_factory=dict)
    _files: dict[str, str] = field(default_factory=dict)
    _withheld: list[dict[str, Any]] = field(default_factory=list)
    _secret: set[str] = field(default_factory=set)
    _patterns: IgnoreMatcher | None = None

    def gather(self, version: str, proof: bytes | None = None) -> Index:
        """Everything but the events; `proof` of these. Blocking. Raises DiskError, VerificationError, RegistryError,
        InputError."""
        self._patterns = IgnoreMatcher(self.wish.redact) if self.wish.redact else None
        self._documents()
        self._contexts()
        for layer in self._wanted():
            self._layer(layer)
        if self.story.record.status == "completed":
            self._lists()
        if proof is not None:
            path = self.staging / "proof"
            path.write_bytes(proof)
            self._stage(path, "proof")
        order = {"layer": 2, "pack": 1}
        members = sorted(self._members.values(), key=lambda m: (order.get(m.role, 0), m.role, m.digest))
        return Index(
            self.story.record.id, version, tuple(members), dict(sorted(self._layers.items())),
            dict(sorted(self._kept.items())), dict(sorted(self._files.items())),
            tuple(sorted(self._withheld, key=lambda item: (item["kind"], item["name"]))), self.wish.full,
        )  # fmt: skip

    def open(self, digest: Digest) -> BinaryIO:
        """What was gathered under `digest`. Raises FileNotFoundError."""
        staged = self.staging / digest.hex
        return staged.open("rb") if staged.exists() else self.blobs.open(digest)

    def _left_out(self, kind: str, name: str, why: str) -> None:
        item = {"kind": kind, "name": name, "why": why}
        if item not in self._withheld:
            self._withheld.append(item)

    # ------------------------------------------------------------ documents

    def _documents(self) -> None:
        for text, role in small_blobs(self.story.told).items():
            digest = Digest(text)
            if role == "listing" and not self.wish.context:
                continue
            size = self.blobs.size(digest)
            if size is None:
                self._left_out(role, text, "it is not here any more")
            else:
                self._members[digest] = Member(digest, size, role)

    # ------------------------------------------------------------ contexts

    def _contexts(self) -> None:
        listings = sorted({listing for taken in self.story.listings.values() for _, listing in taken})
        for listing in listings:
            try:
                rows = listed(self.blobs.get(Digest(listing)))
            except FileNotFoundError:
                continue  # said with the documents
            for path, content in rows:
                if not self.wish.context:
                    self._secret.add(content)
                elif self._redacted(path):
                    self._secret.add(content)
                    self._left_out("file", path, "redacted")
        self._secret.discard(str(_NOTHING))  # all empty files are the same: it says nothing
        if not self.wish.context:
            if listings:
                self._left_out("context", f"{len(listings)} selections", "--no-context")
            return
        wanted = {
            listing: {content for _, content in listed(self.blobs.get(Digest(listing)))} - self._secret
            for listing in listings
            if self.blobs.size(Digest(listing)) is not None
        }
        self._pack(wanted)

    def _redacted(self, path: str) -> bool:
        """A pattern without a slash means a name in any directory."""
        matcher = self._patterns
        return matcher is not None and (matcher.excluded(path) or matcher.excluded(path.rpartition("/")[2]))

    def _pack(self, wanted: Mapping[str, set[str]]) -> None:
        """One pack with the contents of all listings, as engine/ops/keep.py makes them."""
        missing = {content for contents in wanted.values() for content in contents}
        found: dict[str, tuple[Path, int]] = {}
        for listing in wanted:
            for kept in self.story.kept.get(listing, ()):
                if missing - found.keys():
                    self._find(kept, missing, found)
        for content in sorted(missing - found.keys()):
            self._left_out("content", content, "it is not kept here any more")
        if not found:
            return
        pack = self.staging / "pack"
        with pack.open("wb") as out, tarfile.open(fileobj=out, mode="w|", format=tarfile.PAX_FORMAT) as tar:
            for content, (path, mtime) in sorted(found.items()):
                info = tarfile.TarInfo(content.partition(":")[2])
                info.size, info.mtime = path.stat().st_size, mtime
                with path.open("rb") as file:
                    tar.addfile(info, file)
        digest = self._stage(pack, "pack")
        for path, _ in found.values():
            path.unlink()
        self._kept = {listing: [str(digest)] for listing, contents in wanted.items() if contents & found.keys()}

    def _find(self, kept: Kept, wanted: set[str], found: dict[str, tuple[Path, int]]) -> None:
        for pack in kept.packs:
            try:
                with self.blobs.open(pack) as file:
                    self._look(file, wanted, found)
            except FileNotFoundError:
                continue
        if kept.layer and wanted - found.keys():
            tar = self._tar(self._known(kept.layer))
            if tar is not None:
                with tar.open("rb") as file:
                    self._look(file, wanted, found)
                tar.unlink()

    def _look(self, file: BinaryIO, wanted: set[str], found: dict[str, tuple[Path, int]]) -> None:
        for _, mtime, pieces in regular_files(file):
            path, hasher = self.staging / "content", Hasher()
            with path.open("wb") as out:
                for piece in pieces:
                    hasher.update(piece)
                    out.write(piece)
            digest = str(hasher.digest())
            if digest in wanted and digest not in found:
                kept = self.staging / f"content-{hasher.digest().hex}"
                path.rename(kept)
                found[digest] = kept, mtime // 1_000_000_000

    # ------------------------------------------------------------ layers

    def _wanted(self) -> list[Layer]:
        """Layers that a step which was not ended stands on; with `full` those of everything that was used."""
        refs = {ref for item in self.story.unfinished for ref in item.inputs}
        if self.wish.full:
            refs |= {ref for item in self.story.executions.values() for ref in item.inputs}
            refs |= set(self.story.results.values())
        layers = {layer.name: layer for ref in sorted(refs) for layer in layers_of(self.story, ref)}
        return [layers[name] for name in sorted(layers)]

    def _known(self, layer: Layer) -> Layer:
        """`layer` with the blob it was packed into as it was, and everyone who has that."""
        layer = as_packed(self.story, layer)
        if layer.blob is None:
            return layer
        known = (*layer.providers, *self.providers(layer.blob.digest))
        return replace(layer, providers=tuple(dict.fromkeys(known)))

    def _layer(self, layer: Layer) -> None:
        known = self._known(layer)
        said = known.to_json()
        if known.blob is None or not known.providers or self.wish.full:
            if self._copied(layer) and (not self.wish.context or self._unpacks(layer)):
                self._left_out("layer", layer.name, "made of the context")
            else:
                said |= self._bundled(known)
        self._layers[layer.name] = said

    def _bundled(self, layer: Layer) -> dict[str, Any]:
        """Stage the tar of `layer`; `{bundled: descriptor}`, or nothing when its bytes cannot be had."""
        tar = self._tar(layer)
        if tar is None and layer.blob is not None and layer.providers and self.wish.full:
            tar = self.staging / "tar"
            with tar.open("wb") as out:
                self.fetch(layer, out.write)
        if tar is None:
            self._left_out("layer", layer.name, "its bytes are not here any more, and nobody is known to have them")
            return {}
        if self._secret or self._patterns:
            self._clean(tar, layer.name)
        size = tar.stat().st_size
        digest = self._stage(tar, "layer")
        return {"bundled": Descriptor(LAYER_TAR, digest, size).to_json()}

    def _tar(self, layer: Layer) -> Path | None:
        path = self.staging / "tar"
        with path.open("wb") as out:
            here = self.tars.write(out.write, snapshot=layer.snapshot, diff_id=layer.diff_id, blob=layer.blob)
        if not here:
            path.unlink()
        return path if here else None

    def _stage(self, path: Path, role: str) -> Digest:
        hasher = Hasher()
        with path.open("rb") as file:
            while data := file.read(_READ):
                hasher.update(data)
        digest = hasher.digest()
        path.rename(self.staging / digest.hex)
        self._members.setdefault(digest, Member(digest, hasher.size, role))
        return digest

    def _maker(self, layer: Layer) -> str:
        """The vertex that made `layer`, "" when no step of the build did."""
        return next((v for v, ref in self.story.results.items() if ref == layer.snapshot and layer.snapshot), "")

    def _copied(self, layer: Layer) -> Copy | None:
        """The COPY that made `layer` of a context, if one did."""
        maker = self._maker(layer)
        op = self.graph.by_digest[Digest(maker)].op if maker and self.graph else None
        return op if isinstance(op, Copy) and op.from_context and op.sources else None

    def _unpacks(self, layer: Layer) -> bool:
        """Was it unpacked from an archive that must not leave?"""
        op = self._copied(layer)
        if op is None or not op.unpack:
            return False
        listings = [Digest(listing) for _, listing in self.story.listings.get(self._maker(layer), ())]
        taken = {content for listing in listings for _, content in listed(self.blobs.get(listing))}
        return bool(taken & self._secret)

    def _clean(self, tar: Path, name: str) -> None:
        """Take what must not leave out of the tar."""
        dropped: set[int] = set()
        names: set[bytes] = set()
        with tar.open("rb") as file:
            reader = TarReader(file)
            for number, entry in enumerate(reader):
                hasher = Hasher()
                for piece in reader.data():
                    hasher.update(piece)
                secret = entry.type == REGULAR and str(hasher.digest()) in self._secret
                linked = entry.type == HARD_LINK and entry.link in names
                path = entry.name.decode("utf-8", "replace").removeprefix("./").rstrip("/")
                if secret or linked or (entry.type in {REGULAR, HARD_LINK} and self._redacted(path)):
                    dropped.add(number)
                    names.add(entry.name)
                    self._left_out("file", f"/{path} in layer {name}", "redacted")
        if dropped:
            self._rewrite(tar, dropped)

    def _rewrite(self, tar: Path, dropped: set[int]) -> None:
        new = self.staging / "clean"
        with tar.open("rb") as file, new.open("wb") as out:
            reader = TarReader(file)
            for number, entry in enumerate(reader):
                if number in dropped:
                    continue
                if entry.segments is not None:
                    raise InputError("a layer with sparse files cannot be redacted", hint="bundle without --full")
                out.write(encode(entry))
                for piece in reader.data():
                    out.write(piece)
                if entry.type == REGULAR and entry.size % BLOCK:
                    out.write(bytes(-entry.size % BLOCK))
            out.write(bytes(2 * BLOCK))
        new.rename(tar)

    # ------------------------------------------------------------ what steps changed

    def _lists(self) -> None:
        """Lists of what each step changed, to compare another build with."""
        for ref in sorted(set(self.story.results.values())):
            layers = self.story.refs.get(ref, ())
            layer = layers[-1] if layers else None
            if layer is None or layer.snapshot != ref:
                continue
            tar = self._tar(self._known(layer))
            if tar is None:
                self._left_out("files", ref, "the result is not here any more")
                continue
            with tar.open("rb") as file:
                data = dump(list_tar(file))
            tar.unlink()
            path = self.staging / "list"
            path.write_bytes(data)
            self._files[ref] = str(self._stage(path, "files"))
