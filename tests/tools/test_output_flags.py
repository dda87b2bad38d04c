"""`--output`, `--push` and `--annotation`: what buildx takes, and one clear line for everything else."""

from __future__ import annotations

from pathlib import Path

import pytest

from engine.output import Annotation, Output
from storage.errors import InputError
from storage.interfaces.images import Compression
from storage.reference import parse_reference
from tools.cli.outputs import read_outputs

NAMES = (parse_reference("registry.test/app:1"),)
BOTH = ("linux/amd64", "linux/arm64")


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Destinations are in a directory of the test's own."""
    monkeypatch.chdir(tmp_path)


def one(
    text: str, *annotations: str, platforms: tuple[str, ...] = ("linux/amd64",), epoch: int | None = None
) -> Output:
    (output,) = read_outputs([text], annotations, names=NAMES, platforms=platforms, epoch=epoch)
    return output


# ---------------------------------------------------------------- kinds and places


def test_a_bare_path_is_a_directory_and_a_dash_is_a_tar() -> None:
    assert (one("out").kind, one("out").dest) == ("local", "out")
    assert (one("-").kind, one("-").dest) == ("tar", "-")
    assert one("dest=out").kind == "local"


def test_registry_is_an_image_that_is_pushed_and_an_image_is_only_when_it_says_so() -> None:
    assert (one("type=registry").kind, one("type=registry").push) == ("image", True)
    assert one("type=registry,push=false").push is False
    assert one("type=image").push is False
    assert one("type=image,push=true").push is True


def test_push_pushes_the_images_there_are_or_one_more() -> None:
    (image,) = read_outputs(["type=image,compression=zstd"], push=True, names=NAMES)
    assert (image.push, image.form.compression.kind) == (True, "zstd")
    pushed, archive = read_outputs(["type=oci,dest=a.tar"], push=True, names=NAMES)
    assert (pushed.kind, pushed.push, archive.kind) == ("image", True, "oci")
    assert read_outputs([], push=False) == ()


def test_an_output_has_names_of_its_own_or_those_of_the_command_line() -> None:
    own = one('type=registry,"name=a.test/x:1, b.test/y"')
    assert [str(name) for name in own.names] == ["a.test/x:1", "b.test/y:latest"]
    assert one("type=registry").names == NAMES


def test_several_outputs_each_have_their_own_compression() -> None:
    first, second = read_outputs(
        ["type=oci,dest=a.tar,compression=zstd,compression-level=19,force-compression=true",
         "type=oci,dest=b.tar,compression=uncompressed"]
    )  # fmt: skip
    assert first.form.compression == Compression("zstd", 19, force=True)
    assert second.form.compression == Compression("uncompressed")


def test_archives_can_be_directories() -> None:
    assert one("type=oci,dest=layout,tar=false").directory is True
    assert one("type=oci,dest=layout.tar").directory is False


def test_whether_platforms_are_split_can_be_said() -> None:
    assert one("type=tar,dest=x").split is None
    assert one("type=local,dest=x,platform-split=false").split is False
    assert one("type=local,dest=x,platform-split=true").split is True


def test_what_is_not_known_to_be_built_yet_is_not_judged() -> None:
    (output,) = read_outputs(["type=oci,dest=x,annotation-index.a=b,annotation[linux/arm64].a=b"])
    assert len(output.form.annotations) == 2


# ---------------------------------------------------------------- the form of an image


def test_media_types_are_ocis_except_in_dockers_archives() -> None:
    assert one("type=oci,dest=x").form.oci is True
    assert one("type=oci,dest=x,oci-mediatypes=false").form.oci is False
    assert one("type=docker,dest=x").form.oci is False
    assert one("type=docker,dest=x,oci-mediatypes=true").form.oci is True
    assert one("type=docker,dest=x,compression=zstd").form.oci is True
    assert one("type=docker,dest=x", "a=b").form.oci is True


def test_annotations_have_a_part_and_a_platform() -> None:
    text = (
        'type=registry,annotation.plain=1,"annotation.list=a,b=""c""",annotation-index.top=2,'
        "annotation[linux/amd64].only=3,annotation-manifest-descriptor[linux/arm64/v8].of=4,annotation-index-descriptor.I=5"
    )
    assert one(text, platforms=BOTH).form.annotations == (
        Annotation("manifest", "plain", "1"), Annotation("manifest", "list", 'a,b="c"'),
        Annotation("index", "top", "2"), Annotation("manifest", "only", "3", "linux/amd64"),
        Annotation("manifest-descriptor", "of", "4", "linux/arm64"), Annotation("index-descriptor", "I", "5"),
    )  # fmt: skip


def test_the_annotation_flag_goes_to_all_images_and_an_outputs_own_goes_before_it() -> None:
    first, files, second = read_outputs(
        ["type=registry,annotation.a=own", "type=local,dest=out", "type=oci,dest=x.tar"],
        ["a=1", "manifest[linux/amd64],index:b=2", "manifest:c:d=3"], names=NAMES, platforms=BOTH,
    )  # fmt: skip
    common = {
        Annotation("manifest", "b", "2", "linux/amd64"), Annotation("index", "b", "2"),
        Annotation("manifest", "c:d", "3"),
    }  # fmt: skip
    assert set(first.form.annotations) == common | {Annotation("manifest", "a", "own")}
    assert set(second.form.annotations) == common | {Annotation("manifest", "a", "1")}
    assert files.form.annotations == ()


def test_equal_wishes_are_one_form_and_others_are_not() -> None:
    same = {one("type=oci,dest=a").form, one("type=registry").form, one("type=oci,dest=b,compression=gzip").form}
    assert len(same) == 1
    assert len(same | {one("type=oci,dest=a,prefer-nondist-layers=true").form, one("type=docker,dest=c").form}) == 3


def test_times_are_rewritten_only_to_a_time() -> None:
    assert one("type=oci,dest=x,rewrite-timestamp=true", epoch=1).form.rewrite is True
    with pytest.raises(InputError, match="SOURCE_DATE_EPOCH is not set"):
        one("type=oci,dest=x,rewrite-timestamp=true")


def test_keys_of_an_image_store_are_taken_and_mean_nothing() -> None:
    extra = "name-canonical=true,store=false,unpack=true,dangling-name-prefix=x,registry.insecure=false"
    assert one(f"type=registry,{extra}") == one("type=registry")


# ---------------------------------------------------------------- mistakes


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("type=oci,dest=x,colour=blue", "type=oci has no key 'colour' (it takes dest, tar, name, compression"),
        ("type=local,dest=x,compression=zstd", "type=local has no key 'compression' (it takes dest, platform-split)"),
        ("type=docker,dest=x,tar=false", "type=docker has no key 'tar'"),
        ("type=floppy", "no output type 'floppy' (the types are image, registry, oci, docker, local and tar)"),
        ("push=true", "has no type"),
        ("type=oci", "--output type=oci has no dest (write --output type=oci,dest=PATH)"),
        ("type=oci,x", "has a part that is no key=value: 'x'"),
        ("type=registry,name=\"a", "is not CSV (quote a whole part"),
        ("type=registry,annotation.x=\"a\"", "is not CSV"),
        ("type=registry,push=maybe", "push='maybe' is neither true nor false"),
        ("type=registry,name=a.test/Upper", "repository names are lower case"),
        ("type=registry,name=a@sha256:" + "0" * 64, "what is pushed gets a digest"),
        ("type=registry,name=a.test/b:1,push-by-digest=true", "push-by-digest gives no tag"),
        ("type=registry,registry.insecure=true", "registries.toml"),
        ("type=oci,dest=x,compression=brotli", "unknown compression 'brotli' (gzip and estargz take levels 0-9"),
        ("type=oci,dest=x,compression-level=10", "gzip has no level 10 (gzip and estargz take levels 0-9"),
        ("type=oci,dest=x,compression=zstd,compression-level=0", "zstd has no level 0 ("),
        ("type=oci,dest=x,compression=uncompressed,compression-level=1", "uncompressed has no level 1 ("),
        ("type=oci,dest=x,compression=zstd,oci-mediatypes=false", "compression=zstd is OCI's"),
        ("type=oci,dest=x,annotation.a=b,oci-mediatypes=false", "annotations are OCI's"),
        ("type=oci,dest=x,annotation-layer.a=b", "'layer' is no part of an image (it is one of manifest,"),
        ("type=oci,dest=x,annotation=b", "'annotation' is no annotation"),
        ("type=oci,dest=x,annotation-index.a=b", "one platform makes no index"),
        ("type=oci,dest=x,annotation[linux/arm64].a=b", "annotation of linux/arm64 'a': that is not built"),
        ("type=local,dest=-", "a directory cannot go to standard output"),
        ("type=oci,dest=-,tar=false", "a directory cannot go to standard output"),
        ("type=tar,dest=no/such/x.tar", "there is no such directory to write to"),
        ("type=tar,dest=.", "type=tar writes a file, and a directory is there (name a file in it)"),
        ("type=oci,dest=.", "or write tar=false for a layout"),
        ("type=local,dest=file", "type=local writes a directory, and a file is there"),
    ],
)
def test_mistakes_are_told_in_one_line(text: str, said: str) -> None:
    Path("file").write_text("")
    with pytest.raises(InputError) as raised:
        one(text)
    assert said in str(raised.value)
    assert "\n" not in str(raised.value)
    assert raised.value.exit_code == 2


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("a", "'a' is no key=value"), ("=b", "no key=value"), ("manifest:=b", "no key=value"),
        ("Manifest:a=b", "'Manifest' is no part of an image"), ("layer:a=b", "'layer' is no part of an image"),
        ("index[linux/amd64]:a=b", "an index has all platforms"), ("manifest[amd64]:a=b", "not a platform: 'amd64'"),
    ],
)
def test_mistakes_in_annotations_are_told(text: str, said: str) -> None:
    with pytest.raises(InputError) as raised:
        one("type=registry", text, platforms=BOTH)
    assert said in str(raised.value)


def test_what_does_not_go_together_is_told(tmp_path: Path) -> None:
    def said(*given: str, **more: object) -> str:
        with pytest.raises(InputError) as raised:
            read_outputs(given, **more)  # type: ignore[arg-type]
        return str(raised.value)

    assert f"two outputs go to {tmp_path}/x" in said("type=oci,dest=x", f"type=tar,dest={tmp_path}/x")
    assert "two outputs go to standard output" in said("-", "type=oci,dest=-")
    assert "there is no name to push to" in said(push=True)
    assert "there is no name to push to" in said("type=registry")
    assert "type=docker holds one platform" in said("type=docker,dest=x", platforms=BOTH)
    assert "--annotation has no image to go to" in said("out", annotations=["a=b"])


def test_places_that_links_make_one_are_one(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    with pytest.raises(InputError, match="two outputs go to"):
        read_outputs(["type=oci,dest=real/x", "type=tar,dest=link/x"])
