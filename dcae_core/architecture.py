"""The shape of a DC-AE network as frozen descriptors: what diffusers' AutoencoderDC config says. What is published is
in `variants`, the network itself in `model`. No torch in here.

Words such as block types and norms are those of that config, so nothing has to be translated.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise

from .errors import OptionError

__all__ = ["HEAD_DIM", "Architecture", "CoderSpec", "Stage"]

ACTS, NORMS = ("relu", "silu"), ("rms_norm", "batch_norm")
HEAD_DIM = 32  # channels per attention head, in every published network


@dataclass(frozen=True)
class Stage:
    """The blocks at one resolution. Stage 0 is at full resolution, each later one at half of the one before."""

    width: int  # channels
    depth: int  # blocks; a first stage of depth 0 means that the picture enters and leaves at half resolution
    block: str = "ResBlock"  # or "EfficientViTBlock": attention followed by a gated convolution. See `model.BLOCKS`
    qkv_multiscales: tuple[int, ...] = ()  # kernel sizes of the attention's extra multi-scale branches
    norm: str = "rms_norm"  # or "batch_norm"
    act: str = "silu"  # or "relu"


@dataclass(frozen=True)
class CoderSpec:
    """An encoder or a decoder, its stages listed from full resolution down (a decoder runs them backwards)."""

    stages: tuple[Stage, ...]
    resample: str  # encoder: "pixel_unshuffle" or "Conv" (strided); decoder: "pixel_shuffle" or "interpolate" (nearest)
    shortcut: bool = True  # averaging (encoder out) or duplicating (decoder in) shortcut around the latent convolution
    conv_act: str = "relu"  # decoder only: activation before the last convolution

    @property
    def pixel_stage(self) -> int:
        """The stage that touches the picture: 0, or 1 where the first stage is empty."""
        return 0 if self.stages and self.stages[0].depth else 1


@dataclass(frozen=True)
class Architecture:
    """An encoder and a decoder that belong together: equal for networks whose files have the same keys and shapes.

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

    @property
    def spatial_ratio(self) -> int:
        """Pixels per latent pixel, along each side."""
        return 2 ** max(0, len(self.encoder.stages) - 1)

    def diffusers_config(self) -> dict:
        """The `config.json` of diffusers' AutoencoderDC for this network, without a scaling factor."""
        config: dict = {
            "_class_name": "AutoencoderDC",
            "in_channels": 3,
            "latent_channels": self.latent_channels,
            "attention_head_dim": HEAD_DIM,
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
        if len(self.encoder.stages) != len(self.decoder.stages):
            yield "encoder and decoder need as many stages as each other"
        for side, coder in (("encoder", self.encoder), ("decoder", self.decoder)):
            stages = coder.stages[coder.pixel_stage :]
            if coder.resample == "pixel_unshuffle":
                wrong = (stage.width for stage in stages[1:] if stage.width % 4)
                yield from (f"{side}: unshuffling needs {width} to be a multiple of 4" for width in wrong)
            for here, below in pairwise(stages):
                if 4 * here.width % below.width:
                    yield f"{side}: the shortcut needs four times {here.width} to be a multiple of {below.width}"
            if coder.shortcut and stages[-1].width % self.latent_channels:
                yield f"{side}: the shortcut needs {stages[-1].width} to be a multiple of {self.latent_channels}"
