"""The image config that a stage builds up (image-spec config.md; Healthcheck, Shell, OnBuild as docker adds them)."""

from __future__ import annotations

import copy
import posixpath
from collections.abc import Mapping
from typing import Any

from storage.errors import InputError
from storage.platform import parse_platform

DEFAULT_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
DEFAULT_SHELL = ("/bin/sh", "-c")

_OF_THE_BASE_ONLY = (
    "rootfs", "history", "created", "container", "container_config", "docker_version", "id", "parent", "throwaway",
    "moby.buildkit.cache.v0", "refledger.cache.v1",
)  # fmt: skip
_PLATFORM = ("os", "architecture", "variant")
_STRINGS = ("User", "WorkingDir", "StopSignal")
_LISTS = ("Env", "Entrypoint", "Cmd", "Shell", "OnBuild")
_OBJECTS = ("ExposedPorts", "Volumes", "Labels", "Healthcheck")


class ImageConfig:
    """`config` is the JSON object of that name, `top` what stands beside it."""

    __slots__ = ("config", "top")

    def __init__(self, top: dict[str, Any], config: dict[str, Any]) -> None:
        self.top = top
        self.config = config

    @classmethod
    def scratch(cls, platform: str) -> ImageConfig:
        """The config of an image without layers, as BuildKit begins it. Raises InputError for a bad platform."""
        image = cls({}, {"WorkingDir": "/"})
        image.set_platform(platform)
        image.complete()
        return image

    @classmethod
    def of_image(cls, data: Mapping[str, Any]) -> ImageConfig:
        """What an image's config `data` says, without what is true of that very image only. Raises InputError when it
        cannot be understood."""
        inherited = data.get("config")
        if not isinstance(inherited, dict | None):
            raise InputError("its config is not an object")
        for key in _PLATFORM:
            if not _is_text(data.get(key) or ""):
                raise InputError(f"its config names an {key} that is not understood")
        kept = {key: value for key, value in (inherited or {}).items() if value is not None and key != "ArgsEscaped"}
        _check(kept)
        top = {key: value for key, value in data.items() if key not in _OF_THE_BASE_ONLY and key != "config"}
        return cls(copy.deepcopy(top), copy.deepcopy(kept))

    @classmethod
    def of_base(cls, data: Mapping[str, Any], platform: str) -> ImageConfig:
        """What a stage inherits from a base image's config `data`. Raises InputError when it cannot be understood."""
        image = cls.of_image(data)
        if not (image.top.get("architecture") and image.top.get("os")):
            image.set_platform(platform)
        image.complete()
        return image

    def copy(self) -> ImageConfig:
        """An independent copy."""
        return ImageConfig(copy.deepcopy(self.top), copy.deepcopy(self.config))

    def set_platform(self, platform: str) -> None:
        """Say `architecture`, `os` and `variant` of `platform`. Raises InputError."""
        parsed = parse_platform(platform)
        self.top.update(architecture=parsed.architecture, os=parsed.os)
        self.top.pop("variant", None)
        if parsed.variant:
            self.top["variant"] = parsed.variant

    @property
    def platform(self) -> str:
        """`os/architecture[/variant]`, as the config says."""
        parts = (self.top.get("os"), self.top.get("architecture"), self.top.get("variant"))
        return "/".join(str(part) for part in parts if part)

    @property
    def env(self) -> dict[str, str]:
        """The variables of ENV, in order."""
        split = (entry.partition("=") for entry in self.config.get("Env", ()))
        return {name: value for name, _, value in split}

    def set_env(self, name: str, value: str) -> None:
        """Set one variable; it keeps its place when it was set before."""
        env = self.env
        env[name] = value
        self.config["Env"] = [f"{key}={text}" for key, text in env.items()]

    @property
    def working_dir(self) -> str:
        """Absolute and clean."""
        return join_path("/", self.config.get("WorkingDir") or "/")

    @property
    def shell(self) -> tuple[str, ...]:
        """What runs commands in shell form."""
        return tuple(self.config.get("Shell") or DEFAULT_SHELL)

    def to_json(self) -> dict[str, Any]:
        """The config as it goes into the image: what is empty is left out."""
        config = {key: value for key, value in self.config.items() if value not in ("", [], {}, None)}
        return {**self.top, "config": config}

    def complete(self) -> None:
        """Set what a config that comes without it gets: PATH, except on Windows."""
        if "PATH" not in self.env and self.top.get("os") != "windows":
            self.set_env("PATH", DEFAULT_PATH)


def _check(config: Mapping[str, Any]) -> None:
    for key, value in config.items():
        if key in _STRINGS:
            understood = _is_text(value)
        elif key in _LISTS:
            understood = isinstance(value, list) and all(map(_is_text, value))
        else:
            understood = key not in _OBJECTS or isinstance(value, dict)
        if not understood:
            raise InputError(f"its config has a {key} that is not understood")


def _is_text(value: object) -> bool:
    """Text that a process, and what it is started with, can be given."""
    return isinstance(value, str) and "\0" not in value


def join_path(directory: str, path: str) -> str:
    """`path` seen from the absolute `directory`, clean; never above the root."""
    return "/" + posixpath.normpath("/" + posixpath.join(directory, path)).lstrip("/")
