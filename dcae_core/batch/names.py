"""Names of the picture files that `decode` writes, from untrusted keys."""

from __future__ import annotations

import hashlib
import itertools
import re
import unicodedata
from collections.abc import Iterator

import numpy as np

from .storage import safe_filename

__all__ = ["FileNames"]

PACK_AFTER = 1 << 16  # names kept in a set before they are packed into an array
MAX_PATH_BYTES = 800  # bytes, below the destination
RESERVED = re.compile(r"^decoded/[^/]*\.json/|\.part/")  # paths that a destination uses itself


class FileNames:
    """Assign a unique file name to each row. The same rows after the same parts get the same names. packed: 64-bit
    hashes of earlier names, sorted."""

    def __init__(self, ending: str):
        self.ending = ending
        self.packed = np.empty(0, np.uint64)
        self._recent: set[int] = set()

    def assign(self, part: str, keys: list[str]) -> list[str]:
        """Return names for the rows of a part, in order."""
        numbers: dict[str, Iterator[int]] = {}
        return [self._name(part, key, numbers) for key in keys]

    def reserve(self, names: list[str]) -> None:
        """Mark names as taken."""
        for name in names:
            name = _folded(name)
            self._recent |= {_hash64(name), *(_hash64(f"{folder}/") for folder in _folders(name))}
        if len(self._recent) > PACK_AFTER:
            self.packed = np.union1d(self.packed, np.fromiter(self._recent, np.uint64, len(self._recent)))
            self._recent.clear()

    def _name(self, part: str, key: str, numbers: dict[str, Iterator[int]]) -> str:
        """Reserve and return a free name for a key. Keys are untrusted; names stay below the destination."""
        names = (name for name in key.replace("\\", "/").split("/") if name not in ("", ".", ".."))
        plain = "/".join(map(safe_filename, names)) or "_"
        flat = safe_filename(plain.replace("/", "--"))
        if len(plain.encode()) > MAX_PATH_BYTES:
            plain = flat
        numbered = (f"{part}/{flat}~{n}" for n in numbers.setdefault(flat, itertools.count(2)))
        names = (f"{name}.{self.ending}" for name in itertools.chain((plain, f"{part}/{plain}"), numbered))
        name = next(name for name in names if self._free(_folded(name)))
        self.reserve([name])
        return name

    def _free(self, name: str) -> bool:
        """Whether `name` is neither reserved nor taken by a file or folder, and no file is one of its folders."""
        return not RESERVED.search(name) and not any(map(self._is_taken, (name, f"{name}/", *_folders(name))))

    def _is_taken(self, name: str) -> bool:
        number = _hash64(name)
        at = int(np.searchsorted(self.packed, np.uint64(number)))
        return number in self._recent or (at < len(self.packed) and int(self.packed[at]) == number)


def _folded(name: str) -> str:
    """Return `name` normalised, so that names of the same file on macOS or Windows (a.png and A.png) are equal."""
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", name).casefold())


def _folders(name: str) -> list[str]:
    """Return the folders a and a/b of a/b/c."""
    return [name[: match.start()] for match in re.finditer("/", name)]


def _hash64(name: str) -> int:
    return int.from_bytes(hashlib.sha256(name.encode(errors="surrogatepass")).digest()[:8], "little")
