"""Where bytes and facts are kept: the event log, blobs, layers, snapshots and registries."""
