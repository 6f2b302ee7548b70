"""Run a job on a cluster with Ray Data. Tasks read and decode parts, actors hold the model, tasks write. Ray limits how
far each runs ahead of the next. The work itself is the code that `local` uses too."""

from __future__ import annotations

import logging
import pickle
from collections.abc import Callable
from typing import Any

from ..errors import OptionError
from . import sources
from .encode import Encoder, Options, batches, geometry, in_order, job_of, open_model, save_part
from .job import Done, Job
from .prepare import Ready, prepare_all
from .sources import Part, Unreadable

__all__ = ["import_ray", "open_variant", "run"]

Row = dict[str, Any]


def run(
    options: Options,
    job: Job,
    pending: list[Part],
    actors: int = 1,
    gpus: float = 0,
    on_part: Callable[[Done], None] = lambda done: None,
) -> None:
    """Do the pending parts on the Ray of $RAY_ADDRESS, or on one that is started here. on_part: called for each part
    that is done.

    actors: with a model each; gpus: that each of them takes. Source, destination and model must be reachable
    from every machine. Raises OptionError without Ray.
    """
    ray = import_ray()
    if not ray.is_initialized():
        ray.init(log_to_driver=False, logging_level=logging.WARNING)
    logging.getLogger("ray.data").setLevel(logging.WARNING)
    ray.data.DataContext.get_current().enable_progress_bars = False
    # The actors together leave half of the cores to the tasks, which would else never start.
    cpus = min(1.0, 0.45 * ray.cluster_resources().get("CPU", 1) / actors)
    shape = geometry(options, open_variant(options))
    rows = ray.data.from_items([{"part": pickle.dumps(part)} for part in pending], override_num_blocks=len(pending))
    # Half a core, since it often waits; and with the actors' own share Ray would put both into one step.
    rows = rows.map(_Load(options.source, shape), num_cpus=0.5)
    pool = {"compute": ray.data.ActorPoolStrategy(size=actors), "num_gpus": gpus or None, "num_cpus": cpus}
    rows = rows.map(_Encode, fn_constructor_args=(options,), **pool)
    rows = rows.map(_Save(options), num_cpus=0.1)
    for row in rows.iter_rows():
        on_part(pickle.loads(row["done"]))


def import_ray():
    """Return the module `ray`. Raises OptionError where it is not installed."""
    try:
        import ray
        import ray.data
    except ImportError as error:
        raise OptionError(f"The engine 'ray' needs Ray ({error}): pip install 'ray[data]'") from error
    return ray


def open_variant(options: Options):
    """Return the variant of the model that the options name, without loading weights."""
    from ..weights import hub
    from ..weights.checkpoint import Checkpoint

    path, variant = hub.locate(options.model, options.cache_dir)
    return variant or Checkpoint(path).choose(options.variant)


class _Load:
    """Read a part and decode its pictures."""

    def __init__(self, source: str, shape):
        self.source, self.shape = source, shape

    def __call__(self, row: Row) -> Row:
        part = pickle.loads(row["part"])
        found = list(sources.items(part, self.source))
        prepared = prepare_all(found, self.shape, self.source)
        return {"part": row["part"], "found": pickle.dumps(([item.key for item in found], prepared))}


class _Encode:
    """Encode pictures to rows. An actor, which loads the model once."""

    def __init__(self, options: Options):
        self.encoder, self.batch = Encoder(options, open_model(options)), options.batch

    def __call__(self, row: Row) -> Row:
        keys, prepared = pickle.loads(row["found"])
        before = self.encoder.seconds
        ready = (item for item in prepared if isinstance(item, Ready))
        rows = [item for batch in batches(ready, self.batch) for item in self.encoder(batch)]
        skipped = [item for item in prepared if isinstance(item, Unreadable)]
        seconds = self.encoder.seconds - before
        return {"part": row["part"], "rows": pickle.dumps((in_order(rows, keys), skipped, seconds))}


class _Save:
    """Write rows to a file, then record that the part is done."""

    def __init__(self, options: Options):
        self.options = options

    def __call__(self, row: Row) -> Row:
        part: Part = pickle.loads(row["part"])
        rows, skipped, seconds = pickle.loads(row["rows"])
        job = job_of(self.options, open_variant(self.options))
        return {"done": pickle.dumps(save_part(job, part, rows, skipped, seconds))}
