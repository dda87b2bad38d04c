"""`--cache-from` and `--cache-to`, in all the ways that `docker buildx build` takes them."""

from __future__ import annotations

from pathlib import Path

import pytest

from engine.cache.spec import CacheSource, CacheTarget
from storage.digest import sha256
from storage.errors import InputError
from storage.interfaces.images import Compression
from storage.reference import LAYOUT_REGISTRY, parse_reference
from tools.cli.caches import read_sources, read_targets


def test_bare_names_are_caches_in_registries() -> None:
    app, cache = parse_reference("reg.io/app:1"), parse_reference("cache")
    assert read_sources(["reg.io/app:1,cache", "cache"]) == (
        CacheSource("reg.io/app:1", app), CacheSource("cache", cache), CacheSource("cache", cache)
    )  # fmt: skip
    assert read_targets(["reg.io/app:1"]) == (CacheTarget("reg.io/app:1", "registry", app),)
    assert read_sources([]) == read_targets([]) == read_sources([""]) == ()


def test_values_may_be_quoted_and_keys_be_in_capitals() -> None:
    written = 'type=local,"src=/with,comma",TAG=t'
    (source,) = read_sources([written])
    assert (source.written, source.reference.registry) == (written, LAYOUT_REGISTRY)
    assert (source.reference.repository, source.reference.tag) == ("/with,comma", "t")


def test_what_is_left_out_is_as_buildx_has_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (target,) = read_targets(["type=registry,ref=reg.io/c"])
    assert (target.mode, target.image_manifest, target.oci, target.ignore_error) == ("min", True, True, False)
    (target,) = read_targets(["type=registry,ref=reg.io/c,oci-mediatypes=false"])
    assert (target.image_manifest, target.oci) == (False, False)
    (target,) = read_targets(["type=registry,ref=reg.io/c,image-manifest=f,mode=MAX,ignore-error=1"])
    assert (target.mode, target.image_manifest, target.oci, target.ignore_error) == ("max", False, True, True)
    monkeypatch.chdir(tmp_path)
    (target,) = read_targets(["type=local,dest=kept"])
    assert target.reference is not None
    assert (target.reference.repository, target.reference.tag) == (str(tmp_path / "kept"), "latest")
    (source,) = read_sources([f"type=local,src=kept,digest={sha256(b'')}"])
    assert (source.reference.tag, source.reference.digest) == ("", sha256(b""))
    assert read_targets(["type=inline,mode=max"]) == (CacheTarget("type=inline,mode=max", "inline"),)
    assert len(read_sources(["type=registry,ref=x,ignore-error=true"])) == 1


def test_a_compression_is_asked_for_as_for_an_image() -> None:
    written = "type=registry,ref=reg.io/c,compression=zstd,compression-level=19,force-compression=true"
    assert read_targets([written])[0].compression == Compression("zstd", 19, force=True)
    assert read_targets(["type=local,dest=/c,compression=estargz"])[0].compression == Compression("estargz")
    assert read_targets(["type=local,dest=/c,compression-level=9"])[0].compression == Compression("gzip", 9)
    assert read_targets(["type=local,dest=/c"])[0].compression == Compression()


@pytest.mark.parametrize(
    ("flag", "value", "why"),
    [
        ("--cache-from", "type=s3,access_key_id=AKIA,secret_access_key=hunter2", "no cache type 's3'"),
        ("--cache-from", "type=inline", "say where it is"),
        ("--cache-from", "type=registry", "has no ref"),
        ("--cache-from", "type=local", "has no src"),
        ("--cache-from", "type=local,src=/x,digest=sha256:12", "not a digest"),
        ("--cache-from", "type=registry,ref=x/UPPER", "lower case"),
        ("--cache-from", "type=registry,ref=x,mode=max", "has no 'mode'"),
        ("--cache-from", "ref=x", "no type"),
        ("--cache-to", "inline", "an image of this name"),
        ("--cache-to", "type=local", "has no dest"),
        ("--cache-to", "type=local,dest=/x,tag=a b", "not a tag"),
        ("--cache-to", "type=registry,ref=x,mode=most", "no mode 'most'"),
        ("--cache-to", "type=registry,ref=x,image-manifest=maybe", "neither true nor false"),
        ("--cache-to", "type=registry,ref=x,oci-mediatypes=false,image-manifest=true", "is OCI's"),
        ("--cache-to", "type=registry,ref=x@sha256:" + "0" * 64, "names a digest"),
        ("--cache-to", "type=registry,ref=x,compression=lz4", "zstd 1-22"),
        ("--cache-to", "type=registry,ref=x,compression=zstd,compression-level=0", "zstd has no level 0"),
        ("--cache-to", "type=registry,ref=x,compression-level=best", "gzip has no level -1"),
        ("--cache-to", "type=inline,compression=zstd", "has no 'compression'"),
        ("--cache-to", 'type=registry,"ref=x', "not a list of key=value"),
        ("--cache-to", "type=registry,ref=x,password:hunter2", "no key=value"),
    ],
)
def test_wrong_flags_are_one_line_that_tells_no_secret(flag: str, value: str, why: str) -> None:
    with pytest.raises(InputError) as caught:
        (read_sources if flag == "--cache-from" else read_targets)([value])
    assert why in str(caught.value)
    assert "hunter2" not in str(caught.value)
    assert "\n" not in str(caught.value)
