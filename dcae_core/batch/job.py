"""The state of a job, kept in its destination: what is to be done, what is done, what was skipped. So a job can be
stopped at any time and continued.

    job.json              what was asked; a job that asks something else is refused
    parts/000000.jsonl    the parts of the source, a line each; later listings add files with what is new
    part-000000.parquet   the rows of a part (.tar, or a folder), written as a whole
    done/part-000000.json written after it: its counts, and the sources that were skipped, with the reason

A part counts as done once its last line is there. What a killed job left half is done again, into the same name.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from ..errors import OptionError
from ..untrusted import parse_json, shorten
from . import sources
from .place import Place
from .sources import Part, Unreadable

__all__ = ["Done", "Job", "Summary"]

LISTING = "Put it back from a copy, or begin again in another folder."
DONE = "Remove it, and its part is done again."


@dataclass(frozen=True)
class Done:
    """A finished part. seconds: spent on the device."""

    part: str
    images: int
    pixels: int
    seconds: float
    skipped: tuple[Unreadable, ...] = ()

    def as_text(self, **more: Any) -> str:
        skipped = [{"key": one.key, "reason": one.reason} for one in self.skipped]
        counts = {"part": self.part, "images": self.images, "pixels": self.pixels, "seconds": round(self.seconds, 3)}
        return json.dumps({**counts, "skipped": skipped, **more}, indent=1) + "\n"


@dataclass
class Summary:
    """Totals over all finished parts, of this run and earlier ones. device_seconds: summed over devices."""

    images: int = 0
    pixels: int = 0
    device_seconds: float = 0.0
    skipped: list[Unreadable] = field(default_factory=list)

    def add(self, done: Done) -> None:
        self.images += done.images
        self.pixels += done.pixels
        self.device_seconds += done.seconds
        self.skipped += done.skipped


class Job:
    """A source, a destination, and the settings that determine the output. Raises OptionError if the destination holds
    another job.

    settings: JSON's types; equal for a job that goes on. size: picture files in a part. new: is nothing there yet?
    `parts` writes the first, once there is something to do.
    """

    def __init__(self, source: str, destination: str, settings: dict[str, Any], size: int = 512):
        self.source, self.settings, self.size = source, settings, size
        self.place = Place(destination)
        self.requested = requested = {"format": "dcae-batch-1", "source": source, "part_size": size, **settings}
        self.new = not self.place.exists("job.json")
        if self.new:
            if self.place.names(""):
                raise OptionError(f"{destination} is not empty, and holds no job of this kind: name another folder.")
            return
        before = self._read("job.json", "Put it back from a copy, or name another folder.")
        names = [name for name in {**before, **requested} if before.get(name) != requested.get(name)]
        if names:
            other = "; ".join(
                f"{shorten(name)}: {shorten(repr(before.get(name)))}, now {requested.get(name)!r}"
                for name in names[:10]
            )
            raise OptionError(f"{destination} holds a job with other settings ({other}): name another folder.")

    def parts(self) -> list[Part]:
        """List all parts. Parts of earlier listings keep their numbers, new ones follow. Raises OptionError if a
        listing is damaged or lost, since new numbers would overwrite finished parts."""
        self.place.tidy()
        listed = [part for name in self.place.names("parts") for part in self._listing(name)]
        if [part.number for part in listed] != list(range(len(listed))):
            raise self._damaged("parts", "a listing is missing, or not whole", LISTING)
        if lost := sorted(set(self.finished()) - {part.name for part in listed}):
            raise self._damaged("parts", f"{shorten(lost[0])} is done, but not listed", LISTING)
        if listed and (path := sources.outside(listed, self.source)) is not None:
            raise self._damaged("parts", f"{shorten(path, 300)} is not in {self.source}", LISTING)
        known: set[tuple[str, int]] = set()
        for one in ((path, part.group) for part in listed for path in part.paths):
            if one in known:
                raise self._damaged("parts", f"{shorten(one[0], 300)} is listed twice", LISTING)
            known.add(one)
        new = list(sources.parts(self.source, self.size, frozenset(known), len(listed), self.place))
        if self.new:
            self.place.write_text("job.json", json.dumps(self.requested, indent=1) + "\n")
            self.new = False
        if new:
            text = "".join(json.dumps(part.as_dict()) + "\n" for part in new)
            self.place.write_text(f"parts/{len(self.place.names('parts')):06d}.jsonl", text)
        return listed + new

    def _listing(self, name: str) -> Iterator[Part]:
        """Yield the parts in a file of parts/."""
        try:
            text = self.place.read_bytes(f"parts/{name}")
            if not text.endswith(b"\n"):
                raise ValueError("its last line is cut")
            for line in text.splitlines():
                yield Part.of(parse_json(line))
        except (OSError, ValueError) as error:
            raise self._damaged(f"parts/{name}", error, LISTING) from error

    def _read(self, name: str, what_now: str) -> dict[str, Any]:
        """Return the object in a JSON file of the job."""
        try:
            content = parse_json(self.place.read_bytes(name))
            if not isinstance(content, dict):
                raise ValueError("it is no object")
            return content
        except (OSError, ValueError) as error:
            raise self._damaged(name, error, what_now) from error

    def _damaged(self, name: str, error: object, what_now: str) -> OptionError:
        return OptionError(
            f"{self.place.path(name)} is damaged: {shorten(error, 200)}. {what_now} Nothing was changed."
        )

    def finished(self) -> list[str]:
        """Return the names of the finished parts."""
        return [name.removesuffix(".json") for name in self.place.names("done")]

    def finish(self, done: Done) -> None:
        """Record that a part is done, after its rows are written."""
        self.place.write_text(f"done/{done.part}.json", done.as_text())

    def summary(self) -> Summary:
        """Sum up the finished parts. Raises OptionError for a damaged file."""
        summary = Summary()
        for name in self.place.names("done"):
            record = self._read(f"done/{name}", DONE)
            try:
                skipped = tuple(Unreadable(str(one["key"]), str(one["reason"])) for one in record["skipped"])
                counts = [record[count] for count in ("images", "pixels", "seconds")]
                if not all(isinstance(count, (int, float)) and 0 <= count < 1e18 for count in counts):
                    raise ValueError(f"it counts {shorten(counts)}")
                summary.add(Done(name.removesuffix(".json"), *counts, skipped))
            except (KeyError, TypeError, ValueError) as error:
                raise self._damaged(f"done/{name}", f"{type(error).__name__}: {error}", DONE) from error
        return summary

    def report(self, summary: Summary) -> None:
        """Write skipped.jsonl: a line for each source that was skipped."""
        lines = (json.dumps({"key": one.key, "reason": one.reason}) for one in summary.skipped)
        self.place.write_text("skipped.jsonl", "".join(line + "\n" for line in lines))
