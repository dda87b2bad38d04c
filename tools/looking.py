"""Looking at images without a build: names, manifests and configs, and what of their layers is where (I13)."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from engine.images.combine import CONFIGS
from engine.images.index import read_config
from engine.images.inspect import (
    ImageView,
    Inspected,
    LayerView,
    RefView,
    Where,
    image_layers,
    image_view,
    index_entries,
)
from engine.images.place import descriptors
from engine.images.read import ImageReader, Manifest
from engine.images.resolver import ImageResolver, Resolver
from engine.ledger import Silent
from engine.offline.names import OfflineResolver, RecalledNames
from engine.offline.nobody import NoRegistry
from engine.refs.places import Places
from engine.refs.ref import Layer
from projections.cache_index import CacheIndex
from projections.fields import PUSHED
from projections.history import History
from projections.names import Names
from projections.refs import Refs
from projections.runner import Views
from storage.blobs import DirectoryBlobs, WithMore
from storage.digest import Digest
from storage.errors import InputError
from storage.interfaces.blobs import BlobStore
from storage.interfaces.images import Descriptor, Platform, Provider, Reference, Referrer
from storage.interfaces.log import EventLog
from storage.interfaces.registry import RegistryListing
from storage.layout.listing import WithLayoutListing
from storage.layout.source import WithLayouts
from storage.platform import choose_platform, host_platform
from storage.reference import LAYOUT, parse_layout, parse_reference
from storage.temporary import TemporaryPlace
from tools import roots
from tools.connecting import known_registries, registry_client
from tools.imaging import passing_imaging
from tools.known import LogAnswers, known_providers
from tools.layer_files import RootFiles


@dataclass(frozen=True, slots=True)
class Looking:
    """What inspecting asks: `images` of registries or of this root, `names` where nobody else may say what they are,
    `listing` where somebody may be asked; and what is where of their layers. `log` and `views` of the root, if there
    is one."""

    images: ImageReader
    names: RecalledNames | None
    listing: RegistryListing | None
    root: Path
    log: EventLog | None
    views: Views | None

    async def top(self, reference: Reference, platform: str) -> Descriptor:
        """What `reference` names. Raises RegistryError, InputError."""
        if self.names is not None:
            return await self.names.resolve(reference, platform)
        return (await self.images.places.resolve(reference, self.images.registry.resolve))[0]

    async def inspect(
        self, reference: Reference, platform: Platform | None, *, every: bool = False, referrers: bool = False
    ) -> Inspected:
        """What `reference` names: of an index also the image for `platform`, else for this machine, else the first;
        none of it when `every` entry is what is asked for. Raises InputError, RegistryError, VerificationError,
        DiskError."""
        where, provider = str(reference), reference.provider
        wanted = platform or host_platform()
        digest = (await self.top(reference, str(wanted))).digest
        top = await self.images.manifest(provider, digest, where)
        entries = index_entries(top, where)
        image = top
        if top.is_index:
            images = [entry for entry in entries if not entry.attests]
            there = any(entry.name == str(wanted) for entry in images)
            if platform is not None or there or not images:
                digest = choose_platform(top.fields, wanted).digest
            else:
                digest = images[0].blob.digest
            if not every:
                image = await self.images.manifest(provider, digest, f"{provider}@{digest}")
        view = None if image.is_index else await self._image(image, provider, f"{provider}@{image.digest}")
        if view is not None and not top.is_index and platform is not None and view.platform != str(platform):
            raise InputError(f"the image is for {view.platform or 'no platform'}, not {platform}", where=where)
        listed = None
        if referrers:
            digests = dict.fromkeys((top.digest, image.digest))
            listed = {str(one): await self._referrers(provider, one) for one in digests}
        return Inspected(where, top, entries, view, listed)

    async def raw(self, reference: Reference, platform: Platform | None, *, config: bool) -> bytes:
        """The manifest or index that `reference` names, or the manifest for `platform`, or that one's config. Raises as
        `inspect` does."""
        where, provider = str(reference), reference.provider
        if platform is None and not config:
            top = await self.top(reference, str(host_platform()))
            return (await self.images.manifest(provider, top.digest, where)).data
        image = (await self.inspect(reference, platform)).image
        if image is None or (config and image.config_blob is None):
            raise InputError("there is no image with a config", where=where)
        if not config:
            return image.manifest.data
        assert image.config_blob is not None
        return await self.images.config(provider, image.config_blob, where)

    async def _image(self, manifest: Manifest, provider: Provider, where: str) -> ImageView:
        blob = next((blob for blob, _ in descriptors(manifest.fields, "config", where)), None)
        config = {}
        if blob is not None and blob.media_type in CONFIGS:
            config = await read_config(self.images, provider, blob, where)
        layers = [replace(layer, providers=(provider,)) for layer in image_layers(manifest, config, where)]
        return image_view(manifest, blob, config, layers, [self.where(layer) for layer in layers])

    async def _referrers(self, provider: Provider, digest: Digest) -> Sequence[Referrer]:
        if self.listing is None:
            raise InputError("--offline asks nobody what refers to the image", hint="leave --referrers out")
        return await self.listing.referrers(provider, digest)

    def of_build(self, build: str) -> Reference | None:
        """What `build`, an id, put under a name; None when this root has no such build. Raises InputError for one that
        put nothing, LogError."""
        if self.log is None or self.views is None:
            return None
        try:
            record = History(self.views).get(build)
        except InputError:
            return None
        for event in self.log.read(after=record.first_seq, until=record.last_seq, types=frozenset({"Exported"})):
            if event.build == record.id and event.data.get("kind") in PUSHED:
                return replace(_named(str(event.data["target"])), digest=Digest(event.data["digest"]))
        hint = f"refledger show {record.id} tells what it made; refledger inspect takes the id of a ref, too"
        raise InputError(f"build {record.id} put no image into a registry", hint=hint)

    def of_ref(self, ref: str) -> RefView | None:
        """What the log knows of a ref, by its id or the beginning of it; None when it knows none."""
        if self.views is None:
            return None
        try:
            record = Refs(self.views).get(ref)
        except InputError:
            return None
        known = LogAnswers(CacheIndex(self.views))
        providers = tuple(map(Provider.from_json, record.providers))
        layers = [known.known(Layer.from_json(item)) for item in record.layers]
        layers = [replace(one, providers=tuple(dict.fromkeys((*one.providers, *providers)))) for one in layers]
        views = [LayerView(one, self.where(one)) for one in layers]
        return RefView(record.ref, record.kind, record.build or "", tuple(views))

    def where(self, layer: Layer) -> Where:
        """The three facts of `layer`, asked of three places (I7). Who has it: its own providers, as their manifests say
        so, then all that the log knows."""
        if self.views is None:
            return Where(providers=layer.providers)
        blob = layer.blob
        stored = blob is not None and roots.read_blobs(self.root).size(blob.digest) is not None
        known = known_providers(self.views, blob.digest) if blob else ()
        mountable = RootFiles(self.root).where({**layer.to_json(), "digest": ""}) != ""
        return Where(mountable, stored, tuple(dict.fromkeys((*layer.providers, *known))))


def _named(target: str) -> Reference:
    return parse_layout(target) if target.startswith(LAYOUT) else parse_reference(target)


@asynccontextmanager
async def passing_resolver(*, offline: bool) -> AsyncIterator[Resolver]:
    """A resolver for those who ask what a build would: nothing is recorded, and nothing in the root changes. `offline`:
    it knows what the root knows. Raises InputError, LogError."""
    if offline:
        async with looking(offline=True) as here:
            images = here.images
            yield OfflineResolver(ImageResolver(images.registry, images.blobs, Silent(), here.names, images.places))
        return
    async with passing_imaging() as asking:
        images = asking.images
        yield ImageResolver(images.registry, images.blobs, Silent(), places=images.places)


@asynccontextmanager
async def looking(*, offline: bool) -> AsyncIterator[Looking]:
    """For those who ask what images are: nothing is recorded, and nothing in the root changes. `offline`: what is here
    answers alone. Raises InputError, LogError."""
    async with AsyncExitStack() as stack:
        path = roots.root_directory()
        # without a root there is less to tell, and nothing to complain of
        found = stack.enter_context(roots.read_root(path)) if offline or (path / "log.db").exists() else None
        log, views = found or (None, None)
        if offline:
            assert views is not None
            registry = WithLayouts(NoRegistry())
            names = RecalledNames(Names(views), registry)
            yield Looking(ImageReader(registry, roots.read_blobs(path)), names, None, path, log, views)
            return
        scratch = stack.enter_context(TemporaryPlace())
        client = registry_client()
        stack.push_async_callback(client.aclose)
        blobs: BlobStore = DirectoryBlobs(scratch, owner="look")
        if found is not None:
            blobs = WithMore(blobs, roots.read_blobs(path))
        images = ImageReader(WithLayouts(client), blobs, Places(known_registries().mirrors))
        yield Looking(images, None, WithLayoutListing(client), path, log, views)
