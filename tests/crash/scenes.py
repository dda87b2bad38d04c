"""Every kind of command that writes, by the name of its scene."""

from __future__ import annotations

from tests.crash import building, imaging, keeping

SCENES = {scene.name: scene for scene in (*building.SCENES, *imaging.SCENES, *keeping.SCENES)}
