"""Any size inside a memory budget, with the numbers of a whole run: rows stream through the network."""

from .program import Source, run, sweeps, weight

__all__ = ["Source", "run", "sweeps", "weight"]
