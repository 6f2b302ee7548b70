"""Recognise the variant of a set of tensors: by their names and shapes, then by hints from around them.

Variants with the same Architecture have the same tensors. The caller, config.json, metadata and the names of files and
folders tell them apart; where none of these does, the weights may (`infer_variant`).
"""

from __future__ import annotations

import contextlib
import logging
import re
from collections.abc import Iterator, Mapping
from pathlib import Path

from .. import variants
from ..errors import AmbiguousVariant, CheckpointError, UnknownVariant, counted
from ..untrusted import shorten
from ..variants import VARIANTS, Variant
from . import keys

__all__ = ["Hint", "candidates", "choose", "hints"]

log = logging.getLogger(__name__)

Hint = tuple[str, Variant | float]  # its source, and the variant or scaling factor that the source gives
MAX_NAME_LENGTH = 200  # characters; the time that the patterns take grows with the square of it
# How the part of a name that tells variants of one architecture apart appears in file and folder names.
NAME_PARTS = (
    (re.compile(r"f\d+c\d+[-_ .]in(?![a-z0-9])"), "-in-1.0"),
    (re.compile(r"f\d+c\d+(.*[^a-z0-9])?mix(?![a-z0-9])"), "-mix-1.0"),
    (re.compile(r"sana[-_ .]?1[._]1"), "-sana-1.1"),
    (re.compile(r"sana[-_ .]?1[._]0"), "-sana-1.0"),
)


def candidates(shapes: Mapping[str, tuple[int, ...]], where: str) -> tuple[str, list[Variant]]:
    """Return (layout, variants) whose tensors have exactly these names and shapes. `where` names the file in errors.

    Raises CheckpointError, which lists missing, unexpected and misshapen tensors if some fit a variant, else what there
    is instead.
    """
    given = _required(shapes)
    best = (-1, None, "", {})
    for layout in keys.LAYOUTS:
        fits = []
        for variant in VARIANTS.values():
            expected = _required(keys.expected(variant.architecture, layout))
            if expected == given:
                fits.append(variant)
            common = sum(given.get(k) == s for k, s in expected.items())
            score = 2 * common - len(expected)  # among variants that share tensors, the one with fewest missing
            if common and score > best[0]:
                best = (score, variant, layout, expected)
        if fits:
            return layout, fits
    _, variant, layout, expected = best
    if variant is None:
        sample = f", such as {', '.join(map(shorten, list(given)[:3]))}" if given else ""
        raise CheckpointError(
            f"{where} is not a DC-AE: it holds {counted(len(given), 'tensor')}{sample}. "
            f"Choose a DC-AE file (original or diffusers keys) of one of: {', '.join(VARIANTS)}."
        )
    missing = [k for k in expected if k not in given]
    extra = [k for k in given if k not in expected]
    misshapen = [
        f"{k} is {shorten(list(given[k]))}, not {list(s)}" for k, s in expected.items() if k in given and given[k] != s
    ]
    parts = [
        f"{len(tensors)} {problem} ({', '.join(map(shorten, tensors[:3]))}{', ...' if len(tensors) > 3 else ''})"
        for problem, tensors in (("missing", missing), ("unexpected", extra), ("of another shape", misshapen))
        if tensors
    ]
    raise CheckpointError(
        f"{where} is nearest to {variant.name} in the {layout} layout, but its tensors do not fit: {'; '.join(parts)}. "
        "It is damaged, incomplete or an unsupported variant."
    )


def _required(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, tuple[int, ...]]:
    return {k: tuple(s) for k, s in shapes.items() if not k.endswith(keys.OPTIONAL)}


def choose(fits: list[Variant], requested: str | Variant | None, hints: list[Hint], where: str) -> Variant:
    """Return one of `fits`, the variants that keys and shapes allow.

    `requested` is taken if it fits. Otherwise the hints decide if they agree. Otherwise, if all of `fits` have the same
    scaling factor (sana-1.0 and 1.1), it is the first. Raises CheckpointError, which lists `fits`: AmbiguousVariant if
    no hint names one of them.
    """
    listed = " or ".join(v.name for v in fits)
    named = []
    for source, hint in hints:
        for v in fits:
            if v == hint or (isinstance(hint, float) and v.scaling_factor and abs(v.scaling_factor - hint) < 1e-3):
                named.append((source, v))
    if requested is not None:
        requested = variants.find(requested)
        if requested not in fits:
            raise CheckpointError(
                f"{where} holds {listed}, not {requested.name}. Leave the variant out, or name another file."
            )
        for source, v in named:
            if v.scaling_factor != requested.scaling_factor:
                log.warning(
                    "%s: loaded as %s, as requested, although %s says %s", where, requested.name, source, v.name
                )
        return requested
    if len(fits) == 1:
        for source, hint in hints:
            if isinstance(hint, float) and abs(hint - (fits[0].scaling_factor or hint)) > 1e-3:
                log.warning(
                    "%s: the scaling factor of %s is used, although %s says %s", where, fits[0].name, source, hint
                )
        return fits[0]
    sources = list(dict.fromkeys(source for source, _ in named))
    agreed = [v for v in fits if sources and all((s, v) in named for s in sources)]
    if agreed:
        return agreed[0]
    if len({v.scaling_factor for v in fits}) == 1:
        return fits[0]
    if named:
        clash = ", ".join(f"{source} says {v.name}" for source, v in named)
        raise CheckpointError(f"{where}: {clash}. Set the variant: {fits[0].name!r} or {fits[-1].name!r}.")
    raise AmbiguousVariant(
        f"{where} is {listed}: their files have the same keys and shapes and differ in the scaling factor "
        f"({', '.join(str(v.scaling_factor) for v in fits)}), and no config.json, metadata, file or folder name says "
        f"which. Set the variant ({fits[0].name!r} or {fits[-1].name!r}), or put it in the file's name."
    )


def hints(config: dict, metadata: Mapping[str, str], file: Path) -> Iterator[Hint]:
    """Yield the hints in config.json, in the file's metadata, and in the names of the file and its folders."""
    for source, fields in (("config.json", config), ("the file's metadata", metadata)):
        for name in ("variant", "model_name", "_name_or_path"):
            if isinstance(fields.get(name), str):
                yield from _named_variants(source, fields[name])
        with contextlib.suppress(KeyError, TypeError, ValueError, OverflowError):
            yield source, float(fields["scaling_factor"])
    # Only the nearest name that gives a hint counts: the file's, its folder's, or in a hub cache the one of
    # models--mit-han-lab--NAME/snapshots/COMMIT/FILE.
    absolute = file.absolute()
    parents = [p.name for p in absolute.parents]
    for name in [absolute.stem, *parents[:1], *(p for p in parents[1:4] if p.startswith("models--"))]:
        if from_name := list(_named_variants(f"the name {name!r}", name)):
            yield from from_name
            return


def _named_variants(source: str, text: str) -> Iterator[tuple[str, Variant]]:
    """Yield a hint for each variant that `text` may name."""
    if len(text) > MAX_NAME_LENGTH:
        return
    try:
        yield source, variants.find(text)
        return
    except UnknownVariant:
        pass
    endings = [ending for pattern, ending in NAME_PARTS if pattern.search(text.lower())]
    if len(endings) == 1:
        for variant in VARIANTS.values():
            if variant.name.endswith(endings[0]):
                yield source, variant
