"""What an image has of its base, and what of its own: its config and history, moved to another base. Pure.

The config is merged as version control merges files: what the image has as its old base had it, it inherited, so it
becomes what the new base has; what differs is its own, and stays. That is what building the image again on the new base
would give, field by field:

- `User`, `WorkingDir`, `StopSignal`, `Shell`, `Healthcheck`, `Entrypoint` and fields this engine does not know: as a
  whole.
- `Cmd`: as a whole; but with an `Entrypoint` of the image's own it is the image's too, as ENTRYPOINT drops the base's.
- `Env`, `Labels`, `ExposedPorts`, `Volumes`: each entry by its name; what the image had taken away stays away. A list
  such as PATH in which the old base's value stands as a part gets the new base's value in its place.
- `OnBuild`: the image's, as triggers of a base are used up when one builds on it.
- `architecture`, `os`, `variant`, `os.version`, `os.features`: the new base's. `author` and all else beside `config`:
  the image's.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from engine.frontend.config import ImageConfig

Json = dict[str, Any]
_BY_NAME = ("Labels", "ExposedPorts", "Volumes")
_OF_THE_PLATFORM = ("architecture", "os", "variant", "os.version", "os.features")


def moved(image: ImageConfig, old: ImageConfig, new: ImageConfig, *, keep: bool = False) -> ImageConfig:
    """The config of `image`, which stood on `old`, on `new`; `keep`: all of the image's config stays."""
    top = {key: value for key, value in image.top.items() if key not in _OF_THE_PLATFORM}
    top |= {key: new.top[key] for key in _OF_THE_PLATFORM if key in new.top}
    return ImageConfig(top, image.copy().config if keep else _config(image, old, new))


def _config(image: ImageConfig, old: ImageConfig, new: ImageConfig) -> Json:
    ours, base, theirs = image.copy().config, old.config, new.copy().config
    merged: Json = {}
    for key in dict.fromkeys((*ours, *theirs)):
        if key in _BY_NAME:
            value: Any = _by_name(ours.get(key, {}), base.get(key, {}), theirs.get(key, {}))
        elif key == "Env":
            env = _by_name(image.env, old.env, new.env)
            value = [f"{name}={_relisted(name, text, old.env, new.env)}" for name, text in env.items()]
        elif key == "OnBuild" or (key == "Cmd" and ours.get("Entrypoint") != base.get("Entrypoint")):
            value = ours.get(key)
        else:
            value = theirs.get(key) if ours.get(key) == base.get(key) else ours.get(key)
        if value is not None:
            merged[key] = value
    return merged


def _by_name(ours: Mapping[str, Any], base: Mapping[str, Any], theirs: Mapping[str, Any]) -> Json:
    """The new base's entries, then the image's own, which keep the place of those they replace."""
    gone = base.keys() - ours.keys()
    own = {name: value for name, value in ours.items() if name not in base or base[name] != value}
    return {name: value for name, value in theirs.items() if name not in gone} | own


def _relisted(name: str, text: str, old: Mapping[str, str], new: Mapping[str, str]) -> str:
    """The image's value with the new base's parts where it has the old one's, as `ENV PATH=/app:$PATH` would give."""
    before, after = old.get(name, ""), new.get(name, "")
    framed = f":{text}:"
    if not before or not after or after in {before, text} or f":{before}:" not in framed:
        return text
    return framed.replace(f":{before}:", f":{after}:", 1)[1:-1]


# ---------------------------------------------------------------- history


def entries(config: Mapping[str, Any]) -> list[Json]:
    """The history of an image config; what is none is left out."""
    found = config.get("history")
    return [dict(item) for item in found if isinstance(item, dict)] if isinstance(found, list) else []


def own_history(image: Sequence[Json], old: Sequence[Json], below: int) -> list[Json]:
    """What the history of `image` tells beyond that of its base `old`, which has `below` layers."""
    cut = len(old)
    if _layers(image[:cut]) != below or _commands(image[:cut]) != _commands(old):  # told in other words: count layers
        cut, seen = 0, 0
        while seen < below and cut < len(image):
            seen += _layers(image[cut : cut + 1])
            cut += 1
    return list(image[cut:])


def fitted(history: Sequence[Json], layers: int, reference: str) -> list[Json]:
    """`history`, which may tell of another number of layers than there are: then of each that it is there."""
    if _layers(history) == layers:
        return list(history)
    return [{"comment": f"a layer of {reference}, whose history does not fit its layers"} for _ in range(layers)]


def _layers(history: Sequence[Json]) -> int:
    return sum(not entry.get("empty_layer") for entry in history)


def _commands(history: Sequence[Json]) -> list[Any]:
    return [entry.get("created_by") for entry in history]
