"""Run a job on a cluster with Ray Data. Tasks read and decode parts, actors hold the model, tasks write. Ray limits how
far each stage runs ahead of the next. The work on a part is in `encode`, and pending parts in `job`."""

from __future__ import annotations

import logging
import pickle
from collections.abc import Callable
from importlib import import_module
from types import ModuleType
from typing import Any

from ..errors import OptionError
from . import sources
from .encode import Encoder, Options, batches, count_notes, geometry, open_job, open_model, open_variant, save_part
from .job import Job, PartResult
from .prepare import Geometry, PreparedImage, prepare_all
from .sources import Part, Unreadable

__all__ = ["import_ray", "run"]

Row = dict[str, Any]


def run(
    options: Options,
    job: Job,
    pending: list[Part],
    actors: int = 1,
    gpus: float = 0,
    on_part: Callable[[PartResult], None] = lambda done: None,
) -> None:
    """Encode the pending parts on the Ray cluster at $RAY_ADDRESS, or on one started on this machine.

    actors: how many processes hold a model; gpus: GPUs for each. on_part: called for each finished part. Source,
    destination and model must be reachable from every machine. Raises OptionError if Ray is not installed.
    """
    ray = import_ray()
    if not ray.is_initialized():
        ray.init(log_to_driver=False, logging_level=logging.WARNING)
    logging.getLogger("ray.data").setLevel(logging.WARNING)
    ray.data.DataContext.get_current().enable_progress_bars = False
    # The actors leave half of the cores to the tasks. Otherwise the tasks would never start.
    cpus = min(1.0, 0.45 * ray.cluster_resources().get("CPU", 1) / actors)
    shape = geometry(options, open_variant(options))
    rows = ray.data.from_items([{"part": pickle.dumps(part)} for part in pending], override_num_blocks=len(pending))
    # Half a core: loading often waits for I/O. With the actors' share Ray would fuse both into one stage.
    rows = rows.map(_Load(options.source, shape), num_cpus=0.5)
    pool = {"compute": ray.data.ActorPoolStrategy(size=actors), "num_gpus": gpus or None, "num_cpus": cpus}
    rows = rows.map(_Encode, fn_constructor_args=(options,), **pool)
    rows = rows.map(_Save(options), num_cpus=0.1)
    for row in rows.iter_rows():
        on_part(pickle.loads(row["done"]))


def import_ray() -> ModuleType:
    """Return the module `ray`. Raises OptionError if it is not installed."""
    try:
        import_module("ray.data")
    except ImportError as error:
        raise OptionError(f"The engine 'ray' needs Ray ({error}): pip install 'ray[data]'") from error
    return import_module("ray")


class _Load:
    """Read a part and decode its pictures."""

    def __init__(self, source: str, shape: Geometry):
        self.source, self.shape = source, shape

    def __call__(self, row: Row) -> Row:
        part = pickle.loads(row["part"])
        items = list(sources.items(part, self.source))
        prepared = prepare_all(items, self.shape, self.source)
        return {"part": row["part"], "prepared": pickle.dumps(prepared)}


class _Encode:
    """Encode pictures to rows. An actor, which loads the model once."""

    def __init__(self, options: Options):
        self.encoder, self.batch = Encoder(options, open_model(options)), options.batch

    def __call__(self, row: Row) -> Row:
        prepared = pickle.loads(row["prepared"])
        before = self.encoder.seconds
        ready = (item for item in prepared if isinstance(item, PreparedImage))
        rows = [item for batch in batches(ready, self.batch) for item in self.encoder(batch)]
        skipped = [item for item in prepared if isinstance(item, Unreadable)]
        seconds = self.encoder.seconds - before
        return {"part": row["part"], "rows": pickle.dumps((rows, skipped, seconds, count_notes(prepared)))}


class _Save:
    """Write rows to a file, then record that the part is done."""

    def __init__(self, options: Options):
        self.options = options

    def __call__(self, row: Row) -> Row:
        part: Part = pickle.loads(row["part"])
        rows, skipped, seconds, notes = pickle.loads(row["rows"])
        job = open_job(self.options, open_variant(self.options))
        return {"done": pickle.dumps(save_part(job, part, rows, skipped, seconds, notes))}
