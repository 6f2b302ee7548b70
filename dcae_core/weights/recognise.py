"""Which variant a set of tensors is: by their names and shapes, then by what names it.

Variants with the same Architecture have the same tensors. What tells them apart is the caller, config.json, metadata,
the names of files and folders; in the last resort the weights themselves (`infer_variant`).
"""

from __future__ import annotations

import contextlib
import logging
import re
from collections.abc import Iterator, Mapping
from pathlib import Path

from .. import variants
from ..errors import AmbiguousVariant, CheckpointError, UnknownVariant
from ..untrusted import shorten
from ..variants import VARIANTS, Variant
from . import keys

__all__ = ["Hint", "candidates", "choose", "hints"]

log = logging.getLogger(__name__)

Hint = tuple[str, Variant | float]  # where it is from, and the variant or scaling factor that it says
LONGEST_NAME = 200  # characters of what may name a variant: patterns take time that grows with the square of it
# How the full name, or the part of it that tells variants of one architecture apart, appears in file and folder names.
NAME_PARTS = (
    (re.compile(r"f\d+c\d+[-_ .]in(?![a-z0-9])"), "-in-1.0"),
    (re.compile(r"f\d+c\d+(.*[^a-z0-9])?mix(?![a-z0-9])"), "-mix-1.0"),
    (re.compile(r"sana[-_ .]?1[._]1"), "-sana-1.1"),
    (re.compile(r"sana[-_ .]?1[._]0"), "-sana-1.0"),
)


def candidates(shapes: Mapping[str, tuple[int, ...]], where: str) -> tuple[str, list[Variant]]:
    """Return (layout, variants) whose tensors are exactly these, by name and shape. `where` names the file in errors.

    Raises CheckpointError: with what is missing, unexpected or misshapen if it is nearly a DC-AE, else with what it
    holds instead.
    """
    given = {k: tuple(s) for k, s in shapes.items() if not k.endswith(keys.OPTIONAL)}
    best = (-1, None, "", {})
    for layout in keys.LAYOUTS:
        fitting = []
        for variant in VARIANTS.values():
            expected = {
                k: s for k, s in keys.expected(variant.architecture, layout).items() if not k.endswith(keys.OPTIONAL)
            }
            if expected == given:
                fitting.append(variant)
            common = sum(given.get(k) == s for k, s in expected.items())
            score = 2 * common - len(expected)  # among variants that share tensors, the one with fewest missing
            if common and score > best[0]:
                best = (score, variant, layout, expected)
        if fitting:
            return layout, fitting
    _, variant, layout, expected = best
    if variant is None:
        sample = ", ".join(map(shorten, list(given)[:3])) or "nothing"
        raise CheckpointError(
            f"{where} is not a DC-AE: it holds {len(given)} tensors such as {sample}. "
            f"Choose a DC-AE file (original or diffusers keys) of one of: {', '.join(VARIANTS)}."
        )
    missing = [k for k in expected if k not in given]
    extra = [k for k in given if k not in expected]
    wrong = [
        f"{k} is {shorten(list(given[k]))}, not {list(s)}" for k, s in expected.items() if k in given and given[k] != s
    ]
    parts = [
        f"{len(found)} {what} ({', '.join(map(shorten, found[:3]))}{', ...' if len(found) > 3 else ''})"
        for what, found in (("missing", missing), ("unexpected", extra), ("of another shape", wrong))
        if found
    ]
    raise CheckpointError(
        f"{where} is nearest to {variant.name} in the {layout} layout, but its tensors do not fit: {'; '.join(parts)}. "
        "It is damaged, incomplete, or a variant that is not supported."
    )


def choose(fits: list[Variant], requested: str | Variant | None, hints: list[Hint], where: str) -> Variant:
    """Choose one of `fits`, variants that keys and shapes can't tell apart.

    What the caller says is taken if it fits. Else the hints, (source, variant or scaling factor) each, if they agree.
    Else, if all that fit have the same scaling factor (sana-1.0 and 1.1), the first. Else raises CheckpointError with
    the candidates; and where there is no hint at all AmbiguousVariant.
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
        raise CheckpointError(f"{where}: {clash}. Say which it is: variant={fits[0].name!r} or {fits[-1].name!r}.")
    raise AmbiguousVariant(
        f"{where} is {listed}: their files have the same keys and shapes and differ in the scaling factor "
        f"({', '.join(str(v.scaling_factor) for v in fits)}), and no config.json, metadata, file or folder name says "
        f"which. Say it (variant={fits[0].name!r} or {fits[-1].name!r}) or put it in the file's name."
    )


def hints(config: dict, metadata: Mapping[str, str], file: Path) -> Iterator[tuple[str, Variant | float]]:
    """Yield (source, variant or scaling factor) from config.json, the file's metadata, and file and folder names."""
    for source, fields in (("config.json", config), ("the file's metadata", metadata)):
        for name in ("variant", "model_name", "_name_or_path"):
            if isinstance(fields.get(name), str):
                yield from named_variants(source, fields[name])
        with contextlib.suppress(KeyError, TypeError, ValueError, OverflowError):
            yield source, float(fields["scaling_factor"])
    # The nearest name that says anything counts: the file's, its folder's, and in hub caches that of
    # models--mit-han-lab--NAME/snapshots/COMMIT/FILE. Folders further up belong to other things.
    absolute = file.absolute()
    parents = [p.name for p in absolute.parents]
    for part in [absolute.stem, *parents[:1], *(p for p in parents[1:4] if p.startswith("models--"))]:
        found = list(named_variants(f"the name {part!r}", part))
        if found:
            yield from found
            return


def named_variants(source: str, text: str) -> Iterator[tuple[str, Variant]]:
    if len(text) > LONGEST_NAME:
        return
    try:
        yield source, variants.find(text)
        return
    except UnknownVariant:
        pass
    endings = [ending for pattern, ending in NAME_PARTS if pattern.search(text.lower())]
    if len(endings) == 1:
        for variant in variants.VARIANTS.values():
            if variant.name.endswith(endings[0]):
                yield source, variant
