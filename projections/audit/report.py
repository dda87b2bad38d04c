"""The audit report: every answer about a build or a digest, put together from the log (and the blobs it names)."""

from __future__ import annotations

from projections.asked import Blobs
from projections.audit import inputs, layers, steps, subject, trouble
from projections.audit.index import AuditIndex
from projections.audit.statements import BuildReport, Report
from projections.audit.told import read_told
from projections.changes import Hides
from projections.fields import BAD_EVENT
from projections.history import BuildRecord, History
from projections.mentions import Mentions
from projections.runner import Views
from projections.verdict import Why
from projections.why import explain
from storage.errors import InputError, LogError
from storage.interfaces.log import EventLog


def report(log: EventLog, blobs: Blobs, views: Views, name: str, hides: Hides, *, reverse: bool = False) -> Report:
    """What there is to say of build or digest `name`; `reverse`: also which builds stand on it.
    Raises InputError (nothing is called so), LogError, VerificationError."""
    record, whole = subject.find(log, views, name)
    kind = "digest" if record is None else "build"
    made, count = subject.makers(log, views, whole) if record is None else ([], 0)
    if record is None and made:
        record = _known(views, made[0].build)
    told = None if record is None else build_report(log, blobs, views, record, hides)
    below = None
    if reverse:
        gave = {whole} if kind == "digest" or told is None else _gave(told)
        makers = {whole} if kind == "build" else {item.build for item in made}
        below = tuple(subject.built_from(log, views, gave, makers))
    return Report(whole, kind, log.last_seq(), count, tuple(made), told, below)


def _gave(told: BuildReport) -> set[str]:
    """What others can stand on: results, and what steps of this build made on the way."""
    names = {name for item in told.results for name in (item.digest, item.ref)}
    names |= {ref for step in told.steps if step.outcome == "executed" for ref in step.outputs}
    return names - {""}


def _known(views: Views, build: str) -> BuildRecord | None:
    try:
        return History(views).get(build)
    except InputError:
        return None


def build_report(
    log: EventLog, blobs: Blobs, views: Views, record: BuildRecord, hides: Hides, why: Why | None = None
) -> BuildReport:
    """What there is to say of one build; `why` when it is at hand. Raises LogError, VerificationError."""
    why = why or explain(log, blobs, History(views), record, None, hides, Mentions(views))
    try:
        told = read_told(log, views, record, why)
        gave = inputs.results(told)
        known = layers.layers(told, gave)
        ran = steps.steps(told)
        checkpoint = AuditIndex(views).covering(record.last_seq or record.first_seq)
        return BuildReport(
            build=inputs.identity(told),
            results=tuple(gave),
            inputs=tuple(inputs.inputs(told)),
            resolutions=tuple(inputs.resolutions(told)),
            steps=tuple(ran),
            layers=tuple(known.layers),
            served=tuple(known.served),
            decisions=tuple(inputs.decisions(told)),
            attestations=tuple(inputs.attestations(told)),
            attempts=tuple(trouble.attempts(told)),
            let_go=tuple(known.let_go),
            against=why.against.id if why.against else "",
            differences=tuple(trouble.differences(told, blobs, hides)),
            checkpoint=checkpoint,
            gaps=tuple(trouble.gaps(told, ran, known.layers, checkpoint)),
        )
    except BAD_EVENT as error:
        raise LogError(
            f"an event of build {record.id} is malformed: {str(error)[:200] or type(error).__name__}",
            hint="the log was edited or damaged: refledger audit verify tells where",
        ) from error
