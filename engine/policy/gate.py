"""Keeps a build to its policies: asks the rules before anything is done, and says in the log what they said.

Several policies hold at once: what one of them forbids is forbidden. What is asked about an image twice, as two steps
take it, is decided and told once.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from engine.errors import PolicyViolation
from engine.events import PolicyDecided
from engine.ledger import Facts
from engine.policy.rules import Decision, Policy
from engine.policy.subjects import (
    Subject,
    created_image,
    export_target,
    located,
    named_image,
    named_target,
    pinned_image,
    result_layer,
    signed_image,
)
from engine.refs.ref import Layer
from storage.digest import Digest
from storage.interfaces.images import Provider, Reference

Signers = Callable[[Provider, Sequence[Digest], Sequence[str]], Awaitable[tuple[str, ...]]]
"""Those of the verifier keys (the last argument) that signed something which vouches for one of the manifests."""
_TOLD = 300
"""Characters of a name in an event or a line: it may come from anywhere."""


@dataclass(slots=True)
class Gate:
    """`now`: UTC ns; `signers`: None where nobody may be asked; `verified`: was every byte of the layer checked, or
    made, here?"""

    policies: tuple[Policy, ...]
    facts: Facts
    now: Callable[[], int]
    signers: Signers | None
    verified: Callable[[Sequence[Layer]], Sequence[bool]]
    _asked: dict[tuple[str, Subject], Decision | None] = field(default_factory=dict)

    @property
    def described(self) -> list[dict[str, str]]:
        """For BuildStarted.options."""
        return [{"file": policy.file, "digest": policy.digest} for policy in self.policies]

    @property
    def fetches(self) -> bool:
        """Are layers that were never verified here to be fetched before an export?"""
        return any(policy.fetches for policy in self.policies)

    def check(self, subjects: Iterable[Subject], vertex: str | None = None) -> None:
        """Raises PolicyViolation for the first of `subjects`, wanted by `vertex`, that is forbidden. The end of the
        build, which is recorded before anybody is told of it, makes the decision durable, too."""
        for subject in subjects:
            for policy in self.policies:
                key = (policy.digest, subject)
                if key not in self._asked:
                    self._asked[key] = policy.decide(subject, self.now())
                    if (made := self._asked[key]) is not None:
                        self.facts.post(_fact(policy, subject, made), vertex=vertex)
                decision = self._asked[key]
                if decision is not None and decision.against is not None:
                    raise violation(policy, subject, decision)

    def redirected(self, url: str) -> None:
        """A server says that what was asked for is at `url`. Raises PolicyViolation."""
        self.check([located(url)])

    # ------------------------------------------------------------ images

    def named(self, reference: Reference) -> None:
        """An image is to be asked for. Raises PolicyViolation."""
        self.check([named_image(reference)])

    async def resolved(
        self, reference: Reference, top: Digest, manifest: Digest, provider: Provider, config: Mapping[str, Any] | None
    ) -> None:
        """Its name is `top`, an index maybe, and what is taken of it `manifest`, with `config` unless only manifests
        are read. Raises PolicyViolation, and RegistryError and VerificationError where signatures are wanted."""
        subjects = [pinned_image(reference, str(top))]
        if config is not None:
            subjects.append(created_image(reference, str(manifest), config))
        self.check(subjects)
        unsigned = signed_image(reference, str(top), ())
        keys = tuple(dict.fromkeys(key for policy in self.policies for key in policy.keys(unsigned)))
        if not keys:
            return
        signers: tuple[str, ...] = ()
        if self.signers is not None:
            signers = await self.signers(provider, tuple(dict.fromkeys([top, manifest])), keys)
        self.check([signed_image(reference, str(top), signers)])

    # ------------------------------------------------------------ exports

    def targets(self, names: Iterable[Reference], kinds: Iterable[str] = ()) -> None:
        """Results are to go to `names`, and into files of `kinds`. Raises PolicyViolation."""
        self.check([*map(named_target, names), *map(export_target, kinds)])

    @property
    def minds_layers(self) -> bool:
        """Does a rule speak of layers?"""
        return any(policy.has("layers") for policy in self.policies)

    def layers(self, layers: Sequence[Layer]) -> None:
        """`layers` are to go out. Raises PolicyViolation."""
        if not self.minds_layers:
            return
        unique = list({layer.name: layer for layer in layers}.values())
        known = self.verified(unique)
        self.check(result_layer(one, verified=sure) for one, sure in zip(unique, known, strict=True))


def _fact(policy: Policy, subject: Subject, decision: Decision) -> PolicyDecided:
    rule = decision.against
    return PolicyDecided(
        rule=rule.name if rule else "",
        subject=subject.shown[:_TOLD],
        decision="denied" if rule else "allowed",
        detail=decision.detail[:_TOLD],
        policy=policy.digest,
        kind=subject.kind,
        name=subject.name[:_TOLD],
        rules=decision.rules[:100],
        evidence=subject.evidence,
        file=policy.file,
        line=rule.line if rule else 0,
    )


def violation(policy: Policy, subject: Subject, decision: Decision) -> PolicyViolation:
    """What a person reads of a decision against `subject`."""
    rule = decision.against
    assert rule is not None
    what = f"rule {rule.name!r} forbids {subject.shown[:_TOLD]}: {decision.detail[:_TOLD]}"
    return PolicyViolation(what, rule=rule.name, where=f"{policy.file}:{rule.line}", hint=decision.remedy[:_TOLD])
