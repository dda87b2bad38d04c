"""Where a build's result is wanted, and in which form."""

from __future__ import annotations

from typing import Literal

from engine.record import Record
from storage.interfaces.images import Compression, Reference

Part = Literal["manifest", "manifest-descriptor", "index", "index-descriptor"]


class Annotation(Record):
    """`key` = `value` on one `part` of an image: its manifests or their descriptors (of `platform` only, "" for all),
    its index, or the descriptor of that in an OCI layout (buildkit docs/annotations.md)."""

    part: Part
    key: str
    value: str
    platform: str = ""


class Form(Record):
    """All that decides the bytes of an image besides what was built: equal forms give one image. `oci`: OCI's media
    types, else docker's; `rewrite`: no file's time is later than SOURCE_DATE_EPOCH, whoever made the layer; `foreign`:
    layers that are not to be distributed stay where their URLs say, else they become layers as all others."""

    compression: Compression = Compression()
    oci: bool = True
    annotations: tuple[Annotation, ...] = ()
    rewrite: bool = False
    foreign: bool = False


class Output(Record):
    """`kind` image goes to the registries of `names` (with `push`, else it is only composed), under no tag when
    `by_digest`; the others go to `dest`, a path, or `-` for standard output. oci and docker are archives that have
    `names`, or with `directory` an OCI layout; local is a directory of files and tar the same as an archive, `split`
    by platform or not (None: when there are several)."""

    kind: Literal["image", "oci", "docker", "local", "tar"]
    dest: str = ""
    form: Form = Form()
    names: tuple[Reference, ...] = ()
    push: bool = True
    by_digest: bool = False
    directory: bool = False
    split: bool | None = None

    @property
    def of_files(self) -> bool:
        """Does it take files, and no image?"""
        return self.kind in ("local", "tar")

    @property
    def written(self) -> str:
        """As the log and messages have it: `type=oci,dest=…`."""
        return f"type={self.kind}," + (f"dest={self.dest}" if self.dest else f"push={str(self.push).lower()}")
