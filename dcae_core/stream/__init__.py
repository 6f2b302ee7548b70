"""Any size inside a memory budget, with the numbers of a whole run: rows stream through the network."""

from .program import run, sweeps

__all__ = ["run", "sweeps"]
