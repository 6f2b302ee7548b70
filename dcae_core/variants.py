"""The table of published DC-AE variants: name, Architecture, scaling factor, repositories. Where files lie and what
they hold, also of networks that are not published, is left to `weights`. No torch in here.

Sources: the configurations in mit-han-lab/efficientvit (`dc_ae.py`) and dc-ai-projects/DC-Gen (`dc_ae.py`); for the
scaling factors the `config.json` files of the `-diffusers` repositories, and for 1.5 DC-Gen's `c2i_model_zoo.py`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from .architecture import Architecture, CoderSpec, Stage
from .errors import OptionError, UnknownVariant, counted

__all__ = ["DEMO", "SCALING_FACTOR_RANGE", "UNLISTED", "VARIANTS", "Variant", "find", "known", "latent_space", "names"]

DEMO = "dc-ae-f32c32-demo"
SCALING_FACTOR_RANGE = (1e-6, 1e6)  # others make numbers that can't be told from errors
WIDTHS = (128, 256, 512, 512, 1024, 1024)


@dataclass(frozen=True)
class Variant:
    """What distinguishes one set of weights from another: a published one, or that of a file with another network.

    `scaling_factor` multiplies raw latents to give a diffusion model unit variance; divide by it before decoding. None:
    none is published. `repos` are Hugging Face repositories, preferred first; those ending in `-diffusers` hold the
    diffusers key layout. `family`: where several variants share an encoder, and so read each other's latents.
    `adaptive`: how many of its first channels a latent may have instead of all.
    """

    name: str
    architecture: Architecture
    scaling_factor: float | None
    repos: tuple[str, ...] = ()
    note: str = ""
    family: str = ""
    adaptive: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        if self.adaptive and (self.architecture.encoder.shortcut or self.architecture.decoder.shortcut):
            raise OptionError(
                f"{self.name} is impossible: fewer latent channels need an encoder and a decoder without a shortcut "
                "around the latent convolution."
            )

    @property
    def latent_channels(self) -> int:
        return self.architecture.latent_channels

    @property
    def spatial_ratio(self) -> int:
        """Pixels per latent pixel, along each side."""
        return self.architecture.spatial_ratio

    @property
    def latent_space(self) -> str:
        """Equal for variants that read each other's latents."""
        return self.family or self.name

    def accepts(self, channels: int) -> bool:
        """Can a latent have so many channels?"""
        return channels == self.latent_channels or channels in self.adaptive

    def channels(self, requested: int | None = None) -> int:
        """`requested`, the first channels of the latent that a run is to have; None is all. Raises OptionError."""
        if requested is None or self.accepts(requested):
            return requested or self.latent_channels
        fewer = (
            f", or its first {', '.join(map(str, self.adaptive))}" if self.adaptive else " and takes no other number"
        )
        wanted = counted(requested, "latent channel")
        raise OptionError(f"{self.name} can't run with {wanted}: it has {self.latent_channels}{fewer}.")

    def factor(self, given: float | None = None) -> float:
        """The scaling factor: `given`, or None for the published one. Raises OptionError where there is neither."""
        factor = self.scaling_factor if given is None else given
        if factor is None:
            raise OptionError(
                f"No scaling factor is published for {self.name}, and none was given. Give the one that your diffusion "
                "model was trained with (for a new one: 1 / the root mean square of raw latents), or keep latents raw."
            )
        low, high = SCALING_FACTOR_RANGE
        if not low < factor < high:
            raise OptionError(f"A scaling factor of {factor} is impossible: needed is a number from 1e-6 to 1e6.")
        return factor

    def diffusers_config(self) -> dict[str, object]:
        """The `config.json` that diffusers' AutoencoderDC wants for this variant."""
        return {**self.architecture.diffusers_config(), "scaling_factor": self.scaling_factor}


def _in_and_mix(latent_channels: int, extra_stages: int) -> Architecture:
    """`in` and `mix`: ResBlocks in three stages, attention above; each extra stage is 2048 wide."""
    widths = WIDTHS + (2048,) * extra_stages
    blocks = ("ResBlock",) * 3 + ("EfficientViTBlock",) * (len(widths) - 3)
    more = (2,) * extra_stages
    encoder = tuple(map(Stage, widths, (0, 4, 8, 2, 2, 2, *more), blocks))
    decoder = tuple(
        Stage(w, d, b, norm="batch_norm" if b == "ResBlock" else "rms_norm", act="relu" if b == "ResBlock" else "silu")
        for w, d, b in zip(widths, (0, 5, 10, 2, 2, 2, *more), blocks, strict=True)
    )
    return Architecture(latent_channels, CoderSpec(encoder, "pixel_unshuffle"), CoderSpec(decoder, "pixel_shuffle"))


def _sana() -> Architecture:
    """`sana`: attention stages have a 5x5 multi-scale branch; strided and nearest-neighbour resampling."""

    def stages(depths: tuple[int, ...]) -> tuple[Stage, ...]:
        return tuple(
            Stage(w, d) if i < 3 else Stage(w, d, "EfficientViTBlock", (5,))
            for i, (w, d) in enumerate(zip(WIDTHS, depths, strict=True))
        )

    encoder, decoder = CoderSpec(stages((2, 2, 2, 3, 3, 3)), "Conv"), CoderSpec(stages((3,) * 6), "interpolate")
    return Architecture(32, encoder, decoder)


def _lite_decoder() -> CoderSpec:
    return CoderSpec(tuple(map(Stage, WIDTHS, (0, 3, 5, 4, 4, 4))), "pixel_shuffle", conv_act="silu")


def _v1_5(extra_stages: int) -> Architecture:
    """1.5: ResBlocks everywhere, no shortcut around the latent's convolutions; extra stages are 1024 wide."""
    stages = tuple(map(Stage, WIDTHS + (1024,) * extra_stages, (0, 5, 10, 4, 4, 4) + (4,) * extra_stages))
    encoder = CoderSpec(stages, "pixel_unshuffle", shortcut=False)
    return Architecture(128, encoder, CoderSpec(stages, "pixel_shuffle", shortcut=False, conv_act="silu"))


def _demo() -> Architecture:
    """Small enough to bundle: the shape of the published ones at an eighth of the width."""
    widths, blocks = (16, 16, 64, 128, 128, 128), ("ResBlock",) * 3 + ("EfficientViTBlock",) * 3
    encoder = CoderSpec(tuple(map(Stage, widths, (0, 1, 1, 1, 1, 2), blocks)), "Conv")
    return Architecture(32, encoder, CoderSpec(tuple(map(Stage, widths, (0, 1, 1, 1, 2, 2), blocks)), "pixel_shuffle"))


def _table() -> dict[str, Variant]:
    found = []
    for ratio, channels, extra, factors in (
        (32, 32, 0, {"in": 0.3189, "mix": 0.4552}),
        (64, 128, 1, {"in": 0.2889, "mix": 0.4538}),
        (128, 512, 2, {"in": 0.4883, "mix": 0.3620}),
    ):
        for data, factor in factors.items():
            name = f"dc-ae-f{ratio}c{channels}-{data}-1.0"
            note = {"in": "trained on ImageNet", "mix": "trained on a mixture of data sets"}[data]
            found.append(Variant(name, _in_and_mix(channels, extra), factor, _mit(name), note))

    name, architecture = "dc-ae-f32c32-sana-1.0", _sana()
    sana = Variant(name, architecture, 0.41407, _mit(name), "for Sana", "sana")
    newer, lite = "dc-ae-f32c32-sana-1.1", "dc-ae-lite-f32c32-sana-1.1"
    found += [
        sana,
        replace(sana, name=newer, repos=_mit(newer), note="for Sana: the encoder of sana-1.0, a better decoder"),
        replace(
            sana,
            name=lite,
            architecture=replace(architecture, decoder=_lite_decoder()),
            repos=(
                "dc-ai/dc-ae-lite-f32c32-diffusers",
                "dc-ai/dc-ae-lite-f32c32",
                *_mit(lite),
                *_mit("dc-ae-turbo-f32c32-sana-1.1"),  # what it was called first
            ),
            note="for Sana: the encoder of sana-1.0, a fast decoder",
        ),
    ]
    for ratio, extra, factor in ((32, 0, None), (64, 1, 0.5935)):
        name, note = f"dc-ae-f{ratio}c128-1.5", "its latent's first channels decode without the others"
        fewer = tuple(range(16, 128, 16))  # what DC-Gen names models for, as dc-ae-f32c128-1.5-c16
        newer = f"dc-ai/dc-ae-1.5-f{ratio}c128"
        repos = f"dc-ai/{name}", newer, f"{newer}-diffusers"
        found.append(Variant(name, _v1_5(extra), factor, repos, note, adaptive=fewer))
    note = "bundled: a small demonstration model, not for real work"
    found.append(Variant(DEMO, _demo(), 1.322, note=note))
    return {v.name: v for v in found}


def _mit(name: str) -> tuple[str, ...]:
    return (f"mit-han-lab/{name}-diffusers", f"mit-han-lab/{name}")


VARIANTS: dict[str, Variant] = _table()


def _unlisted() -> Iterator[Variant]:
    """What DC-Gen names beside them: networks of the table with weights, and so latents, of their own. Whether all of
    these are published is not known."""
    v1_5, note = VARIANTS["dc-ae-f32c128-1.5"], "named in DC-Gen; its weights are not known to be published"
    for end in ("", *(f"-c{channels}" for channels in v1_5.adaptive)):
        yield replace(v1_5, name=f"dc-ae-f32c128-1.1{end}", repos=(), note=note, adaptive=())
        if end:
            yield replace(v1_5, name=v1_5.name + end, repos=(), note=note)
    name = "dc-ae-f32c32-in-1.0-256px"
    yield replace(VARIANTS["dc-ae-f32c32-in-1.0"], name=name, scaling_factor=None, repos=_mit(name)[1:], note=note)


UNLISTED: dict[str, Variant] = {v.name: v for v in _unlisted()}


def names() -> list[str]:
    """The names of all variants, in the order of the table."""
    return list(VARIANTS)


def find(name: str | Variant) -> Variant:
    """The variant called `name`: with or without `-diffusers` or the owner of its repository, in any case.

    Raises UnknownVariant, which lists the names there are.
    """
    if isinstance(name, Variant):
        return name
    *owner, plain = str(name).strip().lower().rstrip("/").rsplit("/", 1)
    plain = plain.removesuffix("-diffusers")
    owners = {repo.split("/")[0] for variant in VARIANTS.values() for repo in variant.repos}
    if not owner or owner[0] in owners:
        if listed := VARIANTS.get(plain) or UNLISTED.get(plain):
            return listed
        for variant in VARIANTS.values():
            if any(plain == repo.rsplit("/", 1)[-1].removesuffix("-diffusers") for repo in variant.repos):
                return variant
    raise UnknownVariant(f"There is no DC-AE variant named {name!r}. Choose one of: {', '.join(VARIANTS)}.")


def known(name: str | None) -> Variant | None:
    """The variant called `name`, None where there is none: files name those of other networks too."""
    try:
        return None if name is None else find(name)
    except UnknownVariant:
        return None


def latent_space(name: str) -> str:
    """The `latent_space` of the variant called `name`; of another network's, the name."""
    variant = known(name)
    return name if variant is None else variant.latent_space
