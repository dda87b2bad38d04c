"""What a build without a network takes from the log, and what it says of that which the log does not know."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any, cast

import pytest

from engine.events import GitResolved, HttpResolved
from engine.graph import ArchiveSource, GitSource, HttpSource
from engine.images.resolver import ImageResolver
from engine.ledger import Silent
from engine.offline.missing import NotHere
from engine.offline.names import OfflineResolver, RecalledNames
from engine.offline.nobody import NoRegistry, NoRepositories, NoWeb
from engine.offline.sources import OfflineSources
from storage.blobs import DirectoryBlobs
from storage.digest import sha256
from tests.engine.solver.kit import Recorded

DIGEST = str(sha256(b"content"))
COMMIT = "c" * 40


class Forgetful:
    """A log that knows nothing."""

    def image(self, _name: str, _platform: str) -> None:
        return None

    def page(self, _url: str) -> None:
        return None

    def commit(self, _remote: str, _ref: str) -> None:
        return None


def sources(told: Recorded) -> OfflineSources:
    here: Any = (None, None, None, Forgetful(), None, told, None)
    return OfflineSources(NoWeb(), NoRepositories(), *here, commits=Forgetful())


def test_what_is_written_with_its_digest_or_commit_needs_no_log() -> None:
    told = Recorded()
    offline = sources(told)
    page = HttpSource("https://h.example/f", "f", digest=DIGEST)
    archive = ArchiveSource("https://h.example/a.tar", digest=DIGEST)
    assert asyncio.run(offline.pin(page)) == page
    assert asyncio.run(offline.pin(archive)) == archive
    repository = asyncio.run(offline.pin(GitSource("https://h.example/r.git", ref=COMMIT)))
    assert repository.commit == COMMIT
    assert asyncio.run(offline.pin(repository)) == repository
    assert len(told.of(GitResolved)) == 1
    assert told.of(HttpResolved) == []


@pytest.mark.parametrize(
    "op",
    [HttpSource("https://h.example/f", "f"), ArchiveSource("https://h.example/a"), GitSource("https://h.example/r.git")],
)
def test_what_the_log_does_not_know_is_missing(op: HttpSource | ArchiveSource | GitSource) -> None:
    with pytest.raises(NotHere) as caught:
        asyncio.run(sources(Recorded()).pin(op))
    (lack,) = caught.value.missing
    assert "the log does not know" in lack.detail


def test_platforms_of_a_name_that_the_log_does_not_know_are_missing(tmp_path: Path) -> None:
    names = RecalledNames(Forgetful(), NoRegistry())
    inner = ImageResolver(NoRegistry(), DirectoryBlobs(tmp_path, owner="t"), cast("Any", Silent()), names)
    resolver = OfflineResolver(inner)
    with pytest.raises(NotHere) as caught:
        asyncio.run(resolver.platforms("debian:12"))
    (lack,) = caught.value.missing
    assert (lack.kind, lack.name) == ("image", "debian:12")
    assert resolver.base_of(sha256(b"manifest")) is None
