"""Plays one row of the table: a fault in the way of a pull or a push, what came of it, and what it left behind."""

from __future__ import annotations

import asyncio
import json
import re
import shutil
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path
from typing import Any
from urllib.error import HTTPError
from urllib.request import Request, urlopen

from engine.errors import MaterializationError
from engine.refs.fill import FetchLimits
from engine.refs.ref import Layer
from storage.credentials.lookup import Credential
from storage.digest import sha256
from storage.errors import RefledgerError
from storage.interfaces.images import Descriptor, Provider, Reference
from storage.registry import Limits, RegistryClient
from storage.uploads import UploadSessions
from tests.engine.refs.machine import Machine
from tests.faults.image import BLOBS, CONTENT, IMAGE, LAYER, TAGS, TAR
from tests.faulty import Answering, Fault, FaultyProxy, LocalServer, Seen
from tests.registry_fixture import OCI_MANIFEST, RegistryProcess, push_blob
from tests.storage.registry.kit import Known, stream_of

NOW = 1_000_000.0
"""When every row begins, in seconds since the epoch; its pauses are what makes time pass."""
RIGHT = "right"
PULL, RANGES, MANIFEST, LIST = "pull", "pull in ranges", "manifest", "list"
PUSH, CHUNKS, LASTING, MOUNT = "push", "push in pieces", "push of a large layer", "mount"
_SHORT = {"stall_seconds": 0.3, "commit_seconds": 0.4, "connect_seconds": 0.4}
"""Limits of the client where somebody is silent; elsewhere a busy machine must not look like that. `patience` times
as long, where it did."""
_PATCH = 1 << 16


@dataclass(frozen=True, slots=True)
class Row:
    """`what` happens, at which byte (`at`); `play` says it to the proxy. `ends`: RIGHT, or kind and a pattern that the
    one line of the error has (`transport: answered 503`). `limits` of the client, where they matter."""

    side: str
    what: str
    at: str
    play: Callable[[Scene], Iterable[Fault]]
    ends: str = RIGHT
    limits: Mapping[str, Any] = field(default_factory=dict)

    @property
    def pushes(self) -> bool:
        """Does it write to the registry?"""
        return self.side in {PUSH, CHUNKS, LASTING, MOUNT}


@dataclass(frozen=True, slots=True)
class Outcome:
    """`result`: RIGHT, or kind and line of the error, without what changes from run to run; `requests` to the registry;
    `waited`: seconds of pauses; `stalls`: how often the stall limit was waited out; `kept`: what the pull left in the
    root, or the push in the registry."""

    result: str
    requests: int
    waited: float
    stalls: int
    kept: str


class Scene:
    """What a row is played with. `other`: a second origin (an object store, before the same registry); `tokens`: a
    token server, which answers with `grant`. The client has credentials for the registry's host."""

    def __init__(
        self, registry: RegistryProcess, repository: str, directory: Path, stack: ExitStack, patience: int
    ) -> None:
        self.registry = registry
        self.repository = repository
        self.directory = directory
        self._stack = stack
        self._short = {limit: seconds * patience for limit, seconds in _SHORT.items()}
        self.proxy = stack.enter_context(FaultyProxy(registry.host))
        self._uploads = UploadSessions(directory / "uploads" / repository.replace("/", "-"))
        self.slept: list[float] = []
        self.grant: Callable[[int], tuple[int, str]] = lambda asked: (200, f"token-{asked}")

    @cached_property
    def other(self) -> FaultyProxy:
        """A second origin."""
        return self._stack.enter_context(FaultyProxy(self.registry.host))

    @cached_property
    def tokens(self) -> LocalServer:
        """A token server: `grant` is told the number of the request, and gives status and token (or body)."""

        def answer(seen: Seen) -> tuple[int, Mapping[str, str], bytes]:
            status, token = self.grant(len(self.tokens.seen))
            good = status == 200 and "<" not in token
            return status, {}, (json.dumps({"token": token}) if good else token).encode()

        return self._stack.enter_context(Answering(answer))

    @property
    def challenge(self) -> dict[str, str]:
        """The header that sends a client to the token server."""
        return {"WWW-Authenticate": f'Bearer realm="http://{self.tokens.host}/token",service="tests"'}

    def faults(self) -> list[Fault]:
        """All that were to be met."""
        return [*self.proxy.faults, *(self.other.faults if "other" in self.__dict__ else [])]

    def silences(self) -> int:
        """How often a server fell silent."""
        return sum(fault.fired for fault in self.faults() if fault.silent)

    def _silent(self) -> bool:
        return any(fault.silent for fault in self.faults())

    @property
    def provider(self) -> Provider:
        """The registry, behind the proxy."""
        return Provider.of(self.proxy.host, self.repository)

    def client(self, **limits: Any) -> RegistryClient:
        """A client whose pauses are only written down."""

        async def sleep(seconds: float) -> None:
            self.slept.append(seconds)

        return RegistryClient(
            Known(**{self.proxy.host: Credential("me", "the password")}), user_agent="refledger/test",
            limits=Limits(**{**(self._short if self._silent() else {}), **limits}), uploads=self._uploads, sleep=sleep,
            clock=lambda: NOW + sum(self.slept), jitter=lambda: 1.0,
        )  # fmt: skip

    def masked(self, text: str) -> str:
        """`text` without what is another in every run."""
        hosts = {self.proxy.host: "REGISTRY", self.registry.host: "REGISTRY"}
        if "other" in self.__dict__:
            hosts[self.other.host] = "STORE"
        if "tokens" in self.__dict__:
            hosts[self.tokens.host] = "TOKENS"
        for host, name in hosts.items():
            text = text.replace(host, name)
        text = text.replace(self.repository, "repo")
        text = re.sub(r"127\.0\.0\.1:\d+", "NOWHERE", text)
        text = re.sub(r"(corrupt gzip data: )[^()]+", r"\1… ", text)  # in the words of whichever library reads it
        return re.sub(r"sha256:[0-9a-f]{64}|\b[0-9a-f]{12}\b", "DIGEST", text)


def play(row: Row, registry: RegistryProcess, repository: str, directory: Path, *, patience: int = 1) -> Outcome:
    """Play `row`; `repository` is its own where it pushes."""
    with ExitStack() as stack:
        scene = Scene(registry, repository, directory, stack, patience)
        scene.proxy.faults = list(row.play(scene))
        act = _push if row.pushes else {MANIFEST: _manifest, LIST: _list}.get(row.side, _pull)
        error, kept = act(scene, row)
        idle = [fault for fault in scene.faults() if not fault.fired and not fault.when]
        assert not idle, f"it never came to {idle}"
        result = f"{getattr(error, 'kind', 'corrupt')}: {scene.masked(str(error))}" if error else RIGHT
        if "other" in scene.__dict__:
            assert scene.other.seen
            assert all("authorization" not in seen.headers for seen in scene.other.seen), "it saw our credentials"
        assert "the password" not in result
        assert result.isprintable()
        return Outcome(result, len(scene.proxy.seen), round(sum(scene.slept), 6), scene.silences(), kept)


# ---------------------------------------------------------------- pulls


def _pull(scene: Scene, row: Row) -> tuple[RefledgerError | None, str]:
    """Materialize the layer; when that fails, whatever it left must not keep a good registry from serving it."""
    machine = Machine(scene.directory / "root")
    for path in machine.root.glob("[lp]a*/*"):  # layers and partial blobs of the row before
        shutil.rmtree(path)
    try:
        error = _materialize(scene, machine, row, scene.provider)
        kept = _kept(machine)
        assert (kept == "the layer") == (error is None), kept
        if error is not None:
            scene.slept, slept = [], scene.slept
            assert _materialize(scene, machine, row, Provider.of(scene.registry.host, scene.repository)) is None
            assert _kept(machine) == "the layer"
            scene.slept = slept
        return error, kept
    finally:
        machine.log.close()


def _materialize(scene: Scene, machine: Machine, row: Row, provider: Provider) -> RefledgerError | None:
    layer = Layer(diff_id=sha256(TAR), blob=BLOBS[LAYER], providers=(provider,))
    limits = FetchLimits(range_bytes=1 << 16, parallel_bytes=1 << 30) if row.side == RANGES else FetchLimits()
    try:
        asyncio.run(machine.pull([layer], limits=limits, client=lambda *_, **__: scene.client(**row.limits)))
    except MaterializationError as error:
        return error
    return None


def _kept(machine: Machine) -> str:
    """What of the layer is in the root, beside bytes that nobody takes for a blob."""
    assert machine.lying_about() == []
    assert list((machine.root / "blobs").glob("*/*")) == []
    layers = list((machine.root / "layers").iterdir())
    if not layers:
        return "nothing"
    assert [path.name for path in layers] == [sha256(TAR).hex]
    assert (layers[0] / "fs/data").read_bytes() == CONTENT
    assert list((machine.root / "partial").glob("*")) == []
    return "the layer"


def _manifest(scene: Scene, row: Row) -> tuple[RefledgerError | None, str]:
    """Resolve the tag, then get the manifest that it names."""
    name = Reference(scene.proxy.host, scene.repository, "1", None, "")

    async def work() -> bytes:
        client = scene.client(**row.limits)
        try:
            found = await client.resolve(name)
            return (await client.manifest(scene.provider, found.digest))[1]
        finally:
            await client.aclose()

    try:
        data = asyncio.run(work())
    except RefledgerError as error:
        return error, "nothing"
    assert data == IMAGE
    return None, "the manifest"


def _list(scene: Scene, row: Row) -> tuple[RefledgerError | None, str]:
    """List the tags."""

    async def work() -> tuple[str, ...]:
        client = scene.client(**row.limits)
        try:
            return await client.tags(scene.provider)
        finally:
            await client.aclose()

    try:
        found = asyncio.run(work())
    except RefledgerError as error:
        return error, "nothing"
    assert sorted(found) == sorted(TAGS)
    return None, "the tags"


# ---------------------------------------------------------------- pushes


def _push(scene: Scene, row: Row) -> tuple[RefledgerError | None, str]:
    """Push the image as exporters do (I11); when that fails, nothing of it may keep the next push from going well."""
    other = f"{scene.repository}-source"
    if row.side == MOUNT:
        push_blob(scene.registry.host, other, LAYER)
    source = Provider.of(scene.proxy.host, other) if row.side == MOUNT else None
    sides = {CHUNKS: {"patch_bytes": _PATCH}, LASTING: {"lasting_bytes": len(LAYER)}}
    limits = {**sides.get(row.side, {}), **row.limits}
    error = asyncio.run(_pushed(scene.client(**limits), scene.provider, source))
    kept = _stored(scene)
    assert (kept == "the image") == (error is None), kept
    if error is not None:
        scene.slept, slept = [], scene.slept
        good = Provider.of(scene.registry.host, scene.repository)
        assert asyncio.run(_pushed(scene.client(), good, None)) is None
        assert _stored(scene) == "the image"
        scene.slept = slept
    return error, kept


async def _pushed(client: RegistryClient, target: Provider, source: Provider | None) -> RefledgerError | None:
    """Layers, config, manifest by tag: what is there is not sent, what can be mounted neither."""
    try:
        for data, blob in BLOBS.items():
            if await client.exists(target, blob.digest):
                continue
            if source and data is LAYER and await _mounted(client, target, blob, source):
                continue
            await client.upload(target, blob, stream_of(data, 30_000), resume=partial(_rest, data))
        await client.put_manifest(target, "1", OCI_MANIFEST, IMAGE)
    except RefledgerError as error:
        return error
    finally:
        await client.aclose()
    return None


def _rest(data: bytes, start: int) -> AsyncIterator[bytes]:
    return stream_of(data[start:], 30_000)()


async def _mounted(client: RegistryClient, target: Provider, blob: Descriptor, source: Provider) -> bool:
    """As exporters do: a mount that fails is no failure, the bytes can still travel."""
    try:
        return await client.mount(target, blob.digest, source)
    except RefledgerError:
        return False


def _stored(scene: Scene) -> str:
    """What the registry has of the image, asked without the proxy; every blob that it has is right."""
    base = f"http://{scene.registry.host}/v2/{scene.repository}"
    have = {}
    for data, blob in BLOBS.items():
        status, content = _get(f"{base}/blobs/{blob.digest}")
        assert status == 404 or content == data
        have[data] = status == 200
    status, content = _get(f"{base}/manifests/1")
    links = scene.registry.directory.glob(f"data/docker/registry/v2/repositories/{scene.repository}/_layers/sha256/*")
    assert {path.name for path in links} <= {blob.digest.hex for blob in BLOBS.values()}
    if status == 200:
        assert content == IMAGE
        assert all(have.values()), "a tag that points at a hole"
        return "the image"
    return {0: "nothing", 1: "a blob, no tag", 2: "blobs, no tag"}[sum(have.values())]


def _get(url: str) -> tuple[int, bytes]:
    try:
        with urlopen(Request(url, headers={"Accept": OCI_MANIFEST})) as answer:
            return answer.status, answer.read()
    except HTTPError as error:
        return error.code, b""
