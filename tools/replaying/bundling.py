"""From a build in a root to a bundle in a file."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from projections.runner import Views
from storage.bundle.form import Index
from storage.bundle.writing import write_bundle
from storage.errors import DiskError, InputError
from storage.temporary import TemporaryPlace
from tools import __version__, connecting, known, roots
from tools.auditing.bundles import prove_events
from tools.auditing.checkpoints import AuditedLog
from tools.replaying.gather import Gathering, Wish
from tools.replaying.story import read_graph, read_story


@dataclass(frozen=True, slots=True)
class Bundled:
    """What was written: `size` of the file in bytes, `events` in it."""

    index: Index
    size: int
    events: int


def bundle_build(root: Path, log: AuditedLog, views: Views, build: str, dest: str, wish: Wish) -> Bundled:
    """Write build `build` (its whole id) of `root` to `dest`. The root is only read. Raises InputError, DiskError,
    VerificationError (also when the log is not what was signed), RegistryError (`wish.full` may have to fetch)."""
    from projections.history import History

    record = History(views).get(build)
    if record.status == "running" and roots.is_running(root, record.id):
        raise InputError(f"build {record.id} has not ended", hint="bundle it when it has")
    story = read_story(log, record)
    blobs = roots.read_blobs(root)
    beside = None if dest == "-" else Path(dest).absolute().parent
    try:
        place = TemporaryPlace(beside)
    except OSError as error:
        raise DiskError.of(error, "writing the bundle", dest=dest) from error
    staging = place.path
    try:
        gathering = Gathering(
            story, read_graph(story, blobs.get), blobs, roots.stored_tars(root, staging / "scratch"), staging, wish,
            lambda digest: known.known_providers(views, digest), connecting.fetch_blob,
        )  # fmt: skip
        events = story.told
        index = gathering.gather(__version__, prove_events(root, log, events))
        size = write_bundle(dest, index, events, gathering.open)
    except OSError as error:
        raise DiskError.of(error, "writing the bundle", dest=dest) from error
    finally:
        place.remove()
    return Bundled(index, size, len(events))
