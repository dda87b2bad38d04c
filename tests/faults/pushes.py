"""The faults of a push: what registries and proxies before them do to a layer on its way out, and to a manifest."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from storage.digest import sha256
from tests.faults.image import LAYER, PLACES
from tests.faults.pulls import Play
from tests.faults.scene import CHUNKS, LASTING, MOUNT, PUSH, Row, Scene
from tests.faulty import Answer, Fault, Request, Seen

UPLOADS = "/blobs/uploads/"
LARGE = {**PLACES, "last byte": len(LAYER) - 1}
"""Of an upload that says no length."""
PIECES = {"first byte": 0, "middle": 30_000, "last byte": -1}
"""Of a piece of a chunked upload."""


def to(method: str, **options: Any) -> Play:
    """The first `method` of the upload of the layer meets this."""
    return lambda scene: [Fault(method, UPLOADS, 1, **options)]


def always(method: str, **options: Any) -> Play:
    """Every `method` of an upload meets this."""
    return lambda scene: [Fault(method, UPLOADS, **options)]


def pieces(*faults: Callable[[], Fault]) -> Play:
    """A proxy bounds the size of requests, so that the layer is sent in pieces, which meet `faults`."""
    return lambda scene: [Fault("PUT", UPLOADS, 1, status=413), *(fault() for fault in faults)]


def patch(times: int = 1, *, skip: int = 1, **options: Any) -> Callable[[], Fault]:
    """What the second PATCH meets."""
    return lambda: Fault("PATCH", UPLOADS, times, skip=skip, **options)


def _edit(**headers: str | None) -> Callable[[Answer], None]:
    """Set headers of an answer; None: leave them out."""

    def edit(answer: Answer) -> None:
        for name, value in headers.items():
            answer.headers.pop(name.replace("_", "-"), None)
            if value is not None:
                answer.headers[name.replace("_", "-")] = value

    return edit


def _damage(request: Request) -> None:
    request.body = request.body[:-1] + bytes([request.body[-1] ^ 1])


def _no_mount(request: Request) -> None:
    request.path = request.path.partition("?")[0]


def _larger(seen: Seen) -> bool:
    return int(seen.headers["content-length"]) > 1 << 16


def _smaller(seen: Seen) -> bool:
    last = seen.headers["content-range"].endswith(f"-{len(LAYER) - 1}")
    return int(seen.headers["content-length"]) < 100_000 and not last


def _relative(answer: Answer) -> None:
    answer.headers["location"] = "/" + answer.headers["location"].split("/", 3)[3]


def _elsewhere(scene: Scene) -> list[Fault]:
    """The upload goes to another origin, which stores it in the same registry."""
    challenge = {"WWW-Authenticate": 'Basic realm="tests"'}

    def edit(answer: Answer) -> None:
        _relative(answer)
        answer.headers["location"] = f"http://{scene.other.host}{answer.headers['location']}"

    return [
        Fault(".*", demand="Basic bWU6dGhlIHBhc3N3b3Jk", headers=challenge),
        Fault("POST", UPLOADS, 1, edit_answer=edit),
    ]  # fmt: skip


def _expired(method: str, *, skip: int = 0) -> Play:
    """The token to push with, which is the second one, is not taken any more after `skip` requests of `method`."""

    def play(scene: Scene) -> list[Fault]:
        scene.grant = lambda asked: (200, f"token-{asked}")
        bounded = [Fault("PUT", UPLOADS, 1, status=413)] if skip else []
        return [
            Fault("HEAD", times=1, demand="Bearer token-1", headers=scene.challenge), *bounded,
            Fault(method, UPLOADS, 1, skip=skip, demand="Bearer token-3", headers=scene.challenge),
        ]  # fmt: skip

    return play


OTHER = str(sha256(b"else"))
TAG = "/manifests/1"
ROWS: list[Row] = [
    Row(PUSH, "no fault", "", lambda scene: []),
    *[Row(PUSH, f"POST: {status} once", "", to("POST", status=status)) for status in (500, 503)],
    Row(PUSH, "POST: 429 with `Retry-After: 7` once", "", to("POST", status=429, headers={"Retry-After": "7"})),
    Row(PUSH, "POST: 403", "", always("POST", status=403), "auth: denies access"),
    Row(PUSH, "POST: 404", "", always("POST", status=404), "missing: does not have the upload"),
    Row(PUSH, "POST: connection reset, no answer", "", to("POST", swallow=True)),
    Row(PUSH, "POST: no `Location`", "", to("POST", edit_answer=_edit(location=None)),
        "transport: without a location"),
    Row(PUSH, "POST: relative `Location`", "", to("POST", edit_answer=_relative)),
    Row(PUSH, "POST: `Location` at another origin", "", _elsewhere),
    Row(PUSH, "POST: `Location` is a file", "", to("POST", edit_answer=_edit(location="file:///etc/passwd")),
        "transport: over file, not https"),
    *[Row(PUSH, "PUT: connection reset", at, to("PUT", inbound=True, reset_after=place))
      for at, place in PLACES.items()],
    *[Row(PUSH, "PUT: connection reset, the registry has seen the bytes", at,
          to("PUT", inbound=True, forward=True, reset_after=place)) for at, place in PLACES.items()],
    *[Row(PUSH, "PUT: connection reset always", at, always("PUT", inbound=True, reset_after=place),
        "transport: broke")
      for at, place in PLACES.items()],
    *[Row(PUSH, "PUT of more than a piece: connection reset, in pieces then", at,
          to("PUT", inbound=True, reset_after=place), limits={"patch_bytes": 1 << 16}) for at, place in PLACES.items()],
    Row(PUSH, "PUT of more than a piece: connection reset, PATCH 405", "middle", lambda scene: [
        Fault("PUT", UPLOADS, 1, inbound=True, reset_after=PLACES["middle"]), Fault("PATCH", UPLOADS, status=405)],
        limits={"patch_bytes": 1 << 16}),
    *[Row(PUSH, "PUT: connection closed", at, to("PUT", inbound=True, cut_after=place))
      for at, place in PLACES.items()],
    *[Row(PUSH, "PUT: nobody reads on", at, to("PUT", inbound=True, stall_after=place))
      for at, place in PLACES.items()],
    *[Row(PUSH, "PUT: 503", at, to("PUT", inbound=True, cut_after=place, status=503)) for at, place in PLACES.items()],
    Row(PUSH, "PUT: 503 after the last byte, not stored", "", to("PUT", status=503)),
    Row(PUSH, "PUT: 503 after the last byte, stored", "", to("PUT", status=503, swallow=True)),
    Row(PUSH, "PUT: connection reset after the last byte, stored", "", to("PUT", swallow=True)),
    Row(PUSH, "PUT: no answer after the last byte, stored", "", to("PUT", headless=True, stall_after=0)),
    Row(PUSH, "PUT: 429 with `Retry-After: 7` once", "", to("PUT", status=429, headers={"Retry-After": "7"})),
    Row(PUSH, "PUT: 503 always", "", always("PUT", status=503), "transport: answered 503"),
    *[Row(PUSH, f"PUT: {status}, in pieces then", "", to("PUT", status=status)) for status in (405, 411, 413, 415)],
    *[Row(PUSH, "PUT: 413", at, to("PUT", inbound=True, cut_after=place, status=413)) for at, place in PLACES.items()],
    Row(PUSH, "PUT: 413 always, PATCH 405", "", lambda scene: [
        Fault("PUT", UPLOADS, status=413), Fault("PATCH", UPLOADS, status=405)], "transport: answered 413"),
    Row(PUSH, "PUT: 400 always", "", always("PUT", status=400), "transport: answered 400"),
    Row(PUSH, "PUT: one wrong bit on the way", "", lambda scene: [Fault("PUT", UPLOADS, 1, edit_request=_damage)],
        "corrupt: that arrived at the registry"),
    Row(PUSH, "PUT: `Docker-Content-Digest` of something else", "",
        to("PUT", edit_answer=_edit(docker_content_digest=OTHER)), "corrupt: stored the blob as"),
    Row(PUSH, "PUT: 401, the token has expired", "", _expired("PUT")),
    Row(PUSH, "HEAD: 405 always", "", lambda scene: [Fault("HEAD", status=405)]),
    Row(PUSH, "HEAD: 503 once", "", lambda scene: [Fault("HEAD", times=1, status=503)]),
    Row(PUSH, "HEAD: says that the layer is there, which it is not", "", lambda scene: [
        Fault("HEAD", times=1, status=200)], "transport: blob unknown to registry"),
    Row(PUSH, "manifest: 503 once", "", lambda scene: [Fault("PUT", TAG, 1, status=503)]),
    Row(PUSH, "manifest: 503 always", "", lambda scene: [Fault("PUT", TAG, status=503)], "transport: answered 503"),
    Row(PUSH, "manifest: a blob of it is unknown, for a moment", "", lambda scene: [
        Fault("PUT", TAG, 1, status=400, body=b'{"errors": [{"code": "MANIFEST_BLOB_UNKNOWN"}]}')]),
    Row(PUSH, "manifest: 400", "", lambda scene: [Fault("PUT", TAG, status=400)], "transport: answered 400"),
    *[Row(PUSH, "manifest: connection reset", at, lambda scene, place=place: [
          Fault("PUT", TAG, 1, inbound=True, reset_after=place)])
      for at, place in (("first byte", 0), ("middle", 100), ("last byte", -1))],
    Row(PUSH, "manifest: connection reset after the last byte, stored", "", lambda scene: [
        Fault("PUT", TAG, 1, swallow=True)]),
    Row(CHUNKS, "no other fault", "", pieces()),
    *[Row(CHUNKS, "PATCH: connection reset", at, pieces(patch(inbound=True, reset_after=place)))
      for at, place in PIECES.items()],
    *[Row(CHUNKS, "PATCH: connection reset, the registry drops the upload", at,
          pieces(patch(inbound=True, forward=True, reset_after=place))) for at, place in PIECES.items()],
    *[Row(CHUNKS, "PATCH: connection reset, the registry keeps what came", at,
          pieces(patch(inbound=True, keep=1 << 20, reset_after=place)))
      for at, place in (("middle", 30_000), ("last byte", -1))],
    Row(CHUNKS, "PATCH: connection reset after the last byte, kept", "", pieces(patch(keep=1 << 20, swallow=True))),
    Row(CHUNKS, "PATCH: half is taken, and the answer says so", "", pieces(patch(keep=30_000))),
    Row(CHUNKS, "PATCH: 503", "", pieces(patch(status=503))),
    Row(CHUNKS, "PATCH: 503 always", "", pieces(patch(-1, status=503)), "transport: answered 503"),
    Row(CHUNKS, "PATCH: 429 with `Retry-After: 7`", "", pieces(patch(status=429, headers={"Retry-After": "7"}))),
    Row(CHUNKS, "PATCH: 416", "", pieces(patch(status=416))),
    Row(CHUNKS, "PATCH: 416 always", "", pieces(patch(-1, status=416))),
    Row(CHUNKS, "PATCH: 404, the upload is forgotten", "", pieces(patch(status=404))),
    Row(CHUNKS, "PATCH: nobody reads on", "middle", pieces(patch(inbound=True, stall_after=30_000))),
    Row(CHUNKS, "PATCH: 401, the token has expired", "", _expired("PATCH", skip=1)),
    Row(CHUNKS, "PATCH: 413 for large pieces", "", pieces(patch(-1, skip=0, status=413, when=_larger)),
        limits={"patch_bytes": 1 << 18}),
    Row(CHUNKS, "PATCH: no `Location`", "", pieces(patch(edit_answer=_edit(location=None)))),
    Row(CHUNKS, "`OCI-Chunk-Min-Length: 100000`", "", lambda scene: [
        Fault("PUT", UPLOADS, 1, status=413),
        Fault("POST", UPLOADS, edit_answer=_edit(oci_chunk_min_length="100000")),
        Fault("PATCH", UPLOADS, when=_smaller, status=400)]),
    Row(CHUNKS, "closing PUT: 503, not stored", "", lambda scene: [
        Fault("PUT", UPLOADS, 1, status=413), Fault("PUT", UPLOADS, 1, status=503)]),
    Row(CHUNKS, "closing PUT: connection reset, stored", "", lambda scene: [
        Fault("PUT", UPLOADS, 1, status=413), Fault("PUT", UPLOADS, 1, swallow=True)]),
    Row(LASTING, "no fault", "", lambda scene: []),
    *[Row(LASTING, "PATCH: connection reset", at, to("PATCH", inbound=True, reset_after=place))
      for at, place in LARGE.items()],
    *[Row(LASTING, "PATCH: connection reset always", at, always("PATCH", inbound=True, reset_after=place))
      for at, place in LARGE.items()],
    *[Row(LASTING, "PATCH: connection reset, the registry drops the upload", at,
          to("PATCH", inbound=True, forward=True, reset_after=place)) for at, place in LARGE.items()],
    *[Row(LASTING, "PATCH: connection reset, the registry keeps what came", at,
          to("PATCH", inbound=True, keep=1 << 20, reset_after=place))
      for at, place in LARGE.items() if place],
    Row(LASTING, "PATCH: connection reset after the last byte, kept", "", to("PATCH", keep=1 << 20, swallow=True)),
    Row(LASTING, "PATCH: nobody reads on", "middle", to("PATCH", inbound=True, stall_after=LARGE["middle"])),
    *[Row(LASTING, f"PATCH: {status} once", "", to("PATCH", status=status)) for status in (500, 503)],
    Row(LASTING, "PATCH: 429 with `Retry-After: 7` once", "", to("PATCH", status=429, headers={"Retry-After": "7"})),
    Row(LASTING, "PATCH: 401, the token has expired", "", _expired("PATCH")),
    *[Row(LASTING, f"PATCH: {status}, in one piece then", "", to("PATCH", status=status))
      for status in (404, 405, 411, 413, 416, 501)],
    Row(LASTING, "closing PUT: 503, not stored", "", to("PUT", status=503)),
    Row(LASTING, "closing PUT: 503, stored", "", to("PUT", status=503, swallow=True)),
    Row(LASTING, "closing PUT: connection reset, stored", "", to("PUT", swallow=True)),
    Row(LASTING, "closing PUT: 503 always", "", always("PUT", status=503), "transport: answered 503"),
    Row(LASTING, "one wrong bit on the way", "", lambda scene: [Fault("PATCH", UPLOADS, 1, edit_request=_damage)],
        "corrupt: that arrived at the registry"),
    Row(MOUNT, "no fault", "", lambda scene: []),
    *[Row(MOUNT, f"refused with {status}", "", lambda scene, status=status: [Fault("POST", "mount=", status=status)])
      for status in (400, 401, 403, 404, 405, 422)],
    Row(MOUNT, "no mount: 202 with an upload instead", "", lambda scene: [
        Fault("POST", "mount=", edit_request=_no_mount)]),
    Row(MOUNT, "503 once", "", lambda scene: [Fault("POST", "mount=", 1, status=503)]),
    Row(MOUNT, "503 always", "", lambda scene: [Fault("POST", "mount=", status=503)]),
    Row(MOUNT, "429 with `Retry-After: 7` once", "", lambda scene: [
        Fault("POST", "mount=", 1, status=429, headers={"Retry-After": "7"})]),
    Row(MOUNT, "connection reset, mounted", "", lambda scene: [Fault("POST", "mount=", 1, swallow=True)]),
    Row(MOUNT, "connection reset always", "", lambda scene: [Fault("POST", "mount=", swallow=True)]),
    Row(MOUNT, "201, but nothing is mounted", "", lambda scene: [Fault("POST", "mount=", status=201)],
        "transport: blob unknown to registry"),
    Row(MOUNT, "201 with `Docker-Content-Digest` of something else", "", lambda scene: [
        Fault("POST", "mount=", status=201, headers={"Docker-Content-Digest": OTHER})]),
]  # fmt: skip
assert len(LAYER) > 3 << 16
