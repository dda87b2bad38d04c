"""A registry's bad days: each fault of a table is played to the real client, between it and a real registry."""
