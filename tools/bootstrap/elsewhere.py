"""Who a build asks beyond its root, of concrete classes; offline: nobody."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from functools import cached_property, partial
from typing import TYPE_CHECKING

from engine.images.read import ImageReader
from engine.images.resolver import ImageResolver, Resolver
from engine.refs.places import Places, tried
from engine.refs.presence import HeadPresence
from engine.solver.answers import Presence
from storage.interfaces.registry import RegistrySource
from storage.layout.listing import WithLayoutListing
from storage.layout.source import WithLayouts
from storage.registry import RegistryClient
from tools.bases import LogBases
from tools.bootstrap.here import Here
from tools.connecting import known_registries, registry_client
from tools.policing import make_gate

if TYPE_CHECKING:
    from engine.offline.nobody import NoRegistry
    from engine.policy.gate import Gate


@dataclass(eq=False)
class Elsewhere:
    """Each part is made once, when it is first asked for, and closed with `closing`. `policies`: files of rules that
    hold beside this machine's."""

    here: Here
    offline: bool
    policies: Sequence[str]
    closing: AsyncExitStack

    @cached_property
    def client(self) -> RegistryClient | NoRegistry:
        """What speaks to registries. Raises InputError."""
        if self.offline:
            from engine.offline.nobody import NoRegistry

            return NoRegistry()
        client = registry_client(observe=lambda attempt: self.here.ledger.post(tried(attempt)))
        self.closing.push_async_callback(client.aclose)
        return client

    @cached_property
    def registry(self) -> RegistrySource:
        """The same, and layouts on this disk, to read from."""
        return WithLayouts(self.client)

    @cached_property
    def places(self) -> Places:
        """What this machine's mirrors are asked before. Raises InputError."""
        return Places() if self.offline else Places(known_registries().mirrors)

    @cached_property
    def gate(self) -> Gate | None:
        """Raises InputError."""
        listing = WithLayoutListing(self.client) if isinstance(self.client, RegistryClient) else None
        images = ImageReader(self.registry, self.here.blobs, self.places)
        return make_gate(self.policies, self.here.root.log, self.here.ledger, images, listing)

    def resolver(self) -> Resolver:
        """Who finds images by their names."""
        here = self.here
        bases = LogBases(here.root.log, here.root.views, here.blobs)
        resolver = partial(ImageResolver, self.registry, here.blobs, here.ledger, places=self.places, bases=bases)
        if not self.offline:
            return resolver(gate=self.gate)
        from engine.offline.names import OfflineResolver, RecalledNames

        return OfflineResolver(resolver(RecalledNames(here.names, self.registry), gate=self.gate))

    def presence(self) -> Presence:
        """Who confirms that layers are still where they were."""
        if not self.offline:
            return HeadPresence(self.registry, self.here.ledger, self.places)
        from engine.offline.nobody import Believed

        return Believed()
