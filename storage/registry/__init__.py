"""Registry client (OCI distribution-spec and Docker Registry HTTP API v2)."""
