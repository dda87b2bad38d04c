"""The client that speaks to registries: the one place that makes it."""

from __future__ import annotations

from storage.credentials import DockerCredentials
from storage.registry import Limits, RegistryClient
from storage.registry.attempts import Observe
from tools import __version__

USER_AGENT = f"refledger/{__version__}"


def registry_client(limits: Limits | None = None, observe: Observe | None = None) -> RegistryClient:
    """A client with this user's credentials; `observe` as in RegistryClient. The caller closes it."""
    return RegistryClient(DockerCredentials(), user_agent=USER_AGENT, limits=limits, observe=observe)
