"""Every fact that can be in the log: frozen, past tense, without behaviour (DESIGN section 4).

Field names are public interface: people `jq` them. Schemas grow by new fields with defaults (I10). A fact's `STREAM`
says which stream it belongs to: `build` (`build/<id>`), `ref` (`ref/<id>`), `cache` or `log`. Sizes are bytes,
times UTC nanoseconds, digests text.
"""

from __future__ import annotations

from engine.events.builds import (
    AgentForwarded,
    BuildCancelled,
    BuildCompleted,
    BuildFailed,
    BuildInterrupted,
    BuildStarted,
    CacheMountUsed,
    GraphDefined,
    PolicyDecided,
    RuntimeChosen,
    SecretMounted,
    SecurityLifted,
    VertexCached,
    VertexCancelled,
    VertexCompleted,
    VertexFailed,
    VertexOutput,
    VertexStarted,
)
from engine.events.cache import (
    CacheExported,
    CacheExportFailed,
    CacheImported,
    CacheImportFailed,
    CacheQueried,
    CacheRecorded,
)
from engine.events.erasable import SENSITIVE, detached, is_sensitive
from engine.events.exports import Attested, ExportDelayed, Exported, ExportProgressed, ExportStarted, LayerScanned
from engine.events.fact import Fact, Json, needed_keys, to_data
from engine.events.refs import (
    BlobCreated,
    Demoted,
    FilesFetched,
    HitRevoked,
    LayerLaidOut,
    LayerPulled,
    LayerStored,
    LayerTocRead,
    LocalCreated,
    LocalLost,
    MaterializationFailed,
    MaterializationRequested,
    Materialized,
    ProviderLost,
    Pruned,
    PullFailed,
    PullProgressed,
    PullStarted,
    RemoteCreated,
)
from engine.events.sources import (
    ContextKept,
    ContextScanned,
    DefinitionRead,
    FoundMissing,
    GitResolved,
    HttpResolved,
    SourceRequested,
    SourceResolved,
    SourceTried,
)
from engine.events.trail import CheckpointPublished, CheckpointPublishFailed, CheckpointSigned, PayloadRedacted

__all__ = [
    "SENSITIVE", "TYPES", "AgentForwarded", "Attested", "BlobCreated", "BuildCancelled", "BuildCompleted",
    "BuildFailed", "BuildInterrupted", "BuildStarted", "CacheExportFailed", "CacheExported", "CacheImportFailed",
    "CacheImported", "CacheMountUsed", "CacheQueried", "CacheRecorded", "CheckpointPublishFailed",
    "CheckpointPublished", "CheckpointSigned", "ContextKept", "ContextScanned", "DefinitionRead", "Demoted",
    "ExportDelayed", "ExportProgressed", "ExportStarted", "Exported", "Fact", "FilesFetched", "FoundMissing",
    "GitResolved", "GraphDefined", "HitRevoked", "HttpResolved", "Json", "LayerLaidOut", "LayerPulled", "LayerScanned",
    "LayerStored", "LayerTocRead", "LocalCreated", "LocalLost", "MaterializationFailed", "MaterializationRequested",
    "Materialized", "PayloadRedacted", "PolicyDecided", "ProviderLost", "Pruned", "PullFailed", "PullProgressed",
    "PullStarted", "RemoteCreated", "RuntimeChosen", "SecretMounted", "SecurityLifted", "SourceRequested",
    "SourceResolved", "SourceTried", "VertexCached", "VertexCancelled", "VertexCompleted", "VertexFailed",
    "VertexOutput", "VertexStarted", "detached", "is_sensitive", "needed_keys", "to_data",
]  # fmt: skip

TYPES: dict[str, type[Fact]] = {
    name: fact
    for name, fact in list(globals().items())
    if name in __all__ and isinstance(fact, type) and issubclass(fact, Fact) and fact is not Fact
}
"""The closed table of what may be decoded: a stored name never imports anything."""
