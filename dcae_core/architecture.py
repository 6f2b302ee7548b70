"""The shape of a DC-AE network as frozen descriptors: what diffusers' AutoencoderDC config says. What is published is
in `variants`, the network itself in `model`. No torch in here.

Words such as block types and norms are those of that config, so nothing has to be translated.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

from .errors import OptionError, counted

__all__ = ["ACTS", "DEFAULTS", "MAX_STAGES", "MAX_WIDTH", "NORMS", "Architecture", "CoderSpec", "Stage"]

ACTS, NORMS = ("relu", "silu", "gelu", "mish"), ("rms_norm", "batch_norm")


# The fields of a config that say which network it is, with diffusers' defaults (AutoencoderDC.__init__).
DEFAULTS: dict[str, object] = {
    "in_channels": 3,
    "latent_channels": 32,
    "attention_head_dim": 32,
    **{f"{side}_block_types": "ResBlock" for side in ("encoder", "decoder")},
    **{f"{side}_block_out_channels": (128, 256, 512, 512, 1024, 1024) for side in ("encoder", "decoder")},
    "encoder_layers_per_block": (2, 2, 2, 3, 3, 3),
    "decoder_layers_per_block": (3, 3, 3, 3, 3, 3),
    **{f"{side}_qkv_multiscales": ((), (), (), (5,), (5,), (5,)) for side in ("encoder", "decoder")},
    "upsample_block_type": "pixel_shuffle",
    "downsample_block_type": "pixel_unshuffle",
    "decoder_norm_types": "rms_norm",
    "decoder_act_fns": "silu",
    "encoder_out_shortcut": True,
    "decoder_in_shortcut": True,
    "decoder_conv_act_fn": "relu",
}
MAX_STAGES, MAX_DEPTH, MAX_WIDTH, MAX_KERNEL = 12, 64, 16384, 63  # far beyond all that is published


@dataclass(frozen=True)
class Stage:
    """The blocks at one resolution. Stage 0 is at full resolution, each later one at half of the one before."""

    width: int  # channels
    depth: int  # blocks; a first stage of depth 0 means that the picture enters and leaves at half resolution
    block: str = "ResBlock"  # or "EfficientViTBlock": attention followed by a gated convolution. See `model.BLOCKS`
    qkv_multiscales: tuple[int, ...] = ()  # kernel sizes of the attention's extra multi-scale branches
    norm: str = "rms_norm"  # or "batch_norm"
    act: str = "silu"  # or another of ACTS
    head_dim: int = 32  # channels per attention head

    @property
    def essential(self) -> Stage:
        """Without what its blocks don't use: equal for stages that compute the same."""
        if not self.depth:
            return Stage(self.width, 0)
        if self.block == "ResBlock":
            return replace(self, qkv_multiscales=(), head_dim=32)
        return replace(self, act="silu") if self.block == "EfficientViTBlock" else self


@dataclass(frozen=True)
class CoderSpec:
    """An encoder or a decoder, its stages listed from full resolution down (a decoder runs them backwards)."""

    stages: tuple[Stage, ...]
    resample: str  # encoder: "pixel_unshuffle" or "Conv" (strided); decoder: "pixel_shuffle" or "interpolate" (nearest)
    shortcut: bool = True  # averaging (encoder out) or duplicating (decoder in) shortcut around the latent convolution
    conv_act: str = "relu"  # decoder only: activation before the last convolution

    @property
    def essential(self) -> CoderSpec:
        """Without what is not used, as `Stage.essential`."""
        stages = [stage.essential for stage in self.stages]
        if self.pixel_stage:
            stages[0] = Stage(1, 0)
        return replace(self, stages=tuple(stages))

    @property
    def pixel_stage(self) -> int:
        """The stage that touches the picture: 0, or 1 where the first stage is empty."""
        return 0 if self.stages and self.stages[0].depth else 1


@dataclass(frozen=True)
class Architecture:
    """An encoder and a decoder that belong together.

    Raises OptionError for numbers that can't go together.
    """

    latent_channels: int
    encoder: CoderSpec
    decoder: CoderSpec

    def __post_init__(self) -> None:
        if problems := [*self._problems()]:
            raise OptionError(f"{self} is impossible: {'; '.join(problems)}.")

    def __str__(self) -> str:
        return f"a DC-AE f{self.spatial_ratio}c{self.latent_channels}"

    def same_network(self, other: Architecture) -> bool:
        """Whether both compute the same from the same weights: fields that their blocks don't use may differ."""
        coders = ((self.encoder, other.encoder), (self.decoder, other.decoder))
        return self.latent_channels == other.latent_channels and all(a.essential == b.essential for a, b in coders)

    @property
    def spatial_ratio(self) -> int:
        """Pixels per latent pixel, along each side."""
        return 2 ** max(0, len(self.encoder.stages) - 1)

    @classmethod
    def from_config(cls, config: Mapping[str, object]) -> Architecture:
        """The network of a `config.json` of diffusers' AutoencoderDC; what it leaves out has diffusers' defaults.

        Raises OptionError, which names the field, for values that are not of such a config or can't go together.
        """
        fields = {name: _checked(name, config.get(name, default)) for name, default in DEFAULTS.items()}
        if fields["in_channels"] != 3:
            raise OptionError(f"in_channels is {fields['in_channels']}: needed is 3, red, green and blue.")
        coders: list[CoderSpec] = []
        for side, resample, shortcut in (
            ("encoder", "downsample_block_type", "encoder_out_shortcut"),
            ("decoder", "upsample_block_type", "decoder_in_shortcut"),
        ):
            widths = fields[f"{side}_block_out_channels"]
            decoding = side == "decoder"
            columns: dict[str, Sequence[Any]] = {
                "width": widths,
                "depth": fields[f"{side}_layers_per_block"],
                "block": _each(fields[f"{side}_block_types"], widths),
                "qkv_multiscales": fields[f"{side}_qkv_multiscales"],
                "norm": _each(fields["decoder_norm_types"] if decoding else "rms_norm", widths),
                "act": _each(fields["decoder_act_fns"] if decoding else "silu", widths),
            }
            if uneven := [name for name, column in columns.items() if len(column) != len(widths)]:
                stages = counted(len(widths), "width")
                raise OptionError(f"{side}: {stages}, but another number of {', '.join(uneven)}.")
            rows = [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]
            stages = tuple(Stage(**row, head_dim=fields["attention_head_dim"]) for row in rows)
            more = {"conv_act": fields["decoder_conv_act_fn"]} if decoding else {}
            coders.append(CoderSpec(stages, fields[resample], fields[shortcut], **more))
        return cls(fields["latent_channels"], *coders)

    def diffusers_config(self) -> dict[str, object]:
        """The `config.json` of diffusers' AutoencoderDC for this network, without a scaling factor."""
        config: dict[str, object] = {
            "_class_name": "AutoencoderDC",
            "in_channels": 3,
            "latent_channels": self.latent_channels,
            "attention_head_dim": self.encoder.stages[0].head_dim,
        }
        for side, coder in (("encoder", self.encoder), ("decoder", self.decoder)):
            config |= {
                f"{side}_block_types": [s.block for s in coder.stages],
                f"{side}_block_out_channels": [s.width for s in coder.stages],
                f"{side}_layers_per_block": [s.depth for s in coder.stages],
                f"{side}_qkv_multiscales": [list(s.qkv_multiscales) for s in coder.stages],
            }
        return config | {
            "downsample_block_type": self.encoder.resample,
            "upsample_block_type": self.decoder.resample,
            "decoder_norm_types": [s.norm for s in self.decoder.stages],
            "decoder_act_fns": [s.act for s in self.decoder.stages],
            "encoder_out_shortcut": self.encoder.shortcut,
            "decoder_in_shortcut": self.decoder.shortcut,
            "decoder_conv_act_fn": self.decoder.conv_act,
        }

    def _problems(self) -> Iterator[str]:
        for side, coder, resamples in (
            ("encoder", self.encoder, ("pixel_unshuffle", "Conv")),
            ("decoder", self.decoder, ("pixel_shuffle", "interpolate")),
        ):
            words = [(coder.resample, resamples), (coder.conv_act, ACTS)]
            words += [pair for stage in coder.stages for pair in ((stage.norm, NORMS), (stage.act, ACTS))]
            yield from (
                f"{side}: {word!r} is not one of {', '.join(known)}" for word, known in words if word not in known
            )
            if not coder.stages:
                yield f"{side}: it has no stages"
                return
            if len(coder.stages) == 1 and coder.pixel_stage:
                yield f"{side}: its only stage is empty"
                return
            if any(stage.depth == 0 for stage in coder.stages[1:-1]):
                yield f"{side}: only the first and the last stage may be empty"
            for stage in coder.stages:
                if stage.block == "EfficientViTBlock" and stage.depth and stage.width < stage.head_dim:
                    yield f"{side}: attention needs at least {stage.head_dim} channels, not {stage.width}"
                if even := [kernel for kernel in stage.qkv_multiscales if kernel % 2 == 0]:
                    yield f"{side}: kernels of qkv_multiscales are odd numbers, not {even[0]}"
        if len(self.encoder.stages) != len(self.decoder.stages):
            yield "encoder and decoder need as many stages as each other"
        for side, coder in (("encoder", self.encoder), ("decoder", self.decoder)):
            stages = coder.stages[coder.pixel_stage :]
            if coder.resample == "pixel_unshuffle":
                made = stages[0 if coder.pixel_stage else 1 :]  # by a resampling convolution
                wrong = (stage.width for stage in made if stage.width % 4)
                yield from (f"{side}: unshuffling needs {width} to be a multiple of 4" for width in wrong)
            for here, below in pairwise(stages):
                if 4 * here.width % below.width:
                    yield f"{side}: the shortcut needs four times {here.width} to be a multiple of {below.width}"
            if coder.shortcut and stages[-1].width % self.latent_channels:
                yield f"{side}: the shortcut needs {stages[-1].width} to be a multiple of {self.latent_channels}"


def _each(value: str | Sequence[Any], stages: Sequence[int]) -> Sequence[Any]:
    """One value for each stage."""
    return (value,) * len(stages) if isinstance(value, str) else value


def _checked(name: str, value: object) -> Any:
    """Return a config's value with tuples for lists. Raises OptionError where it is not of the type of the default."""
    default = DEFAULTS[name]
    if isinstance(value, (list, tuple)) and len(value) <= MAX_STAGES:
        value = tuple(tuple(v) if isinstance(v, (list, tuple)) else v for v in value)
    if _valid(name, value, default):
        return {"swish": "silu", "conv": "Conv"}.get(value, value) if isinstance(value, str) else value
    raise OptionError(f"{name} is {str(value)[:100]!r}: needed is something like {default!r}.")


def _valid(name: str, value: object, default: object) -> bool:
    if isinstance(default, str):  # one word, or one for each stage
        words = value if isinstance(value, tuple) and not name.endswith("block_type") else (value,)
        return all(isinstance(word, str) for word in words)
    if isinstance(default, bool):
        return isinstance(value, bool)
    if isinstance(default, int):
        return type(value) is int and 0 < value <= MAX_WIDTH
    if not isinstance(value, tuple):
        return False
    if name.endswith("multiscales"):
        kernels = [kernel for stage in value if isinstance(stage, tuple) for kernel in stage]
        return all(isinstance(s, tuple) for s in value) and all(type(k) is int and 0 < k <= MAX_KERNEL for k in kernels)
    low, high = (0, MAX_DEPTH) if name.endswith("layers_per_block") else (1, MAX_WIDTH)
    return all(type(number) is int and low <= number <= high for number in value)
