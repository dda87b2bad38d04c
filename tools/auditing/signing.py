"""Signing and publishing as commands do it: at the end of a build, and on demand."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from storage.errors import RefledgerError, VerificationError
from storage.interfaces.log import NewEvent
from tools.auditing import keys
from tools.roots import Root

if TYPE_CHECKING:
    from tools.auditing.checkpoints import Signed

PUBLISH = "REFLEDGER_AUDIT_PUBLISH"


@contextmanager
def signing_after(root: Root) -> Iterator[None]:
    """Sign the log after what is done within, however that ends, when a key is configured; and publish that where
    `$REFLEDGER_AUDIT_PUBLISH` says. What cannot be signed or published is warned of: the build is what it is. But a log
    that contradicts what was signed is an error, unless there is one already. Raises InputError (no key), DiskError
    before, VerificationError after."""
    signer = keys.find_signer(root.path)
    if signer is None:
        yield
        return
    target = os.environ.get(PUBLISH, "")
    if target:
        from tools.auditing.published import Target

        Target.parse(target)  # reason: before hours of building, not after
    failed = True
    try:
        yield
        failed = False
    finally:
        from tools.auditing.checkpoints import sign_checkpoint

        try:
            signed = sign_checkpoint(root, signer)
            if target and signed.new:
                publish(root, signed, target)
        except RefledgerError as error:
            if isinstance(error, VerificationError) and not failed:
                raise
            sys.stderr.write(f"WARNING: the log was not signed: {_clean(error)}\n")


def publish(root: Root, signed: Signed, target: str, subject: str = "", *, must: bool = False) -> str:
    """Publish `signed`, and say in the log that it was, or why not: then a warning is written, or, when it `must` be
    published, the error raised. Returns where it is, "" when it is not."""
    from engine.events import CheckpointPublished, CheckpointPublishFailed, to_data
    from tools.auditing import published

    size, digest = signed.checkpoint.size, signed.checkpoint.root.hex()
    where = published.Target.parse(target)
    try:
        name = published.publish(signed, where, subject)
    except RefledgerError as error:
        failure = CheckpointPublishFailed(size=size, root=digest, target=str(where), error=str(error))
        root.log.append(NewEvent("log", "CheckpointPublishFailed", to_data(failure)))
        if must:
            raise
        sys.stderr.write(f"WARNING: the checkpoint was not published: {_clean(error)}\n")
        return ""
    fact = CheckpointPublished(size=size, root=digest, target=str(where), digest=name)
    root.log.append(NewEvent("log", "CheckpointPublished", to_data(fact)))
    return f"{where}@{name}" if name else str(where)


def _clean(error: RefledgerError) -> str:
    from tools.text import clean

    return clean(str(error))
