"""Images that need no registry, and short ways to compile."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from typing import Any

from engine.frontend.compile import FrontendOptions, compile_dockerfile
from engine.graph import Copy, Graph, ImageLayer, Mkdir, ResolvedImage, Run, Vertex
from storage.digest import sha256
from storage.interfaces.images import Descriptor, Provider

BASE_ENV = ["PATH=/usr/bin:/bin", "LANG=C.UTF-8"]
DEFAULT_ENV = ["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"]


class Images:
    """A resolver that knows every name; `configs` gives the config JSON of some. Remembers what it was asked."""

    def __init__(self, configs: Mapping[str, dict[str, Any]] | None = None, *, layers: int = 1) -> None:
        self.configs = configs or {}
        self.layers = layers
        self.asked: list[list[tuple[str, str]]] = []

    async def resolve(self, wanted: Sequence[tuple[str, str]]) -> Mapping[tuple[str, str], ResolvedImage]:
        self.asked.append(list(wanted))
        return {key: self._image(*key) for key in wanted}

    def _image(self, reference: str, platform: str) -> ResolvedImage:
        os_name, architecture = platform.split("/")[:2]
        plain = {"architecture": architecture, "os": os_name, "config": {"Env": BASE_ENV, "Cmd": ["sh"]}}
        name = f"{reference} {platform}".encode()
        layers = tuple(
            ImageLayer(sha256(b"%d" % n + name), Descriptor("application/vnd.oci.image.layer.v1.tar", sha256(name), 9))
            for n in range(self.layers)
        )
        config = self.configs.get(reference, plain)
        provider = Provider.of("docker.io", "library/x")
        digest = sha256(name)
        return ResolvedImage(reference, digest, digest, platform, provider, layers, config)


def compile_text(text: str, images: Images | None = None, **options: Any) -> Graph:
    return asyncio.run(compile_dockerfile(text, FrontendOptions(**options), (images or Images()).resolve))


def image_of(text: str, images: Images | None = None, **options: Any) -> Mapping[str, Any]:
    return compile_text(text, images, **options).results[0].image


def config_of(text: str, images: Images | None = None, **options: Any) -> dict[str, Any]:
    config: dict[str, Any] = image_of(text, images, **options)["config"]
    return config


def history_of(text: str, images: Images | None = None, **options: Any) -> list[str]:
    return [step.created_by for step in compile_text(text, images, **options).results[0].history]


def names(graph: Graph) -> list[str]:
    return [vertex.name for vertex in graph.vertices]


def last(text: str, images: Images | None = None, **options: Any) -> Vertex:
    graph = compile_text(text, images, **options)
    return graph.by_digest[graph.results[0].vertex]


def last_run(text: str, images: Images | None = None, **options: Any) -> Run:
    op = last(text, images, **options).op
    assert isinstance(op, Run)
    return op


def last_copy(text: str, images: Images | None = None, **options: Any) -> Copy:
    op = last(text, images, **options).op
    assert isinstance(op, Copy)
    return op


def last_mkdir(text: str, images: Images | None = None, **options: Any) -> Mkdir:
    op = last(text, images, **options).op
    assert isinstance(op, Mkdir)
    return op
