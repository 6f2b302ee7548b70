"""Values, JSON, bytes and safetensors as they should not be. All choices come from `chance`, a `random.Random`."""

from __future__ import annotations

import copy
import functools
import json
import math
import os
from pathlib import Path
from random import Random
from typing import Any

__all__ = ["bent", "json_bytes", "odd", "odd_text", "pack", "scrambled", "special", "write_sparse"]

NUMBERS = (0, -1, 1, 2, 255, 2**31 - 1, 2**31, 2**32, 2**53 + 1, 2**63 - 1, 2**63, 2**64 - 1, 2**64, 10**400)
FLOATS = (0.0, -0.0, 1e-320, -1.5, 0.3189, 0.4552, 1e38, 1e308, math.nan, math.inf, -math.inf)
TEXTS = (
    "",
    " ",
    ".",
    "..",
    "/",
    "../secret.safetensors",
    "/etc/passwd",
    "a/b.safetensors",
    "a\\..\\b.safetensors",
    "C:\\secret.safetensors",
    "\0",
    "a\0b.safetensors",
    "two\nlines",
    "\x1b[31mred\x1b[0m",
    "\u202egnp.exe",
    "\ud800",
    "\U0001f600",
    "nan",
    "inf",
    "-inf",
    "-1",
    "0",
    "1e400",
    "1_0",
    "0x20",
    "\u0661\u0662",
    "9" * 5000,
    "x" * 300 + ".safetensors",
    "x" * 100_000,
    "f1c1" * 3000,
    "f32c32-" + "mi" * 20_000,
    "dc-ae-f32c32-in-1.0",
    "dc-ae-f64c128-mix-1.0",
    "raw",
    "scaled",
    "{}",
    "[1, 2]",
)


def odd_text(chance: Random) -> str:
    return chance.choice(TEXTS)


def odd(chance: Random) -> Any:
    """A value of JSON's types that nobody would put there."""
    kinds = (
        lambda: chance.choice(NUMBERS),
        lambda: chance.choice(FLOATS),
        lambda: odd_text(chance),
        lambda: chance.choice((None, True, False)),
        lambda: chance.choice(([], {}, [[]], [None], {"a": 1}, ["x"] * 1000, [0] * 1000, {"": {"": {}}})),
        lambda: nested(chance.choice((10, 200, 900, 5000)), chance.choice(("list", "dict"))),
    )
    return chance.choice(kinds)()


def nested(depth: int, kind: str) -> Any:
    value: Any = []
    for _ in range(depth):
        value = [value] if kind == "list" else {"a": value}
    return value


def bent(chance: Random, value: Any, times: int | None = None) -> Any:
    """`value` (JSON's types), changed where it is: one or some places replaced, removed, renamed or doubled."""
    for _ in range(times or chance.choice((1, 1, 1, 2, 5))):
        parent, key, at = None, None, value
        while isinstance(at, (dict, list)) and at and (parent is None or chance.random() < 0.75):
            parent = at
            key = chance.choice(list(at)) if isinstance(at, dict) else chance.randrange(len(at))
            at = at[key]
        if parent is None:
            return odd(chance)
        what = chance.choice(("replace", "replace", "remove", "rename", "double", "number"))
        if what == "replace":
            parent[key] = odd(chance)
        elif what == "number":
            parent[key] = chance.choice(NUMBERS) if chance.random() < 0.7 else str(chance.choice(NUMBERS))
        elif what == "remove":
            del parent[key]
        elif isinstance(parent, dict):
            parent[odd_text(chance)] = parent.pop(key) if what == "rename" else copy.copy(at)
        else:
            parent.insert(key, copy.copy(at))
    return value


def json_bytes(chance: Random, value: Any) -> bytes:
    """`value` as a JSON file: mostly well made, sometimes in another encoding, damaged, or no JSON at all."""
    text = dumped(value)
    what = chance.randrange(12)
    if what == 0:
        return scrambled(chance, text.encode(errors="surrogatepass")[:100_000])
    if what == 1:
        return text.encode(chance.choice(("utf-16", "utf-8-sig", "latin-1")), errors="replace")
    if what == 2:
        return chance.choice(
            (b"", b"null", b"[" * 100_000, b'{"a":' * 50_000, b"9" * 10_000, b"NaN", b"\xff\xfe", b"{}{}")
        )
    if what == 3:
        return (text + text).encode(errors="surrogatepass")
    return text.encode(errors="surrogatepass")


def dumped(value: Any) -> str:
    try:
        return json.dumps(value)
    except RecursionError:  # deeper than this Python writes: the depth is what counts
        return "[" * 20_000 + "]" * 20_000


def scrambled(chance: Random, data: bytes, most: int | None = None) -> bytes:
    """`data` with some bytes changed, cut, doubled or moved; only in its first `most`, where that is given."""
    data = bytearray(data)
    for _ in range(chance.choice((1, 1, 2, 3, 8, 30))):
        end = min(len(data), most or len(data))
        if not end:
            return bytes(data)
        at, length = chance.randrange(end), chance.choice((1, 1, 2, 4, 8, 40, 500))
        what = chance.randrange(7)
        if what == 0:
            data[at] ^= 1 << chance.randrange(8)
        elif what == 1:
            data[at] = chance.choice((0, 1, 0x7F, 0x80, 0xFF, 0x20, 0x22, 0x7B))
        elif what == 2:
            data[at : at + length] = bytes(chance.randrange(256) for _ in range(min(length, 8)))
        elif what == 3:
            del data[at : at + length]
        elif what == 4:
            data[at:at] = data[at : at + length]
        elif what == 5:
            size = chance.choice((2, 4, 8))
            number = chance.choice((0, 1, 2 ** (8 * size) - 1, 2 ** (8 * size - 1), 2 ** (8 * size - 1) - 1, 65536))
            data[at : at + size] = (number % 2 ** (8 * size)).to_bytes(size, chance.choice(("little", "big")))
        elif what == 6 and chance.random() < 0.3:
            del data[at:]
    return bytes(data)


DTYPES = (
    "F32",
    "F16",
    "BF16",
    "F64",
    "F8_E4M3",
    "F8_E5M2",
    "I8",
    "U8",
    "I64",
    "BOOL",
    "C64",
    "F4",
    "F8_E8M0",
    "U16",
    "X",
    "",
)
SIZES = {"F32": 4, "F16": 2, "BF16": 2, "F64": 8, "I64": 8, "I8": 1, "U8": 1, "BOOL": 1, "C64": 8, "U16": 2}


def pack(
    chance: Random, tensors: dict[str, tuple[str, list[int]]], metadata: dict | None, mutations: int
) -> tuple[bytes, int]:
    """(what comes before the data, bytes of data) of a safetensors file of {name: (dtype, shape)}, with `mutations`
    changes to its structure. The offsets fit what the header says, but where a mutation is about them."""
    tensors = {name: (dtype, list(shape)) for name, (dtype, shape) in tensors.items()}
    metadata, late = None if metadata is None else dict(metadata), []
    for _ in range(mutations):
        name = chance.choice(list(tensors)) if tensors else ""
        what = chance.randrange(14)
        if what == 0 and tensors:
            tensors[name] = (chance.choice(DTYPES), tensors[name][1])
        elif what == 1:
            dtype = chance.choice(DTYPES)
            tensors = {name: (dtype, shape) for name, (_, shape) in tensors.items()}
        elif what == 2 and tensors:
            shape = tensors[name][1]
            shape.insert(chance.randrange(len(shape) + 1), chance.choice((0, 1, 1, 2, 3)))
        elif what == 3 and tensors and tensors[name][1]:
            tensors[name][1].pop()
        elif what == 4 and tensors:
            del tensors[name]
        elif what == 5:
            tensors[chance.choice(("", "vae.", "encoder.", "decoder.")) + odd_text(chance)] = ("F32", [1])
        elif what == 6 and tensors:
            other = chance.choice((".num_batches_tracked", ".weight_scale", ".bias"))
            tensors[name + other] = (chance.choice(DTYPES[:8]), chance.choice(([], [2], [0], [3, 3])))
        elif what == 7:
            metadata = bent(chance, metadata or {"variant": "dc-ae-f32c32-in-1.0"}, 1)
        elif what == 8:
            metadata = {**(metadata if isinstance(metadata, dict) else {}), odd_text(chance): odd_text(chance)}
        else:
            late.append(what)
    header: dict[str, Any] = {} if metadata is None else {"__metadata__": metadata}
    at = 0
    for name, (dtype, shape) in tensors.items():
        size = math.prod(shape) * SIZES.get(dtype, 1)
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [at, at + size]}
        at += size
    for what in late:
        if what == 9:
            header = bent(chance, header, 1)
        elif what == 10 and isinstance(header, dict) and header:
            at = max(0, at + chance.choice((-1, 1, 4, -at, 4096)))
    text = dumped(header).encode(errors="surrogatepass")
    if 11 in late:
        text = text[:-1] + many(chance.choice((100_000, 400_000) if chance.randrange(10) == 7 else (1000,))) + b"}"
    if 12 in late:
        text += b" " * chance.choice((1, 3, 7, 100_000))
    length = len(text)
    if 13 in late:
        length = chance.choice((0, 1, length - 1, length + 1, 2**31, 2**32 - 1, 2**60, 2**63, 2**64 - 1, 99_999_999))
    front = length.to_bytes(8, "little") + text
    return (scrambled(chance, front) if chance.random() < 0.05 else front), at


@functools.cache
def many(count: int) -> bytes:
    """So many tensors without numbers, as they follow others in a header."""
    return b"".join(b',"encoder.%d":{"dtype":"F32","shape":[0],"data_offsets":[0,0]}' % i for i in range(count))


def write_sparse(path: Path, front: bytes, size: int) -> None:
    """`front`, then `size` zeros that take no room on most disks."""
    with path.open("wb") as file:
        file.write(front)
        file.truncate(len(front) + min(size, 1 << 33))


def special(chance: Random, path: Path) -> None:
    """Something at `path` that is no ordinary file."""
    kinds = ["folder", "dangling", "loop", "zero", "empty", "text", "gzip", "html", "lfs", "forbidden"]
    if hasattr(os, "mkfifo"):
        kinds += ["fifo", "fifo", "link to fifo"]
    kind = chance.choice(kinds)
    if kind == "folder":
        path.mkdir()
    elif kind == "dangling":
        path.symlink_to("nowhere.safetensors")
    elif kind == "loop":
        path.symlink_to(path.name)
    elif kind == "zero":
        path.symlink_to("/dev/zero")
    elif kind == "fifo":
        os.mkfifo(path)
    elif kind == "link to fifo":
        os.mkfifo(path.with_suffix(".pipe"))
        path.symlink_to(path.with_suffix(".pipe").name)
    else:
        contents = {"empty": b"", "text": b"hello", "gzip": b"\x1f\x8b\x08\x00", "html": b"  <!DOCTYPE html>"}
        path.write_bytes(contents.get(kind, b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n"))
        if kind == "forbidden":
            path.chmod(0)
