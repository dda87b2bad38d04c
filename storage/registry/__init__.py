"""Registry client (OCI distribution-spec and Docker Registry HTTP API v2)."""

from storage.registry.client import RegistryClient
from storage.registry.limits import Limits

__all__ = ["Limits", "RegistryClient"]
