"""The state of a job, kept in its destination: parts, finished parts, skipped sources. A job can be stopped at any time
and continued.

    job.json              the settings; a job with other settings is refused
    parts/000000.jsonl    the parts of the source, a line each; later listings add a file of new parts
    part-000000.parquet   the rows of a part (.tar, or a folder), written as a whole
    done/part-000000.json written after it: its counts, and the sources that were skipped, with the reason

A part is finished once its file in done/ exists. A part that a killed job left unfinished is encoded again, under the
same name.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from ..errors import OptionError
from ..untrusted import parse_json, shorten
from . import sources
from .sources import Part, Unreadable
from .storage import Storage

__all__ = ["Job", "PartResult", "Summary"]

REPAIR_LISTING = "Put it back from a copy, or begin again in another folder."
REPAIR_RECORD = "Remove it, and its part is done again."


@dataclass(frozen=True)
class PartResult:
    """Counts of a finished part. seconds: time on the device. notes: how many pictures each was said of."""

    part: str
    images: int
    pixels: int
    seconds: float
    skipped: tuple[Unreadable, ...] = ()
    notes: Mapping[str, int] = field(default_factory=dict)

    def to_json(self, **more: Any) -> str:
        skipped = [{"key": source.key, "reason": source.reason} for source in self.skipped]
        counts = {"part": self.part, "images": self.images, "pixels": self.pixels, "seconds": round(self.seconds, 3)}
        return json.dumps({**counts, "skipped": skipped, "notes": dict(self.notes), **more}, indent=1) + "\n"


@dataclass
class Summary:
    """Totals over all finished parts, of this run and earlier ones. device_seconds: summed over devices."""

    images: int = 0
    pixels: int = 0
    device_seconds: float = 0.0
    skipped: list[Unreadable] = field(default_factory=list)
    notes: Counter[str] = field(default_factory=Counter)

    def add(self, done: PartResult) -> None:
        self.images += done.images
        self.pixels += done.pixels
        self.device_seconds += done.seconds
        self.skipped += done.skipped
        self.notes.update(done.notes)


class Job:
    """A source, a destination, and the settings that determine the output. Raises OptionError if the destination holds
    another job.

    settings: of JSON types; equal when a job is continued. size: picture files in a part. new: whether the destination
    is empty; `parts` writes job.json once the source is listed.
    """

    def __init__(self, source: str, destination: str, settings: dict[str, Any], size: int = 512):
        self.source, self.settings, self.size = source, settings, size
        self.storage = Storage(destination)
        self.requested = requested = {"format": "dcae-batch-1", "source": source, "part_size": size, **settings}
        self.new = not self.storage.exists("job.json")
        if self.new:
            if self.storage.names(""):
                raise OptionError(f"{destination} is not empty and holds no encoding job: name another folder.")
            return
        recorded = self._read("job.json", "Put it back from a copy, or name another folder.")
        names = [name for name in {**recorded, **requested} if recorded.get(name) != requested.get(name)]
        if names:
            other = "; ".join(
                f"{shorten(name)}: {_setting(recorded, name)}, now {_setting(requested, name)}" for name in names[:10]
            )
            raise OptionError(f"{destination} holds a job with other settings ({other}): name another folder.")

    def parts(self) -> list[Part]:
        """List all parts. Parts of earlier listings keep their numbers, new ones follow. Raises OptionError if a
        listing is damaged or lost, since new numbers would overwrite finished parts."""
        self.storage.tidy()
        listed = [part for name in self.storage.names("parts") for part in self._listing(name)]
        if [part.number for part in listed] != list(range(len(listed))):
            raise self._damaged("parts", "a listing is missing or incomplete", REPAIR_LISTING)
        if lost := sorted(set(self.finished()) - {part.name for part in listed}):
            raise self._damaged("parts", f"{shorten(lost[0])} is done, but not listed", REPAIR_LISTING)
        if listed and (path := sources.outside(listed, self.source)) is not None:
            raise self._damaged("parts", f"{shorten(path, 300)} is not in {self.source}", REPAIR_LISTING)
        known: set[tuple[str, int]] = set()
        for entry in ((path, part.group) for part in listed for path in part.paths):
            if entry in known:
                raise self._damaged("parts", f"{shorten(entry[0], 300)} is listed twice", REPAIR_LISTING)
            known.add(entry)
        new = list(sources.parts(self.source, self.size, frozenset(known), len(listed), self.storage))
        if self.new:
            self.storage.write_text("job.json", json.dumps(self.requested, indent=1) + "\n")
            self.new = False
        if new:
            text = "".join(json.dumps(asdict(part)) + "\n" for part in new)
            self.storage.write_text(f"parts/{len(self.storage.names('parts')):06d}.jsonl", text)
        return listed + new

    def _listing(self, name: str) -> Iterator[Part]:
        """Yield the parts in a file of parts/."""
        try:
            text = self.storage.read_bytes(f"parts/{name}")
            if not text.endswith(b"\n"):
                raise ValueError("its last line is cut")
            for line in text.splitlines():
                yield Part.from_dict(parse_json(line))
        except (OSError, ValueError) as error:
            raise self._damaged(f"parts/{name}", error, REPAIR_LISTING) from error

    def _read(self, name: str, advice: str) -> dict[str, Any]:
        """Return the object in a JSON file of the job."""
        try:
            content = parse_json(self.storage.read_bytes(name))
            if not isinstance(content, dict):
                raise ValueError("it is not a JSON object")
            return content
        except (OSError, ValueError) as error:
            raise self._damaged(name, error, advice) from error

    def _damaged(self, name: str, error: object, advice: str) -> OptionError:
        return OptionError(
            f"{self.storage.path(name)} is damaged: {shorten(error, 200)}. {advice} Nothing was changed."
        )

    def finished(self) -> list[str]:
        """Return the names of the finished parts."""
        return [name.removesuffix(".json") for name in self.storage.names("done")]

    def finish(self, done: PartResult) -> None:
        """Record a finished part, after its rows are written."""
        self.storage.write_text(f"done/{done.part}.json", done.to_json())

    def summary(self) -> Summary:
        """Sum up the finished parts. Raises OptionError for a damaged file."""
        summary = Summary()
        for name in self.storage.names("done"):
            record = self._read(f"done/{name}", REPAIR_RECORD)
            try:
                skipped = tuple(Unreadable(str(source["key"]), str(source["reason"])) for source in record["skipped"])
                images, pixels, seconds = (record[count] for count in ("images", "pixels", "seconds"))
                counts = images, pixels, seconds
                notes = {str(note): count for note, count in record.get("notes", {}).items()}  # old ones have none
                if not all(isinstance(n, (int, float)) and 0 <= n < 1e18 for n in (*counts, *notes.values())):
                    raise ValueError(f"it counts {shorten([*counts, *notes.values()])}")
                summary.add(PartResult(name.removesuffix(".json"), images, pixels, seconds, skipped, notes))
            except (AttributeError, KeyError, TypeError, ValueError) as error:
                raise self._damaged(f"done/{name}", f"{type(error).__name__}: {error}", REPAIR_RECORD) from error
        return summary

    def report(self, summary: Summary) -> None:
        """Write skipped.jsonl: a line for each source that was skipped."""
        lines = (json.dumps({"key": source.key, "reason": source.reason}) for source in summary.skipped)
        self.storage.write_text("skipped.jsonl", "".join(line + "\n" for line in lines))


def _setting(settings: Mapping[str, Any], name: str) -> str:
    """Return a setting for people. Some are recorded only if they are given."""
    return "not set" if settings.get(name) is None else shorten(repr(settings[name]))
