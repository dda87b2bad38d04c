"""The bounds that a registry client keeps to."""

from __future__ import annotations

from dataclasses import dataclass

MIB = 1 << 20


@dataclass(frozen=True, slots=True)
class Limits:
    """Seconds, bytes and counts.

    `connect_seconds` to get a connection, `stall_seconds` without a byte either way, or with less than `stall_bytes` of
    an answer's body; `commit_seconds` for the answer to a write (a registry hashes and moves a blob before it answers);
    `tries` of one request, the pauses between them growing from `backoff_seconds` to at most `backoff_cap_seconds`;
    `mirror_connect_seconds` and `mirror_tries`: the same of a mirror, as there is another place to ask; a `Retry-After`
    is honoured up to `retry_after_cap_seconds`; `progress_bytes`: a download that broke off after this much starts its
    count of tries anew; `chunk_bytes`: pieces in which blobs are handed on, of less once `chunk_seconds` passed;
    `patch_bytes`: pieces of a chunked upload; `lasting_bytes`: blobs from this size on are uploaded so that another
    process can go on.
    """

    connect_seconds: float = 15.0
    stall_seconds: float = 60.0
    stall_bytes: int = 1024
    commit_seconds: float = 300.0
    tries: int = 5
    mirror_connect_seconds: float = 5.0
    mirror_tries: int = 2
    backoff_seconds: float = 0.25
    backoff_cap_seconds: float = 20.0
    retry_after_cap_seconds: float = 120.0
    redirects: int = 5
    progress_bytes: int = MIB
    chunk_bytes: int = MIB // 2
    chunk_seconds: float = 0.1
    patch_bytes: int = 16 * MIB
    lasting_bytes: int = 8 * MIB
    manifest_bytes: int = 16 * MIB
    answer_bytes: int = 64 * 1024

    def tries_of(self, *, hurried: bool) -> int:
        """Tries of one request, `hurried` to a mirror."""
        return min(self.tries, self.mirror_tries) if hurried else self.tries
