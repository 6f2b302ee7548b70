"""Recognise the network of a set of tensors: a published variant, or any other that diffusers' AutoencoderDC can be.

Names and shapes come first. The rest (`fields.NOT_IN_TENSORS`, the scaling factor, and which of several variants with
the same tensors) is taken from the first of these that has it: the caller, config.json, the file's metadata, the name
of a file or folder, a published variant with exactly these tensors. `in` and `mix`, which nothing else may tell apart,
are then left to their latents (`infer_variant`). A field that none of them has is an error.
"""

from __future__ import annotations

import contextlib
import logging
import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from .. import variants
from ..architecture import DEFAULTS, Architecture
from ..errors import AmbiguousVariant, CheckpointError, OptionError, UnknownVariant, counted
from ..untrusted import shorten
from ..variants import SCALING_FACTOR_RANGE, UNLISTED, VARIANTS, Variant
from . import keys
from .fields import HEAD_DIMS, NOT_IN_TENSORS, fields_of

__all__ = ["CALLER", "Candidates", "ConfigFields", "Hint", "candidates", "hints", "merge_configs"]

log = logging.getLogger(__name__)

Hint = tuple[str, Variant]  # its source, and a variant that the source names
ConfigFields = dict[str, tuple[Any, str]]  # by the names of a config's fields: the value, and its source
CALLER = "the config given"
MAX_NAME_LENGTH = 200  # characters; the time that the patterns take grows with the square of it
# How the part of a name that tells variants of one architecture apart appears in file and folder names.
NAME_PARTS = (
    (re.compile(r"f\d+c\d+[-_ .]in(?![a-z0-9])"), "-in-1.0"),
    (re.compile(r"f\d+c\d+(.*[^a-z0-9])?mix(?![a-z0-9])"), "-mix-1.0"),
    (re.compile(r"sana[-_ .]?1[._]1"), "-sana-1.1"),
    (re.compile(r"sana[-_ .]?1[._]0"), "-sana-1.0"),
)
ALTERNATIVES = {  # two values of each field that tensors may not determine: where both do the same, it does not matter
    "encoder_out_shortcut": (False, True),
    "decoder_in_shortcut": (False, True),
    "decoder_act_fns": ("relu", "silu"),
    "decoder_conv_act_fn": ("relu", "silu"),
}
HOW_TO_GIVE = "put its config.json beside it, or give them as config={...} (on the command line --config FILE)"


@dataclass(frozen=True)
class Candidates:
    """What a set of tensors may be. where: names it in messages. fits: published variants with exactly these tensors,
    none for another network. inferred: fields of a config, from the tensors alone."""

    where: str
    layout: str
    fits: list[Variant]
    inferred: Mapping[str, Any]
    shapes: Mapping[str, tuple[int, ...]]

    def choose(
        self,
        requested: str | Variant | None = None,
        config: ConfigFields | None = None,
        hints: Iterable[Hint] = (),
        name: str = "",
        complete: bool = False,
    ) -> Variant:
        """Return the variant that these tensors are; see this module for the order.

        requested: by the caller; taken if it has these tensors, with the fields of the caller's config. hints: names
        around the file. name: what a network that is not published is called. complete: whether fields that are nowhere
        have diffusers' defaults, as for an AutoencoderDC's own config.json. Raises CheckpointError: AmbiguousVariant if
        only latents can tell the variants apart.
        """
        config, hints = config or {}, list(hints)
        if requested is not None:
            return self._requested(variants.find(requested), config, name)
        unlisted = {v.name: v for _, v in hints if v.name in UNLISTED and self.has(v.architecture)}
        fits = [v for v in (*self.fits, *unlisted.values()) if self._agrees(v, config)]
        if not fits:
            return self._custom(self.fits[0] if self.fits else None, config, name, complete)
        chosen = self._named(fits, hints)
        factor = config.get("scaling_factor", (None,))[0]
        return replace(chosen, scaling_factor=factor) if chosen.scaling_factor is None and factor else chosen

    def has(self, architecture: Architecture) -> bool:
        """Whether these are the tensors of a network of this shape."""
        return _required(keys.expected(architecture, self.layout)) == self.shapes

    def _requested(self, requested: Variant, config: ConfigFields, name: str) -> Variant:
        if not self.has(requested.architecture):
            listed = " or ".join(v.name for v in self.fits) or "another AutoencoderDC"
            raise CheckpointError(
                f"{self.where} holds {listed}, not {requested.name}. Leave the variant out, or name another file."
            )
        caller = {field: pair for field, pair in config.items() if pair[1] == CALLER}
        others = [
            f"{source} says {field} {shorten(value)}"
            for field, (value, source) in config.items()
            if source != CALLER and not self._agrees_alone(requested, field, (value, source))
        ]
        if others:
            also = f" and {counted(len(others) - 1, 'other thing')}" if len(others) > 1 else ""
            log.warning("%s: loaded as %s, as requested, although %s%s", self.where, requested.name, others[0], also)
        return requested if self._agrees(requested, caller) else self._custom(requested, caller, name, False)

    def _agrees(self, variant: Variant, config: ConfigFields) -> bool:
        """Whether no config makes this another network or another scaling factor."""
        factor = config.get("scaling_factor", (None,))[0]
        if factor and variant.scaling_factor and not math.isclose(factor, variant.scaling_factor, rel_tol=1e-5):
            return False
        if "adaptive_channels" in config and tuple(config["adaptive_channels"][0]) != variant.adaptive:
            return False
        architecture = self._architecture(variant.architecture.diffusers_config(), config)
        return architecture.same_network(variant.architecture)

    def _agrees_alone(self, variant: Variant, field: str, pair: tuple[Any, str]) -> bool:
        try:
            return self._agrees(variant, {field: pair})
        except CheckpointError:  # a field that can't be without the others
            return False

    def _architecture(self, known: Mapping[str, object], config: ConfigFields) -> Architecture:
        """`known` with the configs over it. Raises CheckpointError for values that can't be."""
        try:
            return Architecture.from_config({**known, **{field: value for field, (value, _) in config.items()}})
        except OptionError as error:
            sources = " and ".join(dict.fromkeys(source for field, (_, source) in config.items() if field in DEFAULTS))
            raise CheckpointError(f"{self.where}: {sources or 'its tensors'} can't be of a DC-AE: {error}") from error

    def _named(self, fits: list[Variant], hints: list[Hint]) -> Variant:
        """The one of `fits` that all hints of a source name; the first, if they do not differ in the scaling factor."""
        named = [(source, v) for source, hint in hints for v in fits if v == hint]
        sources = list(dict.fromkeys(source for source, _ in named))
        agreed = [v for v in fits if sources and all((s, v) in named for s in sources)]
        if agreed or len({v.scaling_factor for v in fits}) == 1:
            return (agreed or fits)[0]
        if named:
            clash = ", ".join(f"{source} says {v.name}" for source, v in named)
            raise CheckpointError(f"{self.where}: {clash}. Set the variant: {fits[0].name!r} or {fits[-1].name!r}.")
        listed = " or ".join(v.name for v in fits)
        raise AmbiguousVariant(
            f"{self.where} is {listed}: their files have the same keys and shapes and differ in the scaling factor "
            f"({', '.join(str(v.scaling_factor) for v in fits)}), and no config.json, metadata, file or folder name "
            f"says which. Set the variant ({fits[0].name!r} or {fits[-1].name!r}), or put it in the file's name."
        )

    def _custom(self, like: Variant | None, config: ConfigFields, name: str, complete: bool) -> Variant:
        """The network of the configs, which is not published. like: one with the same tensors, for what they lack."""
        known = dict(self.inferred)
        if like is not None:
            known = like.architecture.diffusers_config()
        elif not complete:
            known = self.alternative(0)
            open_fields = [field for field in NOT_IN_TENSORS if field not in (*self.inferred, *config)]
            if missing := [field for field in open_fields if self._matters(field, known, config)]:
                raise CheckpointError(
                    f"{self.where} is no published AutoencoderDC, and its tensors do not determine "
                    f"{', '.join(missing)}: {HOW_TO_GIVE}."
                )
        architecture = self._architecture(known, config)
        if not self.has(architecture):
            raise CheckpointError(self._contradiction(config, architecture))
        factor, adaptive = (config.get(field, (None,))[0] for field in ("scaling_factor", "adaptive_channels"))
        note = "another network" if like is None else f"another network with the tensors of {like.name}"
        name = name or f"autoencoder-dc-f{architecture.spatial_ratio}c{architecture.latent_channels}"
        with contextlib.suppress(UnknownVariant):
            name = f"{variants.find(name).name}-custom"
        try:
            return Variant(name, architecture, factor, note=note, adaptive=tuple(adaptive or ()))
        except OptionError as error:
            raise CheckpointError(f"{self.where}: {error}") from error

    def alternative(self, which: int) -> dict[str, object]:
        """What the tensors determine, with the first (0) or last (-1) of the values that they allow for the rest."""
        alternatives: dict[str, Sequence[object]] = {
            **ALTERNATIVES,
            "attention_head_dim": self.inferred.get(HEAD_DIMS, (1,)),
        }
        return {**{field: values[which] for field, values in alternatives.items()}, **self.inferred}

    def _matters(self, field: str, known: Mapping[str, object], config: ConfigFields) -> bool:
        """Whether the network depends on the value of a field."""
        plain = self._architecture(known, config)
        try:
            other = self._architecture({**known, field: self.alternative(-1)[field]}, config)
            return not other.same_network(plain)
        except CheckpointError:  # the other value can't be: it is the first
            return False

    def _contradiction(self, config: ConfigFields, architecture: Architecture) -> str:
        wanted = architecture.diffusers_config()
        try:
            others = {field: value for field, (value, _) in config.items() if field not in self.inferred}
            there = Architecture.from_config({**self.alternative(0), **others}).diffusers_config()
        except OptionError:
            there = wanted
        fields = [field for field in config if field in wanted and wanted[field] != there[field]]
        differences = "; ".join(
            f"{config[field][1]} says {field} {shorten(wanted[field])}, its tensors {shorten(there[field])}"
            for field in fields
        )
        return (
            f"{self.where}: {differences or 'its config does not fit its tensors'}. Is that the config of another file?"
        )


def candidates(shapes: Mapping[str, tuple[int, ...]], where: str) -> Candidates:
    """Return what tensors of these names and shapes may be. `where` names the file in errors.

    Raises CheckpointError, which lists missing, unexpected and misshapen tensors if some fit a variant, else what there
    is instead.
    """
    given = _required(shapes)
    inferred = fields_of(given) or {}
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
                best = (score, variant.name, layout, expected)
        if fits:
            return Candidates(where, layout, fits, inferred, given)
    _, nearest, layout, expected = best
    impossible = ""
    if inferred:
        custom = Candidates(where, keys.LAYOUTS[any(".op_list." in k for k in given)], [], inferred, given)
        try:
            architecture = Architecture.from_config(custom.alternative(0))
            if custom.has(architecture):
                return custom
            # Where more of it fits than of any published one, it is the better measure of what is wrong.
            theirs = _required(keys.expected(architecture, custom.layout))
            if 2 * sum(given.get(k) == s for k, s in theirs.items()) - len(theirs) > best[0]:
                nearest, layout, expected = f"a custom AutoencoderDC ({architecture})", custom.layout, theirs
        except OptionError as error:
            impossible = f" As a custom AutoencoderDC: {shorten(error, 300)}"
    if nearest is None:
        sample = f", such as {', '.join(map(shorten, list(given)[:3]))}" if given else ""
        raise CheckpointError(
            f"{where} is not a DC-AE: it holds {counted(len(given), 'tensor')}{sample}.{impossible} "
            f"Choose a DC-AE file (original or diffusers keys) of one of: {', '.join(VARIANTS)}; or of any other "
            "AutoencoderDC."
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
        f"{where} is nearest to {nearest} in the {layout} layout, but its tensors do not fit: {'; '.join(parts)}. "
        f"It is damaged, incomplete or no AutoencoderDC.{impossible}"
    )


def _required(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, tuple[int, ...]]:
    return {k: tuple(s) for k, s in shapes.items() if not k.endswith(keys.OPTIONAL)}


def merge_configs(*sources: tuple[str, Mapping[str, object]], where: str) -> tuple[ConfigFields, bool]:
    """Return the fields that (name, config) sources give, the first source believed first, and whether one of them is
    an AutoencoderDC's own config, which has diffusers' defaults for what it leaves out. Fields that are null are not
    given. Raises CheckpointError for a scaling factor or adaptive channels that can't be, and for names in the caller's
    that are no fields."""
    merged: ConfigFields = {}
    fields = (*DEFAULTS, "scaling_factor", "adaptive_channels")
    complete = any("_class_name" in config or "encoder_block_out_channels" in config for _, config in sources)
    for source, config in sources:
        others = [str(name) for name in config if name not in fields and not str(name).startswith("_")]
        if source == CALLER and others:
            raise CheckpointError(
                f"{where}: {CALLER} has {shorten(', '.join(others))}, which is no field of an AutoencoderDC's config. "
                f"Those are {', '.join(fields)}."
            )
        for field in fields:
            if (value := config.get(field)) is not None and field not in merged:
                merged[field] = _checked(field, value, f"{where}: {source}"), source
    return merged, complete


def _checked(field: str, value: Any, where: str) -> Any:
    if field == "scaling_factor":
        with contextlib.suppress(TypeError, ValueError, OverflowError):
            if not isinstance(value, bool) and SCALING_FACTOR_RANGE[0] < float(value) < SCALING_FACTOR_RANGE[1]:
                return float(value)
        raise CheckpointError(
            f"{where} says scaling_factor {shorten(value)!r}: needed is a number from 1e-6 to 1e6. Correct it, or give "
            "config={'scaling_factor': ...}."
        )
    if field == "adaptive_channels":
        if isinstance(value, (list, tuple)) and len(value) < 1000 and all(type(n) is int and n > 0 for n in value):
            return tuple(value)
        raise CheckpointError(f"{where} says adaptive_channels {shorten(value)!r}: needed is a list of numbers.")
    return value


def hints(config: Mapping[str, object], metadata: Mapping[str, str], file: Path) -> Iterator[Hint]:
    """Yield the variants named in config.json, in the file's metadata, and by the file and its folders."""
    for source, fields in (("config.json", config), ("the file's metadata", metadata)):
        for name in ("variant", "model_name", "_name_or_path"):
            if isinstance(text := fields.get(name), str):
                yield from _named_variants(source, text)
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
