"""All modules of the project: what the processes that run our builds are forked from (see ours.py)."""

from __future__ import annotations

import importlib
import pkgutil

import engine
import storage
import tools.cli

for package in (engine, storage, tools.cli):
    for module in pkgutil.walk_packages(package.__path__, f"{package.__name__}."):
        importlib.import_module(module.name)
