"""Images as registries have them: read, copied, put together, without their layers."""
