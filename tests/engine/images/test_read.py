"""What is read of manifests and configs, whatever a registry gives."""

from __future__ import annotations

import asyncio
import sys
import threading
from pathlib import Path
from typing import Any

import pytest

from engine.images import index as making
from engine.images.choose import chosen
from engine.images.index import Assembler, IndexRequest, read_config
from engine.images.intake import LayerFiles
from engine.images.read import CONFIG_LIMIT, ImageReader, Manifest
from storage.blobs import DirectoryBlobs
from storage.digest import canonical_json, sha256
from storage.errors import DiskError, InputError, RegistryError, VerificationError
from storage.interfaces.images import Descriptor, Platform, Provider
from storage.media_types import CONFIG, INDEX
from storage.reference import parse_reference
from tests.contracts.registries import Client, MemoryKit, index, put_image

HERE = Provider.of("h", "r")
AMD = Platform("linux", "amd64")


@pytest.fixture
def images(tmp_path: Path) -> ImageReader:
    return ImageReader(None, DirectoryBlobs(tmp_path, owner="test"))  # type: ignore[arg-type]  # nothing is fetched


def _kept(images: ImageReader, data: bytes) -> Descriptor:
    return Descriptor(CONFIG, images.blobs.put(data), len(data))


@pytest.mark.parametrize(("data", "what"), [(b"{", "is not JSON"), (b"[1]", "is not a JSON object")])
def test_what_is_no_manifest_or_config_is_refused(images: ImageReader, data: bytes, what: str) -> None:
    blob = _kept(images, data)
    with pytest.raises(VerificationError, match=f"h/r: the manifest {what}"):
        asyncio.run(images.manifest(HERE, blob.digest, "h/r"))
    with pytest.raises(VerificationError, match=f"h/r: the image's config {what}"):
        asyncio.run(read_config(images, HERE, blob, "h/r"))


def test_a_config_that_would_fill_the_memory_is_not_asked_for(images: ImageReader) -> None:
    with pytest.raises(VerificationError, match="is larger than"):
        asyncio.run(images.config(HERE, Descriptor(CONFIG, sha256(b"x"), CONFIG_LIMIT + 1), "h/r"))


@pytest.mark.parametrize("config", [b"[]", b"{", b'{"os": "linux", "architecture": "arm64"}'])
def test_an_image_that_is_no_index_is_taken_for_its_own_platform_only(images: ImageReader, config: bytes) -> None:
    own = _kept(images, b'{"os": "linux", "architecture": "amd64"}')
    top = _image(own)
    assert asyncio.run(chosen(images, HERE, top, [AMD], "h/r")) is top
    with pytest.raises((VerificationError, InputError), match=r"malformed|is for linux/arm64, not linux/amd64"):
        asyncio.run(chosen(images, HERE, _image(_kept(images, config)), [AMD], "h/r"))


def _image(config: Descriptor) -> Manifest:
    fields: dict[str, Any] = {"schemaVersion": 2, "config": config.to_json(), "layers": []}
    data = canonical_json(fields)
    return Manifest(sha256(data), data, fields)


class _Terminal:
    """Standard input that is one."""

    def isatty(self) -> bool:
        return True


def test_a_layer_is_not_read_from_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    class Clock:
        def now(self) -> int:
            return 0

    monkeypatch.setattr(sys, "stdin", _Terminal())
    files = LayerFiles(None, None, None, Clock())  # type: ignore[arg-type]  # nothing is taken
    with pytest.raises(InputError, match="standard input is a terminal"):
        files._read("-", threading.Event())


def test_a_disk_that_is_full_while_a_layer_is_read_names_the_file(tmp_path: Path) -> None:
    class Full:
        def now(self) -> int:
            return 0

        def read(self, *_: object) -> None:
            raise DiskError("storing a blob: No space left on device")

    (tmp_path / "layer.tar").write_bytes(b"tar")
    files = LayerFiles(Full(), None, None, Full())  # type: ignore[arg-type]  # nothing is taken
    with pytest.raises(DiskError, match=r"layer\.tar: storing a blob: No space left"):
        files._read(str(tmp_path / "layer.tar"), threading.Event())


def test_an_index_of_too_many_images_that_say_nothing_is_not_asked_one_by_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(making, "COUNT_LIMIT", 1)
    kit = MemoryKit()

    async def run(client: Client) -> None:
        one, _ = await put_image(client, Provider.of(kit.one, "i"), [b"one"])
        other, _ = await put_image(client, Provider.of(kit.one, "i"), [b"other"])
        await client.put_manifest(Provider.of(kit.one, "i"), "v1", INDEX, index(one, other))
        assembler = Assembler(ImageReader(client, DirectoryBlobs(tmp_path, owner="t")))
        with pytest.raises(VerificationError, match="an index of 2 images that are for no platform"):
            await assembler.assemble(IndexRequest((), (parse_reference(f"{kit.one}/i:v1"),)))
        with pytest.raises(RegistryError):
            await assembler.assemble(IndexRequest((), (parse_reference(f"{kit.one}/i:none"),)))

    kit.use(run)
