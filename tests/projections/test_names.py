"""What a name was last: by platform, however it was written, and not because somebody recalled it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from engine import events as e
from projections.names import Commit, Names
from projections.runner import Views
from projections.standard import STANDARD
from tests.projections.story import PROVIDER
from tests.projections.support import ListLog, digest


@contextmanager
def names(log: ListLog) -> Iterator[Names]:
    with Views(None, STANDARD) as views:
        views.catch_up(log)
        yield Names(views)


def resolved(reference: str, platform: str, top: str, *, recalled: bool = False) -> e.SourceResolved:
    return e.SourceResolved(
        reference=reference, digest=digest(top), platform=platform, provider=PROVIDER, manifest=digest(f"{top}-m"),
        config=digest(f"{top}-c"), recalled=recalled,
    )  # fmt: skip


def test_a_name_is_what_it_was_last_for_the_platform_else_for_another() -> None:
    log = ListLog()
    log.add(resolved("debian:12", "linux/amd64", "old"), "b1")
    log.add(resolved("docker.io/library/debian:12", "linux/amd64", "amd"), "b2")
    log.add(resolved("debian:12", "linux/arm64", "arm"), "b3")
    with names(log) as known:
        name = "docker.io/library/debian:12"
        found = [known.image(name, platform) for platform in ("linux/amd64", "linux/arm64", "linux/s390x")]
        assert found == [digest("amd"), digest("arm"), digest("arm")]
        assert known.image("docker.io/library/debian:13", "linux/amd64") is None


def test_a_push_from_here_says_what_the_name_is_for_every_platform() -> None:
    log = ListLog()
    log.add(resolved("host:5000/app:1", "linux/amd64", "old"), "b1")
    log.add(e.Exported(kind="image", target="host:5000/app:1", digest=digest("new"), layers=()), "b2")
    log.add(e.Exported(kind="oci", target="host:5000/app:1", digest=digest("file"), layers=()), "b3")
    with names(log) as known:
        assert known.image("host:5000/app:1", "linux/amd64") == digest("new")
    log.add(resolved("host:5000/app:1", "linux/amd64", "later"), "b4")
    with names(log) as known:
        assert known.image("host:5000/app:1", "linux/amd64") == digest("later")


def test_what_was_recalled_is_no_news() -> None:
    log = ListLog()
    log.add(resolved("debian:12", "linux/amd64", "amd"), "b1")
    log.add(resolved("debian:12", "linux/arm64", "arm"), "b2")
    log.add(resolved("debian:12", "linux/amd64", "amd", recalled=True), "b3")
    with names(log) as known:
        assert known.image("docker.io/library/debian:12", "linux/s390x") == digest("arm")


def test_a_name_that_no_image_could_have_is_kept_as_it_is() -> None:
    log = ListLog()
    log.add(resolved("Not A Name", "linux/amd64", "x"), "b1")
    with names(log) as known:
        assert known.image("Not A Name", "linux/amd64") == digest("x")


def test_a_ref_of_a_repository_is_the_commit_it_was_last() -> None:
    log = ListLog()
    log.add(e.GitResolved(remote="https://h/a.git", ref="v1", commit="1" * 40, name="refs/tags/v1"), "b1")
    log.add(e.GitResolved(remote="https://h/a.git", ref="v1", commit="2" * 40, name="refs/tags/v1", tag="3" * 40), "b2")
    log.add_raw("GitResolved", {"remote": "https://h/a.git", "ref": "", "commit": "4" * 40}, "b3")
    with names(log) as known:
        assert known.commit("https://h/a.git", "v1") == Commit("2" * 40, "refs/tags/v1", "3" * 40)
        assert known.commit("https://h/a.git", "") == Commit("4" * 40, "", "")
        assert known.commit("https://h/b.git", "v1") is None
