"""Builds and their steps."""

from __future__ import annotations

from engine.events.fact import Fact, Json


class BuildStarted(Fact):
    """`definition` and `context` are digests of stored blobs (context: None, it is read as steps need it);
    `options`: args, target, platforms, secrets (ids), tags, jobs, no_cache; `host`: hostname, kernel, pid."""

    frontend: str
    definition: str
    options: Json
    context: str | None
    engine_version: str
    host: Json
    name: str = ""
    filename: str = "Dockerfile"
    tags: tuple[str, ...] = ()


class GraphDefined(Fact):
    """`graph`: digest of the stored graph; `target`: vertex; `plan`: in order, each `vertex`, `name`, `lines`."""

    graph: str
    vertices: int
    plan: tuple[Json, ...] = ()
    target: str = ""


class RuntimeChosen(Fact):
    """The OCI runtime that ran a trivial container here, and what the others said (`rejected`: name → reason)."""

    runtime: str
    version: str
    rejected: Json


class BuildCompleted(Fact):
    """`results`: each `ref`, and `digest` of its manifest when something was exported. What is no ref, an index or a
    copy, has `name` and `digest`, and "" as `ref`."""

    results: tuple[Json, ...]


class BuildFailed(Fact):
    """`vertex`: the step at fault, if one is; `error` as the user read it; `exit_code` of the process."""

    vertex: str | None
    error: str
    exit_code: int = 1


class BuildCancelled(Fact):
    """The user stopped it."""

    error: str = "interrupted"
    vertex: str | None = None


class BuildInterrupted(Fact):
    """Found later: the process had died without a word. `removed`: leftovers that were cleaned up."""

    error: str
    found_by: str | None = None
    removed: tuple[str, ...] = ()
    vertex: str | None = None


class VertexStarted(Fact):
    """`inputs`: ids of the refs it works on; `attempt` counts from 1."""

    name: str
    inputs: tuple[str, ...]
    attempt: int = 1


class VertexCached(Fact):
    """A cache hit gave the result; `outputs`: ref ids."""

    name: str
    outputs: tuple[str, ...]
    origin_build: str | None = None


class VertexCompleted(Fact):
    """`outputs`: ref ids; `exit_code` for a command."""

    name: str
    outputs: tuple[str, ...]
    exit_code: int | None = None
    attempt: int = 1


class VertexFailed(Fact):
    """`error`: one line; `exit_code` when a command ran."""

    name: str
    error: str
    exit_code: int | None = None
    attempt: int = 1


class VertexCancelled(Fact):
    """Stopped because another step failed or the user said so, or because bytes that it stands on were lost (`reason`):
    then another attempt follows."""

    name: str
    attempt: int = 1
    reason: str = ""


class VertexOutput(Fact):
    """`text` (UTF-8, undecodable bytes replaced) that `fd` (1 or 2) printed, from byte `offset` of the step's output;
    `dropped`: bytes left out before it because the step printed faster than the bound."""

    fd: int
    offset: int
    text: str
    dropped: int = 0


class CacheMountUsed(Fact):
    """A step saw cache mount `id` at `target`: its result may depend on what earlier steps left there (taint).
    `cache`: digest that names the directory (of `id`, owner, mode and initial content); `instance` of it; `ref` the
    initial content, "" for none; `created`: it was empty or new; `waited`: seconds until another step let go of it."""

    id: str
    target: str
    sharing: str
    cache: str
    instance: int = 0
    ref: str = ""
    created: bool = False
    readonly: bool = False
    waited: float = 0.0


class SecretMounted(Fact):
    """A step could read secret `id`, as the file `target` or the variable `env` ("" for neither one). Never its value:
    the result may depend on it (taint)."""

    id: str
    target: str
    env: str = ""


class AgentForwarded(Fact):
    """A step could have ssh agent `id` sign for it, through the socket `target` (taint)."""

    id: str
    target: str


class SecurityLifted(Fact):
    """A step ran with `security` `insecure`, so it could reach the host (taint)."""

    security: str = "insecure"


class PolicyDecided(Fact):
    """The build policy whose file is the blob `policy` (named `file` then) speaks of `subject` (as people know it; of
    `kind` image, pin, created, signature, url, git, network, privilege, secret, ssh, cache, layer or export, called
    `name` in patterns): `decision` allowed or denied, by `rule`, "" when allowed, at `line` of the file, for the reason
    in `detail`; `rules`: all that speak of it; `evidence`: what is decided on beside the name. Once a subject."""

    rule: str
    subject: str
    decision: str
    detail: str
    policy: str
    kind: str = ""
    name: str = ""
    rules: tuple[str, ...] = ()
    evidence: Json | None = None
    file: str = ""
    line: int = 0
