"""OCI image layouts on this disk, through the protocols of registries."""
