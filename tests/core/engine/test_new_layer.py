"""A new layer is a class of the reference network, with its name in `model.BLOCKS`, and a class that runs it. One is
added here, as CONTRIBUTING.md says: everything else follows."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from dcae_core import DCAE, VARIANTS, Variant, model, plan
from dcae_core.architecture import Architecture, CoderSpec, Stage
from dcae_core.engine.layers import LAYERS, Layer
from dcae_core.errors import OptionError
from dcae_core.model import Autoencoder
from tests.core.helpers import counted, least, randomised, relative_error, streamed


# What would be written into dcae_core/model.py:
class DepthwiseBlock(nn.Module):
    """A 5x5 depthwise convolution, and the input, which is added."""

    def __init__(self, stage: Stage):
        super().__init__()
        self.conv = nn.Conv2d(stage.width, stage.width, 5, padding=2, groups=stage.width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.conv(x)


# And into a file of dcae_core/engine/layers:
class DepthwiseLayer(Layer):
    above = below = 2

    def __init__(self, block: DepthwiseBlock, rewrites):
        super().__init__()
        self.conv, self.channels = block.conv, block.conv.in_channels

    def run(self, window, x, out, pad):
        y = F.conv2d(window, self.conv.weight, self.conv.bias, padding=(pad, 2), groups=self.channels)
        return torch.add(y, x, out=y if out is None else out)

    def scratch(self, rows, width, target):
        return rows * width * self.channels * target.size


STAGES = tuple(Stage(64, 1, block) for block in ("ResBlock", "DepthwiseBlock", "EfficientViTBlock", "DepthwiseBlock"))
VARIANT = Variant(
    "dc-ae-f8c32-depthwise", Architecture(32, CoderSpec(STAGES, "Conv"), CoderSpec(STAGES, "interpolate")), None
)


@pytest.fixture(autouse=True)
def added(monkeypatch) -> None:
    monkeypatch.setitem(model.BLOCKS, "DepthwiseBlock", DepthwiseBlock)
    monkeypatch.setitem(LAYERS, DepthwiseBlock, DepthwiseLayer)


def test_it_runs_whole_and_in_strips(monkeypatch):
    reference = randomised(lambda: Autoencoder(VARIANT.architecture))
    monkeypatch.setitem(VARIANTS, VARIANT.name, VARIANT)
    ae = DCAE.from_state_dict(dict(reference.state_dict()), VARIANT, "cpu", "fp32")
    x = torch.rand(1, 3, 264, 72) * 2 - 1
    with torch.no_grad():
        z = reference.encoder(x)
        y = reference.decoder(z)
    assert relative_error(ae.encode(x), z) <= 1e-5
    assert relative_error(streamed(ae, "encode", x), z) <= 1e-5
    assert relative_error(streamed(ae, "decode", z), y) <= 1e-5


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
@pytest.mark.parametrize("direction", plan.DIRECTIONS)
def test_its_memory_is_planned(direction, dtype):
    ae = DCAE.empty(VARIANT, device="meta", dtype=dtype)
    low = least(VARIANT, direction, 264, 72, ae.dtype)
    for budget in (None, low, 2 * low):
        made = plan.make(VARIANT.architecture, direction, 264, 72, 1, budget, ae.dtype)
        assert 0.85 * made.peak_bytes <= counted(ae, made) <= made.peak_bytes <= (budget or made.peak_bytes)


def test_a_block_without_a_layer_is_not_left_out(monkeypatch):
    monkeypatch.delitem(LAYERS, DepthwiseBlock)
    with pytest.raises(OptionError, match="No layer of the engine runs DepthwiseBlock"):
        DCAE.empty(VARIANT, device="meta")
