"""Where bytes are asked for, and in which order.

What a build needs is looked for here first (whoever asks does that). Then it is asked of each provider that is known,
of its mirrors before it: those that the log names with the provider, then those that this machine's registries.toml
names, in order. What no place has is made again by the step that made it (I8). Mirrors are places like any other: each
is asked with its own name, scope and credentials, and what came of it is in the log under that name.

- What was wrong at a place is not asked of it again for that blob, by this build. A mirror is so condemned by a wrong
  part too; a provider only by all of the blob: what a part must be is the word of whoever made the image.
- A mirror that cannot be reached is not asked again by this build, whatever for: it is a shortcut, and one that makes
  everything wait for its timeouts is none. The client is less patient with mirrors, too (Limits.mirror_tries).
- A mirror that does not have something is passed over. It was not known to have it, so nothing is lost.
- A mirror is not remembered as a provider of what it gave: whether it is asked is for registries.toml to say.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import TypeVar

from engine.errors import RefledgerError, RegistryError, VerificationError
from engine.events import SourceTried
from storage.digest import Digest
from storage.errors import FailureKind, TocUnusable
from storage.interfaces.images import Attempt, Descriptor, Mirror, Provider, Reference

T = TypeVar("T")
Mirrors = Callable[[Provider], Sequence[Mirror]]
"""Who else has what a provider has, in the order in which they are to be asked."""


def no_mirrors(_provider: Provider) -> Sequence[Mirror]:
    """Mirrors of a machine that has none."""
    return ()


@dataclass(slots=True)
class Places:
    """The places of one build, and what it learned of them."""

    mirrors: Mirrors = no_mirrors
    _wrong: dict[Digest, dict[tuple[str, str], VerificationError]] = field(default_factory=dict)
    _silent: set[str] = field(default_factory=set)

    def of(self, providers: Iterable[Provider], digest: Digest) -> Iterator[Provider]:
        """Whom to ask for blob or manifest `digest`, each place once. Take the next one when the one before has failed,
        and was told of by `failed`."""
        seen: set[tuple[str, str]] = set()
        for provider in providers:
            for place in (*(mirror.provider for mirror in self._before(provider)), provider):
                if place.coordinates not in seen and self._worth_asking(place, digest):
                    yield place
                seen.add(place.coordinates)

    def failed(self, place: Provider, digest: Digest, error: RefledgerError, *, part: bool = False) -> None:
        """`place` could not give `digest`, or (`part`) some of it."""
        if isinstance(error, TocUnusable):
            return  # the blob itself is as it was promised
        if isinstance(error, VerificationError):
            if place.mirror_of or not part:
                self._wrong.setdefault(digest, {})[place.coordinates] = error
        elif isinstance(error, RegistryError) and place.mirror_of and _unreachable(error):
            self._silent.add(place.registry)

    def refusal(self, digest: Digest) -> RefledgerError:
        """The error for when there was nobody to ask for `digest`."""
        for error in self._wrong.get(digest, {}).values():
            return error
        return RegistryError("no provider is known", kind="missing")

    async def first(
        self, providers: Iterable[Provider], digest: Digest, ask: Callable[[Provider], Awaitable[T]]
    ) -> tuple[T, Provider]:
        """What `ask` makes of the first place that can give `digest`, and that place. Raises what the last one raised:
        RegistryError, VerificationError."""
        failure: RefledgerError | None = None
        for place in self.of(providers, digest):
            try:
                return await ask(place), place
            except (RegistryError, VerificationError) as error:
                self.failed(place, digest, error)
                failure = error
        raise failure or self.refusal(digest)

    async def resolve(
        self, reference: Reference, ask: Callable[[Reference], Awaitable[Descriptor]]
    ) -> tuple[Descriptor, Provider]:
        """What `reference` names, by the first place that says it, and that place. What a tag is is asked of mirrors
        that may say it. Raises what the last one raised: RegistryError, VerificationError, InputError."""
        for mirror in self._before(reference.provider):
            place = mirror.provider
            if place.registry in self._silent or not (mirror.tags or reference.digest):
                continue
            asked = replace(
                reference, registry=place.registry, repository=place.repository, mirror_of=place.mirror_of
            )
            try:
                return await ask(asked), place
            except RegistryError as error:
                if _unreachable(error):
                    self._silent.add(place.registry)
            except VerificationError:
                pass  # of a manifest that was named by digest
        return await ask(reference), reference.provider

    def _before(self, provider: Provider) -> Iterator[Mirror]:
        """Mirrors of `provider`, as places."""
        named = (Mirror(Provider.of(host, provider.repository)) for host in provider.mirrors)
        for mirror in (*named, *self.mirrors(provider)):
            yield Mirror(replace(mirror.provider, mirror_of=str(provider)), mirror.tags)

    def _worth_asking(self, place: Provider, digest: Digest) -> bool:
        if place.mirror_of and place.registry in self._silent:
            return False
        return place.coordinates not in self._wrong.get(digest, {})


def kind_of(error: RefledgerError) -> FailureKind:
    """What `error`, of a place that was asked, is called in the log."""
    return error.kind if isinstance(error, RegistryError) else "corrupt"


def is_loss(place: Provider, kind: FailureKind) -> bool:
    """Is a failure of this kind something that the log must know of `place`: it was known to have the bytes, and cannot
    give them? Not what may pass; and a mirror never promised anything, but is not to give wrong bytes."""
    return kind == "corrupt" or (kind in {"missing", "auth"} and not place.mirror_of)


def tried(attempt: Attempt) -> SourceTried:
    """The fact that `attempt` is."""
    return SourceTried(
        verb=attempt.verb,
        name=attempt.name,
        provider=attempt.provider.to_json(),
        status=attempt.status,
        outcome=attempt.outcome,
        bytes=attempt.bytes,
        seconds=round(attempt.seconds, 6),
        error=attempt.error,
        mirror_of=attempt.provider.mirror_of,
    )


def _unreachable(error: RegistryError) -> bool:
    """Did nobody answer, or somebody who cannot serve anyone just now?"""
    return error.kind == "transport" and (error.status in {0, 408, 425, 429} or error.status >= 500)
