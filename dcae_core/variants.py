"""Every published DC-AE variant, as one table of frozen descriptors. No torch in here.

Sources: the configurations in mit-han-lab/efficientvit (`dc_ae.py`) and dc-ai-projects/DC-Gen (`dc_ae.py`); for the
scaling factors the `config.json` files of the `-diffusers` repositories, and for 1.5 DC-Gen's `c2i_model_zoo.py`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import pairwise

from .errors import OptionError, UnknownVariant

__all__ = ["DEMO", "VARIANTS", "Coder", "Stage", "Variant", "find", "names"]

DEMO = "dc-ae-f32c32-demo"


@dataclass(frozen=True)
class Stage:
    """The blocks at one resolution. Stage 0 is at full resolution, each later one at half of the one before."""

    width: int  # channels
    depth: int  # blocks; a first stage of depth 0 means that the picture enters and leaves at half resolution
    block: str = "res"  # "res": ResBlock. "vit": EfficientViT attention followed by a gated (GLU) convolution
    scales: tuple[int, ...] = ()  # kernel sizes of the attention's extra multi-scale branches
    norm: str = "rms"  # "rms" or "batch"
    act: str = "silu"  # "silu" or "relu"


@dataclass(frozen=True)
class Coder:
    """One half of an autoencoder, listed from full resolution down (the decoder runs it backwards)."""

    stages: tuple[Stage, ...]
    resample: str  # encoder: "unshuffle" or "conv" (strided); decoder: "shuffle" or "interpolate" (nearest)
    shortcut: bool = True  # averaging (encoder out) or duplicating (decoder in) shortcut around the latent convolution
    out_act: str = "relu"  # decoder only: activation before the last convolution

    @property
    def pixel_stage(self) -> int:
        """The stage that touches the picture: 0, or 1 where the first stage is empty."""
        return 0 if self.stages[0].depth else 1


@dataclass(frozen=True)
class Variant:
    """What distinguishes one set of weights from another.

    `scaling_factor` multiplies raw latents to give a diffusion model unit variance; divide by it before decoding. None:
    none is published. `repos` are Hugging Face repositories, preferred first; those ending in `-diffusers` hold the
    diffusers key layout. `adaptive`: how many of its first channels a latent may have instead of all.
    """

    name: str
    latent_channels: int
    scaling_factor: float | None
    encoder: Coder
    decoder: Coder
    repos: tuple[str, ...] = ()
    note: str = ""
    family: str = ""  # where several variants share an encoder, and so read each other's latents
    adaptive: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        if wrong := [*_wrong(self)]:
            raise OptionError(f"{self.name} can't be: {'; '.join(wrong)}.")

    @property
    def latent_space(self) -> str:
        """Equal for variants that read each other's latents."""
        return self.family or self.name

    @property
    def spatial_ratio(self) -> int:
        """Pixels per latent pixel, along each side."""
        return 2 ** (len(self.encoder.stages) - 1)

    @property
    def architecture(self) -> tuple:
        """Equal for variants whose files have the same keys and shapes."""
        return (self.latent_channels, self.encoder, self.decoder)

    def takes(self, channels: int) -> bool:
        """Can a latent have so many channels?"""
        return channels == self.latent_channels or channels in self.adaptive

    def channels(self, asked: int | None = None) -> int:
        """`asked`, the first channels of the latent that a run is to have; None is all. Raises OptionError."""
        if asked is None or self.takes(asked):
            return asked or self.latent_channels
        fewer = (
            f", or its first {', '.join(map(str, self.adaptive))}" if self.adaptive else " and takes no other number"
        )
        raise OptionError(f"{self.name} can't run with {asked} latent channels: it has {self.latent_channels}{fewer}.")

    def factor(self, given: float | None = None) -> float:
        """The scaling factor: `given`, or None for the published one. Raises OptionError where there is neither."""
        factor = self.scaling_factor if given is None else given
        if factor is None:
            raise OptionError(
                f"No scaling factor is published for {self.name}, and none was given. Give the one that your diffusion "
                "model was trained with (for a new one: 1 / the root mean square of raw latents), or keep latents raw."
            )
        if not FACTORS[0] < factor < FACTORS[1]:
            raise OptionError(f"A scaling factor of {factor} can't be: needed is a number from 1e-6 to 1e6.")
        return factor

    def diffusers_config(self) -> dict:
        """The `config.json` that diffusers' AutoencoderDC wants for this variant."""

        def words(coder: Coder) -> dict:
            return {
                "block_types": [{"res": "ResBlock", "vit": "EfficientViTBlock"}[s.block] for s in coder.stages],
                "block_out_channels": [s.width for s in coder.stages],
                "layers_per_block": [s.depth for s in coder.stages],
                "qkv_multiscales": [list(s.scales) for s in coder.stages],
            }

        config = {f"{side}_{k}": v for side in ("encoder", "decoder") for k, v in words(getattr(self, side)).items()}
        return {
            "_class_name": "AutoencoderDC",
            "in_channels": 3,
            "latent_channels": self.latent_channels,
            "attention_head_dim": HEAD_DIM,
            **config,
            "downsample_block_type": {"unshuffle": "pixel_unshuffle", "conv": "Conv"}[self.encoder.resample],
            "upsample_block_type": {"shuffle": "pixel_shuffle", "interpolate": "interpolate"}[self.decoder.resample],
            "decoder_norm_types": [f"{s.norm}_norm" for s in self.decoder.stages],
            "decoder_act_fns": [s.act for s in self.decoder.stages],
            "encoder_out_shortcut": self.encoder.shortcut,
            "decoder_in_shortcut": self.decoder.shortcut,
            "decoder_conv_act_fn": self.decoder.out_act,
            "scaling_factor": self.scaling_factor,
        }


def _wrong(variant: Variant) -> Iterator[str]:
    """What of a variant's numbers can't go together."""
    if len(variant.encoder.stages) != len(variant.decoder.stages):
        yield "encoder and decoder need as many stages as each other"
    for half in ("encoder", "decoder"):
        coder = getattr(variant, half)
        stages = coder.stages[coder.pixel_stage :]
        if coder.resample == "unshuffle":
            yield from (f"{half}: unshuffling needs {s.width} to be a multiple of 4" for s in stages[1:] if s.width % 4)
        for here, below in pairwise(stages):
            if 4 * here.width % below.width:
                yield f"{half}: the shortcut needs four times {here.width} to be a multiple of {below.width}"
        if coder.shortcut and stages[-1].width % variant.latent_channels:
            yield f"{half}: the shortcut needs {stages[-1].width} to be a multiple of {variant.latent_channels}"
        if coder.shortcut and variant.adaptive:
            yield f"{half}: fewer channels are for coders without a shortcut around the latent convolution"


FACTORS = (1e-6, 1e6)  # between these are scaling factors: others make numbers that can't be told from errors
HEAD_DIM = 32  # channels per attention head, in every variant
WIDTHS = (128, 256, 512, 512, 1024, 1024)


def _architecture_a(extra_stages: int) -> tuple[Coder, Coder]:
    """`in` and `mix`: ResBlocks in three stages, attention above; each extra stage is 2048 wide."""
    widths = WIDTHS + (2048,) * extra_stages
    blocks = ("res",) * 3 + ("vit",) * (len(widths) - 3)
    encoder = tuple(
        Stage(w, d, b) for w, d, b in zip(widths, (0, 4, 8, 2, 2, 2) + (2,) * extra_stages, blocks, strict=True)
    )
    decoder = tuple(
        Stage(w, d, b, norm="batch" if b == "res" else "rms", act="relu" if b == "res" else "silu")
        for w, d, b in zip(widths, (0, 5, 10, 2, 2, 2) + (2,) * extra_stages, blocks, strict=True)
    )
    return Coder(encoder, "unshuffle"), Coder(decoder, "shuffle")


def _architecture_s() -> tuple[Coder, Coder]:
    """`sana`: attention stages have a 5x5 multi-scale branch; strided and nearest-neighbour resampling."""

    def stages(depths: tuple[int, ...]) -> tuple[Stage, ...]:
        return tuple(
            Stage(w, d, "res" if i < 3 else "vit", () if i < 3 else (5,))
            for i, (w, d) in enumerate(zip(WIDTHS, depths, strict=True))
        )

    return Coder(stages((2, 2, 2, 3, 3, 3)), "conv"), Coder(stages((3, 3, 3, 3, 3, 3)), "interpolate")


def _lite_decoder() -> Coder:
    stages = tuple(Stage(w, d) for w, d in zip(WIDTHS, (0, 3, 5, 4, 4, 4), strict=True))
    return Coder(stages, "shuffle", out_act="silu")


def _architecture_r(extra_stages: int) -> tuple[Coder, Coder]:
    """1.5: ResBlocks everywhere, nothing beside the latent's convolutions; extra stages are 1024 wide."""
    widths, depths = WIDTHS + (1024,) * extra_stages, (0, 5, 10, 4, 4, 4) + (4,) * extra_stages
    stages = tuple(Stage(w, d) for w, d in zip(widths, depths, strict=True))
    return Coder(stages, "unshuffle", shortcut=False), Coder(stages, "shuffle", shortcut=False, out_act="silu")


def _demo() -> tuple[Coder, Coder]:
    """Small enough to bundle: the shape of the published ones at an eighth of the width."""
    widths, blocks = (16, 16, 64, 128, 128, 128), ("res",) * 3 + ("vit",) * 3

    def stages(depths: tuple[int, ...]) -> tuple[Stage, ...]:
        return tuple(Stage(w, d, b) for w, d, b in zip(widths, depths, blocks, strict=True))

    return Coder(stages((0, 1, 1, 1, 1, 2)), "conv"), Coder(stages((0, 1, 1, 1, 2, 2)), "shuffle")


def _table() -> dict[str, Variant]:
    found = []
    for ratio, channels, extra, factors in (
        (32, 32, 0, {"in": 0.3189, "mix": 0.4552}),
        (64, 128, 1, {"in": 0.2889, "mix": 0.4538}),
        (128, 512, 2, {"in": 0.4883, "mix": 0.3620}),
    ):
        encoder, decoder = _architecture_a(extra)
        for data, factor in factors.items():
            name = f"dc-ae-f{ratio}c{channels}-{data}-1.0"
            note = {"in": "trained on ImageNet", "mix": "trained on a mixture of data sets"}[data]
            found.append(Variant(name, channels, factor, encoder, decoder, _mit(name), note))

    encoder, decoder = _architecture_s()
    sana = Variant(
        "dc-ae-f32c32-sana-1.0", 32, 0.41407, encoder, decoder, _mit("dc-ae-f32c32-sana-1.0"), "for Sana", "sana"
    )
    lite = "dc-ae-lite-f32c32-sana-1.1"
    found += [
        sana,
        replace(
            sana,
            name="dc-ae-f32c32-sana-1.1",
            repos=_mit("dc-ae-f32c32-sana-1.1"),
            note="for Sana: the encoder of sana-1.0, a better decoder",
        ),
        replace(
            sana,
            name=lite,
            decoder=_lite_decoder(),
            repos=("dc-ai/dc-ae-lite-f32c32-diffusers", "dc-ai/dc-ae-lite-f32c32", *_mit(lite)),
            note="for Sana: the encoder of sana-1.0, a fast decoder",
        ),
    ]
    for ratio, extra, factor in ((32, 0, None), (64, 1, 0.5935)):
        name, note = f"dc-ae-f{ratio}c128-1.5", "its latent's first channels decode without the others"
        fewer = tuple(range(16, 128, 16))  # what DC-Gen names models for, as dc-ae-f32c128-1.5-c16
        found.append(Variant(name, 128, factor, *_architecture_r(extra), (f"dc-ai/{name}",), note, adaptive=fewer))
    encoder, decoder = _demo()
    found.append(
        Variant(DEMO, 32, 1.322, encoder, decoder, note="bundled: a small demonstration model, not for real work")
    )
    return {v.name: v for v in found}


def _mit(name: str) -> tuple[str, ...]:
    return (f"mit-han-lab/{name}-diffusers", f"mit-han-lab/{name}")


VARIANTS: dict[str, Variant] = _table()


def names() -> list[str]:
    """The names of all variants, in the order of the table."""
    return list(VARIANTS)


def find(name: str | Variant) -> Variant:
    """The variant called `name`: with or without `-diffusers` or a repository owner, in any case.

    Raises UnknownVariant, which lists the names there are.
    """
    if isinstance(name, Variant):
        return name
    plain = str(name).strip().lower().rstrip("/").rsplit("/", 1)[-1].removesuffix("-diffusers")
    if plain in VARIANTS:
        return VARIANTS[plain]
    for variant in VARIANTS.values():
        if any(plain == repo.rsplit("/", 1)[-1].removesuffix("-diffusers") for repo in variant.repos):
            return variant
    raise UnknownVariant(f"There is no DC-AE variant named {name!r}. Choose one of: {', '.join(VARIANTS)}.")
