"""A blob as one stream, from the places that have it: where one breaks off, the next one goes on.

I3: all of the stream is digested, whoever sent which part of it. What went out cannot be taken back, so wrong bytes end
it; whoever reads begins anew then, and the places that were at fault are not asked again.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass, field

from engine.errors import RefledgerError, RegistryError, VerificationError
from engine.events import ProviderLost
from engine.ledger import Facts
from engine.refs.places import Places, is_loss, kind_of
from storage.digest import Hasher
from storage.interfaces.images import Descriptor, Provider
from storage.interfaces.registry import RegistrySource


@dataclass(slots=True)
class Relay:
    """One stream of `blob`, known to be at `providers`; `ref` names it for the log. `asked`: the places that were;
    `served`: those whose bytes went out."""

    registry: RegistrySource
    places: Places
    facts: Facts
    ref: str
    blob: Descriptor
    providers: Sequence[Provider]
    asked: list[Provider] = field(default_factory=list)
    served: list[Provider] = field(default_factory=list)

    async def stream(self, start: int = 0) -> AsyncGenerator[bytes, None]:
        """All bytes, in order. Raises what the last place raised (RegistryError, VerificationError), and
        VerificationError instead of ending when they are not the blob. With `start`, an offset in bytes, what follows
        that only, which is for whoever has the bytes before it to verify."""
        blob, loop = self.blob, asyncio.get_running_loop()
        hasher, sent = Hasher(blob.digest.algorithm), start
        failure: RefledgerError | None = None
        for place in self.places.of(self.providers, blob.digest):
            self.asked.append(place)
            try:
                async with self.registry.blob(place, blob, start=sent, end=blob.size) as stream:
                    self.served.append(place)
                    async for chunk in stream:
                        hashing = loop.run_in_executor(None, hasher.update, chunk)
                        sent += len(chunk)
                        yield chunk
                        await hashing
                break
            except (RegistryError, VerificationError) as error:
                if sent == blob.size:
                    break  # all of it is here: whether that is right is seen below
                failure = error
                self._failed(place, error)
        else:
            raise failure or self.places.refusal(blob.digest)
        if not start and hasher.digest() != blob.digest:
            raise self._condemned(f"its bytes have the digest {hasher.digest()}")

    def _failed(self, place: Provider, error: RefledgerError) -> None:
        self.places.failed(place, self.blob.digest, error)
        kind = kind_of(error)
        if is_loss(place, kind):
            digest = str(self.blob.digest)
            lost = ProviderLost(ref=self.ref, digest=digest, provider=place.to_json(), kind=kind, error=str(error))
            self.facts.post(lost)

    def _condemned(self, why: str) -> VerificationError:
        """The error for a whole that is wrong. Of several that gave parts of it, the mirrors are suspected first."""
        suspects = [place for place in self.served if place.mirror_of] or self.served
        hint = "the copy in the registry is damaged: push the image again"
        errors = [
            VerificationError(
                f"the registry's blob is not what its digest promises: {why}",
                where=f"{place}@{self.blob.digest}",
                hint=hint,
            )
            for place in suspects
        ]
        for place, error in zip(suspects, errors, strict=True):
            self._failed(place, error)
        return errors[0]
