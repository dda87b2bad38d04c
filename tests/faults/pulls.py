"""The faults of a pull: what a registry, its object store, its token server and the network do to a layer on its way
in, and to a manifest."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from dataclasses import replace
from email.utils import formatdate
from typing import Any

from storage.digest import sha256
from tests.faults.image import LAYER, MIDDLE, PLACES
from tests.faults.scene import LIST, MANIFEST, NOW, PULL, RANGES, RIGHT, Row, Scene
from tests.faulty import Answer, Fault, Request, Seen

SIZE = len(LAYER)
TAG_LIST = "/tags/list"
Play = Callable[[Scene], Iterable[Fault]]


def once(**options: Any) -> Play:
    """The first request for the blob meets this."""
    return lambda scene: [Fault("GET", "/blobs/", 1, **options)]


def always(**options: Any) -> Play:
    """Every request for the blob meets this."""
    return lambda scene: [Fault("GET", "/blobs/", **options)]


def broken_then(**options: Any) -> Play:
    """The connection breaks in the middle, and every request for the rest meets this."""
    return lambda scene: [Fault("GET", "/blobs/", 1, reset_after=MIDDLE), Fault("GET", "/blobs/", **options)]


def edited(edit: Callable[[Answer], None], *, times: int = -1, **options: Any) -> Play:
    """The registry's answer is changed."""
    return lambda scene: [Fault("GET", "/blobs/", times, edit_answer=edit, **options)]


def damage(place: int) -> Callable[[Answer], None]:
    """One bit at `place`; 0 is the first byte, -1 the last."""

    def edit(answer: Answer) -> None:
        body = bytearray(answer.body)
        if body:
            body[place] ^= 1
        answer.body = bytes(body)

    return edit


def _header(name: str, value: str) -> Callable[[Answer], None]:
    def edit(answer: Answer) -> None:
        answer.headers[name] = value

    return edit


def _blocks(answer: Answer) -> None:
    """At most 30000 bytes an answer, as a cache of blocks gives them."""
    if answer.status == 206:
        start = int(answer.headers["content-range"].removeprefix("bytes ").partition("-")[0])
        answer.body = answer.body[:30_000]
        answer.headers["content-range"] = f"bytes {start}-{start + len(answer.body) - 1}/{SIZE}"
        answer.headers["content-length"] = str(len(answer.body))


def _rotated(answer: Answer) -> None:
    answer.body = answer.body[7:] + answer.body[:7]


def _from(offset: int) -> Callable[[Request], None]:
    """The registry is asked for another range than the client asks for."""

    def edit(request: Request) -> None:
        if "range" in request.headers:
            request.headers["range"] = f"bytes={offset}-"

    return edit


def _ranged(seen: Seen) -> bool:
    return "range" in seen.headers


def _tags_from(first: int) -> Callable[[Answer], None]:
    """A page of a list: the tag at `first`, and where the next one is."""

    def edit(answer: Answer) -> None:
        tags = sorted(json.loads(answer.body)["tags"])
        answer.body = json.dumps({"tags": tags[first : first + 1]}).encode()
        answer.headers["content-length"] = str(len(answer.body))
        if first + 1 < len(tags):
            answer.headers["link"] = f'<?n=1&last={tags[first]}>; rel="next"'

    return edit


def _pages(**second: Any) -> Play:
    """The tags come one a page; the second page meets something first."""
    return lambda scene: [
        Fault(path=TAG_LIST, times=1, edit_answer=_tags_from(0)),
        *([Fault(path=TAG_LIST, times=1, **second)] if second else []),
        *(Fault(path=TAG_LIST, times=1, edit_answer=_tags_from(number)) for number in (1, 2)),
    ]  # fmt: skip


def _again(answer: Answer) -> None:
    answer.headers["link"] = '<?last=1>; rel="next"'


def _compressed(answer: Answer) -> None:
    answer.headers["content-encoding"] = "gzip"
    answer.body = b"\x1f\x8b" + answer.body[:100]
    answer.headers["content-length"] = str(len(answer.body))


def _html(answer: Answer) -> None:
    answer.status, answer.body = 200, b"<html>please log in to the network</html>"
    answer.headers = {"content-type": "text/html", "content-length": str(len(answer.body))}


# ---------------------------------------------------------------- other servers


def store(*faults: Fault, times: int = -1) -> Play:
    """Blobs are redirected to another origin, which has `faults`."""

    def play(scene: Scene) -> list[Fault]:
        scene.other.faults = [replace(fault) for fault in faults]
        challenge = {"WWW-Authenticate": 'Basic realm="tests"'}
        demanded = "Basic bWU6dGhlIHBhc3N3b3Jk"  # me:the password
        return [
            Fault(".*", demand=demanded, headers=challenge),
            Fault("GET", "/blobs/", times, redirect=scene.other.host),
        ]

    return play


def tokens(grant: Callable[[int], tuple[int, str]], *, wanted: str = "token-1") -> Play:
    """The registry wants a token. `grant` as in Scene; the token `wanted` is taken."""

    def play(scene: Scene) -> list[Fault]:
        scene.grant = grant
        return [Fault(".*", demand=f"Bearer {wanted}", headers=scene.challenge)]

    return play


def _expired(scene: Scene) -> list[Fault]:
    """The first token is taken once, for half of the blob; then only the second one is."""
    first = Fault("GET", "/blobs/", 1, skip=1, reset_after=MIDDLE)
    return [
        first, Fault(".*", times=1, demand="Bearer token-1", headers=scene.challenge),
        Fault(".*", demand="Bearer token-2", headers=scene.challenge),
    ]  # fmt: skip


def _each(what: str, options: Callable[[int], Play], *, ends: str = RIGHT, stuck: str = "") -> list[Row]:
    """A row for each place; with `stuck` that is how those end that get no further by asking again."""
    return [
        Row(PULL, what, at, options(place), stuck if stuck and place != MIDDLE else ends)
        for at, place in PLACES.items()
    ]  # fmt: skip


ROWS: list[Row] = [
    Row(PULL, "no fault", "", lambda scene: []),
    *[Row(PULL, f"{status} once", "", once(status=status)) for status in (500, 502, 503, 504)],
    Row(PULL, "503 always", "", always(status=503), "transport: answered 503"),
    Row(PULL, "503 with `Retry-After: 7` once", "", once(status=503, headers={"Retry-After": "7"})),
    Row(PULL, "429 without `Retry-After` once", "", once(status=429)),
    Row(PULL, "429 with `Retry-After: 7` once", "", once(status=429, headers={"Retry-After": "7"})),
    Row(PULL, "429 with a date 30 s away once", "",
        once(status=429, headers={"Retry-After": formatdate(NOW + 30, usegmt=True)})),
    Row(PULL, "429 with a date in the past once", "",
        once(status=429, headers={"Retry-After": formatdate(NOW - 30, usegmt=True)})),
    Row(PULL, "429 with `Retry-After: 86400` once", "", once(status=429, headers={"Retry-After": "86400"})),
    Row(PULL, "429 with `Retry-After: 7` always", "", always(status=429, headers={"Retry-After": "7"}),
        "transport: it limits requests"),
    Row(PULL, "429 with `Retry-After: 7`", "middle", broken_then(status=429, headers={"Retry-After": "7"}, times=1)),
    Row(PULL, "503", "middle", broken_then(status=503, times=1)),
    Row(PULL, "400 always", "", always(status=400), "transport: answered 400"),
    Row(PULL, "403 always", "", always(status=403), "auth: denies access"),
    Row(PULL, "404 always", "", always(status=404), "missing: does not have the blob"),
    Row(PULL, "404: the blob is deleted", "middle", broken_then(status=404), "missing: does not have the blob"),
    Row(PULL, "204 for a blob", "", always(status=204), "transport: answered 204"),
    Row(PULL, "connection reset, no answer", "", once(reset_after=0, headless=True)),
    Row(PULL, "connection reset, no answer, always", "", always(reset_after=0, headless=True), "transport: broke"),
    Row(PULL, "connection closed, no answer", "", once(cut_after=0, headless=True)),
    *_each("connection reset", lambda place: once(reset_after=place)),
    *_each("connection reset always", lambda place: always(reset_after=place), stuck="transport: broke"),
    *_each("body cut, with its length", lambda place: once(cut_after=place)),
    *_each("body cut, chunked", lambda place: once(cut_after=place, chunked=True)),
    *_each("body cut, without a length", lambda place: once(cut_after=place, hide=("content-length",))),
    *_each("body cut without a length, always", lambda place: always(
        cut_after=place, hide=("content-length",), strip=("range",)), ends="corrupt: it ends after"),
    Row(PULL, "no answer for longer than the stall limit", "", once(stall_after=0, headless=True)),
    *_each("stall", lambda place: once(stall_after=place)),
    *_each("stall always", lambda place: always(stall_after=place), stuck="transport: stopped answering"),
    Row(PULL, "a byte at a time, body", "", once(drip=0.03)),
    Row(PULL, "a byte at a time, head", "", once(drip=0.03, headless=True)),
    Row(PULL, "`Content-Length` one too small", "", always(content_length=SIZE - 1), "corrupt: are promised"),
    Row(PULL, "`Content-Length` one too large", "", always(content_length=SIZE + 1), "corrupt: are promised"),
    Row(PULL, "`Content-Length: 0`", "", always(content_length=0), "corrupt: are promised"),
    Row(PULL, "no length, bytes behind the end", "", always(hide=("content-length",), extra=b"more"),
        "corrupt: goes on after"),
    *_each("one wrong bit", lambda place: edited(damage(place)), ends="corrupt: digest promises|diff ID"),
    Row(PULL, "one wrong bit after a resumption", "middle", lambda scene: [
        Fault("GET", "/blobs/", 1, reset_after=MIDDLE), Fault("GET", "/blobs/", edit_answer=damage(-1))],
        "corrupt: digest promises|diff ID"),
    Row(PULL, "answered with an HTML page", "", edited(_html), "corrupt: are promised"),
    Row(PULL, "compressed though it must not be", "", edited(_compressed), "corrupt: are promised"),
    Row(PULL, "`Range` ignored (200)", "middle", broken_then(strip=("range",))),
    Row(PULL, "206 that begins earlier", "middle", broken_then(edit_request=_from(7))),
    Row(PULL, "206 that begins later", "middle", broken_then(edit_request=_from(MIDDLE + 7))),
    Row(PULL, "206 with bytes of another range", "middle", broken_then(edit_answer=_rotated),
        "corrupt: digest promises|diff ID"),
    Row(PULL, "206 without `Content-Range`", "middle", broken_then(hide=("content-range",))),
    Row(PULL, "206 for less than asked for", "middle", broken_then(edit_answer=_blocks)),
    Row(PULL, "416 for the rest", "middle", broken_then(status=416, when=_ranged)),
    Row(PULL, "206 of a blob of another size", "middle", broken_then(
        edit_answer=_header("content-range", f"bytes {MIDDLE}-{SIZE - 1}/{SIZE + 1}")), "corrupt: are promised"),
    Row(RANGES, "no fault", "", lambda scene: []),
    Row(RANGES, "`Range` ignored (200)", "", always(strip=("range",))),
    Row(RANGES, "a kept connection, reset by the next request", "", once(goes_stale=True)),
    Row(RANGES, "416 for every range", "", always(status=416, when=_ranged)),
    Row(RANGES, "429 with `Retry-After: 3` for the second", "", lambda scene: [
        Fault("GET", "/blobs/", 1, skip=1, status=429, headers={"Retry-After": "3"})]),
    Row(RANGES, "reset in the third", "middle", lambda scene: [Fault("GET", "/blobs/", 1, skip=2, reset_after=30_000)]),
    Row(RANGES, "wrong bit in the second", "middle", lambda scene: [
        Fault("GET", "/blobs/", 1, skip=1, edit_answer=damage(30_000))], "corrupt: digest promises|diff ID"),
    # the object store
    Row(PULL, "redirect to an object store", "", store()),
    *[Row(PULL, "object store: reset", at, store(Fault(times=1, reset_after=place))) for at, place in PLACES.items()],
    Row(PULL, "object store: 503 once", "", store(Fault(times=1, status=503))),
    Row(PULL, "object store: the link has expired (403)", "middle", store(
        Fault(times=1, reset_after=MIDDLE), Fault(times=1, status=403))),
    Row(PULL, "object store: 403 always", "", store(Fault(status=403)),
        "transport: STORE, which has the blob for the registry, denies"),
    Row(PULL, "object store: 401 with a challenge", "", store(
        Fault(status=401, headers={"WWW-Authenticate": 'Basic realm="tests"'})),
        "transport: STORE, which has the blob for the registry, denies"),
    Row(PULL, "object store: one wrong bit", "middle", store(Fault(edit_answer=damage(MIDDLE))),
        "corrupt: digest promises|diff ID"),
    Row(PULL, "redirect in circles", "", lambda scene: [Fault("GET", "/blobs/", redirect=scene.proxy.host)],
        "transport: in circles"),
    Row(PULL, "redirect without a location", "", always(status=307), "transport: answered 307"),
    Row(PULL, "redirect to a file", "", always(status=307, headers={"Location": "file:///etc/passwd"}),
        "transport: over file, not https"),
    Row(PULL, "redirect to a port where nobody listens", "",
        always(status=307, headers={"Location": "http://127.0.0.1:1/x"}), "transport: refused the connection"),
    # credentials
    Row(PULL, "a token is asked for", "", tokens(lambda asked: (200, f"token-{asked}"))),
    Row(PULL, "the token expires", "middle", _expired),
    Row(PULL, "the token server answers 503 once", "", tokens(
        lambda asked: (503, "") if asked == 1 else (200, "token-1"))),
    Row(PULL, "the token server answers 503 always", "", tokens(lambda asked: (503, "")),
        "transport: token server TOKENS answered 503"),
    Row(PULL, "the token server denies the credentials", "", tokens(lambda asked: (401, "")),
        "auth: token server TOKENS denies"),
    Row(PULL, "the token server answers with a page", "", tokens(lambda asked: (200, "<html>")),
        "auth: token server TOKENS gave no token"),
    Row(PULL, "every token is refused", "", tokens(lambda asked: (200, f"token-{asked}"), wanted="another"),
        "auth: denies access"),
    Row(PULL, "401 without a challenge", "", always(status=401), "auth: denies access"),
    # manifests
    Row(MANIFEST, "no fault", "", lambda scene: []),
    *[Row(MANIFEST, f"HEAD refused ({status})", "", lambda scene, status=status: [Fault("HEAD", status=status)])
      for status in (400, 405, 501)],
    Row(MANIFEST, "503 once", "", lambda scene: [Fault("GET", "/manifests/", 1, status=503)]),
    *[Row(MANIFEST, "connection reset", at,
          lambda scene, place=place: [Fault("GET", "/manifests/", 1, reset_after=place)])
      for at, place in (("first byte", 0), ("middle", 100), ("last byte", -1))],
    *[Row(MANIFEST, "body cut without a length", at, lambda scene, place=place: [
          Fault("GET", "/manifests/", 1, cut_after=place, hide=("content-length",))])
      for at, place in (("first byte", 0), ("middle", 100), ("last byte", -1))],
    Row(MANIFEST, "stall", "middle", lambda scene: [Fault("GET", "/manifests/", 1, stall_after=100)]),
    Row(MANIFEST, "one wrong bit", "middle", lambda scene: [Fault("GET", "/manifests/", edit_answer=damage(100))],
        "corrupt: has the digest"),
    Row(MANIFEST, "`Docker-Content-Digest` of something else", "", lambda scene: [
        Fault("HEAD", edit_answer=_header("docker-content-digest", str(sha256(b"else"))))],
        "missing: does not have the manifest"),
    Row(MANIFEST, "`Docker-Content-Digest` is no digest", "", lambda scene: [
        Fault("HEAD", edit_answer=_header("docker-content-digest", "sha256:../../etc"))]),
    Row(MANIFEST, "no end", "", lambda scene: [
        Fault("GET", "/manifests/", hide=("content-length",), extra=b" " * 5000)],
        limits={"manifest_bytes": 4096}, ends="transport: longer than 4096"),
    # lists
    Row(LIST, "no fault", "", lambda scene: []),
    Row(LIST, "a page for each tag", "", _pages()),
    Row(LIST, "503 for the second page", "", _pages(status=503)),
    Row(LIST, "connection reset in the second page", "middle", _pages(reset_after=20)),
    Row(LIST, "`Link` to another host", "", lambda scene: [
        Fault(path=TAG_LIST, edit_answer=_header("link", '<http://127.0.0.1:1/v2/x/tags/list>; rel="next"'))],
        "transport: refers to NOWHERE for the next page"),
    Row(LIST, "`Link` to a file", "", lambda scene: [
        Fault(path=TAG_LIST, edit_answer=_header("link", '<file:///etc/passwd>; rel="next"'))],
        "transport: over file, not https"),
    Row(LIST, "`Link` to the page itself", "", lambda scene: [Fault(path=TAG_LIST, edit_answer=_again)],
        "transport: go in circles"),
    Row(LIST, "an HTML page", "", lambda scene: [Fault(path=TAG_LIST, edit_answer=_html)], "transport: list of tags"),
]  # fmt: skip
