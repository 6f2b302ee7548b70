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
WORDS = r""". .. / ../secret.safetensors /etc/passwd a/b.safetensors a\..\b.safetensors C:\secret.safetensors nan inf
-inf -1 0 1e400 1_0 0x20 dc-ae-f32c32-in-1.0 dc-ae-f64c128-mix-1.0 raw scaled {} [1,2]"""
TEXTS = ("", " ", "\0", "a\0b.safetensors", "two\nlines", "\x1b[31mred\x1b[0m", "\u202egnp.exe", "\ud800", "\U0001f600")
TEXTS += ("\u0661\u0662", "9" * 5000, "x" * 300 + ".safetensors", "x" * 100_000, "f1c1" * 3000)
TEXTS += (*WORDS.split(), "f32c32-" + "mi" * 20_000)
OTHERS = (None, True, False, [], {}, [[]], [None], {"a": 1}, ["x"] * 1000, [0] * 1000, {"": {"": {}}})
NO_JSON = (b"", b"null", b"[" * 100_000, b'{"a":' * 50_000, b"9" * 10_000, b"NaN", b"\xff\xfe", b"{}{}")
WRONG = (b"\x00\x00\xc0\x7f", b"\x00\x7c\x00\x7c", b"\x80\x7f\x80\xff", b"\xff\xff\xff\xff")  # NaN, infinities
SIZES = {"F32": 4, "F16": 2, "BF16": 2, "F64": 8, "I64": 8, "I8": 1, "U8": 1, "BOOL": 1, "C64": 8, "U16": 2}
DTYPES = (*SIZES, "F8_E4M3", "F8_E5M2", "F4", "F8_E8M0", "X", "")


def odd_text(chance: Random) -> str:
    return chance.choice(TEXTS)


def odd(chance: Random) -> Any:
    """A value of JSON's types that nobody would put there."""
    kind = chance.randrange(5)
    if kind == 4:
        value: Any = []
        wrap = chance.choice((lambda inner: [inner], lambda inner: {"a": inner}))
        for _ in range(chance.choice((10, 200, 900, 5000))):
            value = wrap(value)
        return value
    return copy.deepcopy(chance.choice((NUMBERS, FLOATS, TEXTS, OTHERS)[kind]))


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
    text, what = dumped(value), chance.randrange(12)
    if what == 1:
        return text.encode(chance.choice(("utf-16", "utf-8-sig", "latin-1")), errors="replace")
    data = text.encode(errors="surrogatepass")
    if what == 0:
        return scrambled(chance, data[:100_000])
    return chance.choice(NO_JSON) if what == 2 else data * 2 if what == 3 else data


def dumped(value: Any) -> str:
    try:
        return json.dumps(value)
    except RecursionError:  # deeper than this Python writes: the depth is what counts
        return "[" * 20_000 + "]" * 20_000


def scrambled(chance: Random, data: bytes, most: int | None = None) -> bytes:
    """`data` with some bytes changed, cut, doubled or moved; only in its first `most`, where that is given."""
    data = bytearray(data)
    for _ in range(chance.choice((1, 1, 2, 3, 8, 30))):
        if not data:
            break
        at, length = chance.randrange(min(len(data), most or len(data))), chance.choice((1, 1, 2, 4, 8, 40, 500))
        top = 1 << 8 * (size := chance.choice((2, 4, 8)))
        number = chance.choice((0, 1, top - 1, top // 2, top // 2 - 1, 65536 % top))
        replaced, by = chance.choice(
            (
                (1, bytes([data[at] ^ 1 << chance.randrange(8)])),
                (1, bytes([chance.choice((0, 1, 0x7F, 0x80, 0xFF, 0x20, 0x22, 0x7B))])),
                (length, chance.randbytes(min(length, 8))),
                (length, b""),
                (0, data[at : at + length]),
                (size, number.to_bytes(size, chance.choice(("little", "big")))),
                (len(data) if chance.random() < 0.3 else 0, b""),
            )
        )
        data[at : at + replaced] = by
    return bytes(data)


def pack(
    chance: Random, tensors: dict[str, tuple[str, list[int]]], metadata: dict | None, mutations: int
) -> tuple[bytes, int]:
    """(what comes before the data, bytes of data) of a safetensors file of {name: (dtype, shape)}, with `mutations`
    changes to its structure. The offsets fit what the header says, but where a mutation is about them."""
    tensors = {name: (dtype, list(shape)) for name, (dtype, shape) in tensors.items()}
    metadata, late = None if metadata is None else dict(metadata), []
    for _ in range(mutations):
        name = chance.choice(list(tensors) or ["encoder"])
        dtype, shape = tensors.get(name, ("F32", [1]))
        other, at = chance.choice(DTYPES), chance.randrange(len(shape) + 1)
        what = chance.randrange(14)
        if what == 0:
            tensors = {name: (other, shape) for name, (_, shape) in tensors.items()}
        elif what <= 3:
            longer = [*shape[:at], chance.choice((0, 1, 1, 2, 3)), *shape[at:]]
            tensors[name] = ((other, shape), (dtype, longer), (dtype, shape[:-1]))[what - 1]
        elif what == 4:
            tensors.pop(name, None)
        elif what == 5:
            tensors[chance.choice(("", "vae.", "encoder.", "decoder.")) + odd_text(chance)] = ("F32", [1])
        elif what == 6:
            more = chance.choice((".num_batches_tracked", ".weight_scale", ".bias"))
            tensors[name + more] = (other, chance.choice(([], [2], [0], [3, 3])))
        elif what == 7:
            metadata = bent(chance, metadata or {"variant": "dc-ae-f32c32-in-1.0"}, 1)
        elif what == 8:
            metadata = {**(metadata if isinstance(metadata, dict) else {}), odd_text(chance): odd_text(chance)}
        else:
            late.append(what)
    header: Any = {} if metadata is None else {"__metadata__": metadata}
    at = 0
    for name, (dtype, shape) in tensors.items():
        size = math.prod(shape) * SIZES.get(dtype, 1)
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [at, at + size]}
        at += size
    if 9 in late:
        header = bent(chance, header, late.count(9))
    if 10 in late:
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


def write_sparse(chance: Random, path: Path, front: bytes, size: int) -> None:
    """`front`, then `size` zeros that take no room on most disks; some of few are no finite numbers."""
    with path.open("wb") as file:
        file.write(front)
        file.truncate(len(front) + min(size, 1 << 33))
        if chance.random() < 0.3 and 4 <= size < 64 << 20:
            file.seek(len(front) + chance.randrange(size - 3) // 4 * 4)
            file.write(chance.choice(WRONG))


LINKS = {"dangling": "nowhere.safetensors", "loop": None, "zero": "/dev/zero", "link to fifo": "pipe"}
CONTENTS = {"empty": b"", "text": b"hello", "gzip": b"\x1f\x8b\x08\x00", "html": b"  <!DOCTYPE html>"}
CONTENTS |= dict.fromkeys(("lfs", "forbidden"), b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n")


def special(chance: Random, path: Path) -> None:
    """Something at `path` that is no ordinary file."""
    pipes = ["fifo", "fifo"] if hasattr(os, "mkfifo") else []
    kind = chance.choice(["folder", *CONTENTS, *pipes, *(kind for kind in LINKS if pipes or "fifo" not in kind)])
    if kind == "folder":
        path.mkdir()
    elif "fifo" in kind:
        os.mkfifo(path.with_suffix(".pipe") if kind in LINKS else path)
    if kind in LINKS:
        path.symlink_to({"loop": path.name, "link to fifo": path.with_suffix(".pipe").name}.get(kind) or LINKS[kind])
    elif kind in CONTENTS:
        path.write_bytes(CONTENTS[kind])
        path.chmod(0 if kind == "forbidden" else 0o644)
