"""Parts of layers by range: tables of contents, made and read, and the trees of what was asked for."""
