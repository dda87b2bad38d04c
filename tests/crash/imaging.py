"""Scenes: images that are moved and edited, and registries that are logged in to."""

from __future__ import annotations

import json
from collections.abc import Sequence

from tests.crash.outcomes import outputs, tagged, tagged_in_second
from tests.crash.place import Place
from tests.crash.scene import BASE, MANY, NEWER, Scene, archive, build, several

_PLAIN = ("--progress", "plain")
_CONFIG = "home/.docker/config.json"


def _copying(place: Place) -> Sequence[str]:
    return ["copy", *_PLAIN, f"{place.host}/{BASE}:latest", f"{place.second}/{place.repository}:1"]


def _copying_all(place: Place) -> Sequence[str]:
    return ["copy", *_PLAIN, "--all", f"{place.host}/{MANY}:all", f"{place.second}/{place.repository}:1"]


def _copying_within(place: Place) -> Sequence[str]:
    return ["copy", *_PLAIN, f"{place.host}/{BASE}:latest", place.name]


def _to_layout(place: Place) -> Sequence[str]:
    return ["copy", *_PLAIN, "--all", f"{place.host}/{MANY}:all", f"oci-layout://{place.out}/layout:1"]


def _has_layout(place: Place) -> None:
    place.must("copy", f"{place.host}/{BASE}:latest", f"oci-layout://{place.context}/layout:1")


def _from_layout(place: Place) -> Sequence[str]:
    return ["copy", *_PLAIN, f"oci-layout://{place.context}/layout:1", f"{place.second}/{place.repository}:1"]


def _indexing(place: Place) -> Sequence[str]:
    return ["index", "create", place.name, f"{place.host}/{BASE}:latest"]


def _indexing_more(place: Place) -> Sequence[str]:
    if not str(tagged_in_second(place)).startswith("sha256:"):
        several(place.second, place.repository, "1", ["riscv64"])
    return ["index", "create", "--append", f"{place.second}/{place.repository}:1", f"{place.host}/{MANY}:all"]


def _appending(place: Place) -> Sequence[str]:
    place.write({"layer.tar": archive()})
    return ["append", *_PLAIN, f"{place.host}/{BASE}", f"{place.context}/layer.tar", "-c", "LABEL a=b",
            "-t", place.name, "--push", "--iidfile", f"{place.out}/iid"]  # fmt: skip


def _has_image(place: Place) -> None:
    name = f"{place.host}/{place.repository}/old:1"
    output = f"type=image,push=true,rewrite-timestamp=true,name={name}"
    place.must(*build(place, "FROM {base}\nCOPY file /file\n", "-o", output))
    place.write({"old": name})


def _rebasing(place: Place) -> Sequence[str]:
    image = (place.context / "old").read_text()
    return ["rebase", *_PLAIN, image, "--from", f"{place.host}/{BASE}", "--to", f"{place.host}/{NEWER}",
            "-t", place.name, "--push"]  # fmt: skip


def _logging_in(place: Place) -> Sequence[str]:
    return ["login", "-u", "somebody", "-p", "a word", place.host]


def _logged_in(place: Place) -> object:
    return json.loads((place.directory / _CONFIG).read_bytes())


def _has_logged_in(place: Place) -> None:
    place.must(*_logging_in(place))


SCENES = (
    Scene("copy", _copying, tagged_in_second),
    Scene("copy --all", _copying_all, tagged_in_second),
    Scene("copy within", _copying_within, tagged),
    Scene("copy to a layout", _to_layout, outputs),
    Scene("copy of a layout", _from_layout, tagged_in_second, _has_layout),
    Scene("index", _indexing, tagged),
    Scene("index --append", _indexing_more, tagged_in_second),
    Scene("append", _appending, lambda place: (tagged(place), outputs(place))),
    Scene("rebase", _rebasing, tagged, _has_image),
    Scene("login", _logging_in, _logged_in, keeps=(_CONFIG,)),
    Scene("logout", lambda place: ["logout", place.host], _logged_in, _has_logged_in, keeps=(_CONFIG,)),
)
