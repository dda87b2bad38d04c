"""Archives: an OCI image layout in a tar (`type=oci`), or that with docker's own index beside it (`type=docker`).

Remote layers stream from their provider straight into the archive. Sources: OCI image-spec image-layout.md; the
manifest.json that `docker save` writes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from engine.events import Exported, ExportStarted
from engine.exporters.image import Bundle, Image
from engine.exporters.reading import BlobReader, drain
from engine.ledger import Facts, fitting
from engine.output import Output
from storage.digest import Digest, canonical_json
from storage.interfaces.images import Provider, Reference
from storage.interfaces.packing import Archive
from storage.media_types import INDEX


@dataclass(slots=True)
class ArchiveExporter:
    """`open_archive(dest)` begins the file; it gets its name only when complete."""

    reader: BlobReader
    facts: Facts
    open_archive: Callable[[str], Archive]

    async def export(self, made: Bundle, output: Output) -> None:
        """Write `made` to `output.dest`. Raises DiskError,
        MaterializationError."""
        kind, dest = output.kind, output.dest
        compression = output.form.compression.written
        unique = made.layers
        layers = fitting([*map(str, unique)])
        started = await self.facts.record(
            ExportStarted(
                kind=kind, target=dest, digest=str(made.digest), layers=layers, compression=compression
            )
        )
        if _is_stream(dest):
            moved = await self._write(made, output)  # what went out cannot be taken back
        else:
            moved = await self.reader.anew(unique.values(), lambda: self._write(made, output))
        await self.facts.record(
            Exported(
                kind=kind, target=dest, digest=str(made.digest), layers=fitting(moved), compression=compression
            ),
            cause=started,
        )

    async def _write(self, made: Bundle, output: Output) -> list[dict[str, object]]:
        """The archive; returns what `Exported.layers` says of it."""
        kind, dest, names = output.kind, output.dest, output.names
        archive = self.open_archive(dest)
        moved: list[dict[str, object]] = []
        try:
            archive.add("oci-layout", canonical_json({"imageLayoutVersion": "1.0.0"}))
            for digest, layer in made.layers.items():
                assert layer.blob is not None
                archive.begin(_path(digest), layer.blob.size)
                shown = self.reader.progress(dest, layer.blob, "written")
                served: list[Provider] = []
                await drain(self.reader.read(layer, shown, served.append), archive.write)
                source = ", ".join(map(str, served))
                moved.append(
                    {"digest": str(digest), "transport": "written", "bytes": layer.blob.size, "source": source}
                )
            small = {_path(image.config_blob.digest): image.config for image in made.listed}
            small |= {_path(image.digest): image.manifest for image in made.listed}
            for path, data in (small | {_path(made.digest): made.top}).items():
                archive.add(path, data)
            archive.add("index.json", _index(made, names))
            if kind == "docker":
                archive.add("manifest.json", _docker_index(made.images[0], names))
            archive.commit()
        finally:
            archive.abort()
        return moved


def _is_stream(dest: str) -> bool:
    """Standard output, a pipe, a device."""
    path = Path(dest)
    return dest == "-" or (path.exists() and not path.is_file())


def _path(digest: Digest) -> str:
    return f"blobs/{digest.algorithm}/{digest.hex}"


def entries(made: Bundle, names: Sequence[Reference]) -> list[dict[str, Any]]:
    """What the index.json of a layout says of `made`: once for each of `names`, or once."""
    descriptor = made.descriptor.to_json()
    noted = descriptor.get("annotations", {})
    return [
        {
            **descriptor,
            "annotations": {
                **noted,
                "io.containerd.image.name": str(name),
                "org.opencontainers.image.ref.name": name.tag or "latest",
            },
        }
        for name in names
    ] or [descriptor]


def _index(made: Bundle, names: Sequence[Reference]) -> bytes:
    return canonical_json({"schemaVersion": 2, "mediaType": INDEX, "manifests": entries(made, names)})


def _docker_index(image: Image, names: Sequence[Reference]) -> bytes:
    return canonical_json(
        [
            {
                "Config": _path(image.config_blob.digest),
                "RepoTags": [_familiar(name) for name in names] or None,
                "Layers": [_path(layer.blob.digest) for layer in image.layers if layer.blob],
            }
        ]
    )


def _familiar(name: Reference) -> str:
    """The name as docker prints it: docker.io and library/ left out."""
    repository = f"{name.registry}/{name.repository}"
    return f"{repository.removeprefix('docker.io/').removeprefix('library/')}:{name.tag or 'latest'}"
