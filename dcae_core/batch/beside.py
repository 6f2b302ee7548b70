"""Read what `kept` wrote with latents, to put it beside the pictures that are decoded from them."""

from __future__ import annotations

import posixpath
import tarfile
from collections.abc import Iterator

from ..errors import LatentError
from ..untrusted import shorten
from .kept import MAX_COLUMN_BYTES, MAX_VALUE_BYTES, as_files
from .shards import is_row, row_columns
from .sources import read_member
from .storage import Storage

__all__ = ["read"]


def read(storage: Storage, name: str) -> list[dict[str, bytes]]:
    """Return, for each row of a part in the order of `shards.read`, contents by the ending of a file's name, without
    those that are larger than what `kept` writes. Raises LatentError."""
    reader = _read_parquet if name.endswith(".parquet") else _read_tar if name.endswith(".tar") else _read_folder
    rows, left = [], MAX_COLUMN_BYTES
    try:
        for row in reader(storage, name):
            left -= sum(map(len, row.values()))
            rows.append(row if left >= 0 else {})
    except Exception as error:  # readers raise any exception on damaged files
        raise LatentError(
            f"What was kept in {storage.path(name)} can't be read: {shorten(error, 300)}. Encode its part again, or "
            "decode without --keep."
        ) from error
    return rows


def _read_parquet(storage: Storage, name: str) -> Iterator[dict[str, bytes]]:
    from pyarrow.parquet import ParquetFile

    with storage.open(name) as file:
        opened = ParquetFile(file)
        names = [column for column in opened.schema_arrow.names if column not in row_columns()]
        for batch in opened.iter_batches(16, columns=names):
            for i in range(batch.num_rows):
                arrays = {column: values.slice(i, 1) for column, values in zip(names, batch.columns, strict=True)}
                yield as_files({column: value for column, value in arrays.items() if value.nbytes <= MAX_VALUE_BYTES})


def _read_tar(storage: Storage, name: str) -> Iterator[dict[str, bytes]]:
    row: dict[str, bytes] | None = None
    start = ""
    with storage.open(name) as file, tarfile.open(fileobj=file, mode="r:") as archive:
        for member in archive:
            stem, _, ending = posixpath.basename(member.name).partition(".")
            if is_row(member.name):
                if row is not None:
                    yield row
                row, start = {}, stem
                continue
            if row is None or stem != start or ending == "json":
                continue
            if member.isreg() and not member.issparse() and member.size <= MAX_VALUE_BYTES:
                row[ending] = read_member(archive, member)
    if row is not None:
        yield row


def _read_folder(storage: Storage, name: str) -> Iterator[dict[str, bytes]]:
    names = storage.names(name)
    beside: dict[str, list[str]] = {}
    for file in names:
        stem, _, ending = file.partition(".")
        if not is_row(file) and storage.size(f"{name}/{file}") <= MAX_VALUE_BYTES:
            beside.setdefault(stem, []).append(ending)
    for stem in (file.partition(".")[0] for file in names if is_row(file)):
        yield {ending: storage.read_bytes(f"{name}/{stem}.{ending}") for ending in beside.get(stem, [])}
