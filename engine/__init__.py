"""The core: refs, graph, solver, ops and exporters."""
