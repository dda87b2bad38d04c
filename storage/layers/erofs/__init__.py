"""Layers as EROFS images whose file data is the layer's own tar: nothing is created but one file a layer."""
