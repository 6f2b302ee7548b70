"""The rewrites change nothing but rounding: in fp64 the same numbers, in fp32 and narrower no worse ones."""

import pytest
import torch
from torch import nn

from dcae_core import DCAE, DEMO, VARIANTS, hub, images, model
from dcae_core.architecture import Stage
from dcae_core.compare.metrics import psnr
from dcae_core.engine.coder import InferenceAutoencoder
from dcae_core.engine.layers import LAYERS, Layer
from dcae_core.engine.layers.attention import AttentionLayer
from dcae_core.engine.layers.conv import Conv3x3Layer
from dcae_core.engine.rewrites import REWRITES
from dcae_core.weights.checkpoint import Checkpoint
from tests.core.helpers import photograph, randomised, relative_error

ONE_OF_EACH = ["dc-ae-f32c32-in-1.0", "dc-ae-f64c128-in-1.0", "dc-ae-f32c32-sana-1.0", "dc-ae-lite-f32c32-sana-1.1"]


def check(module: nn.Module, rewrites: tuple[str, ...], channels: int) -> Layer:
    """The layer that runs `module`, which in fp64 gives what it gave."""
    module = module.double()
    x = torch.randn(2, channels, 6, 10, dtype=torch.float64)
    with torch.no_grad():
        wanted = module(x)
        layer = LAYERS[type(module)](module, rewrites)
        got = layer(x.contiguous(memory_format=torch.channels_last))
        assert torch.equal(module(x), wanted)  # what a layer is made from stays as it is
    assert got.shape == wanted.shape
    assert relative_error(got, wanted) <= 1e-12
    return layer


def test_batch_norms_are_folded():
    block = randomised(lambda: model.ResBlock(Stage(64, 1, norm="batch_norm", act="relu")))
    assert isinstance(check(block, ("norms",), 64).norm, nn.Identity)


@pytest.mark.parametrize(
    ("inputs", "outputs", "resample"),
    [
        (64, 64, "pixel_shuffle"),
        (64, 32, "pixel_shuffle"),
        (64, 16, "pixel_shuffle"),
        (32, 64, "Conv"),
        (64, 64, "Conv"),
    ],
)
def test_shortcuts_are_folded(inputs, outputs, resample):
    kind = model.UpBlock if resample == "pixel_shuffle" else model.DownBlock
    assert not check(randomised(lambda: kind(inputs, outputs, resample)), ("shortcuts",), inputs).shortcut


@pytest.mark.parametrize(("inputs", "outputs", "shortcut"), [(64, 32, model.average), (32, 64, model.duplicate)])
@pytest.mark.parametrize("rewrites", [(), ("shortcuts",)])
def test_the_latents_shortcut_is_folded(inputs, outputs, shortcut, rewrites):
    conv = randomised(lambda: nn.Conv2d(inputs, outputs, 3, padding=1)).double()
    x = torch.randn(2, inputs, 6, 10, dtype=torch.float64)
    with torch.no_grad():
        layer = Conv3x3Layer(conv, rewrites, shortcut)
        assert (layer.shortcut is None) == bool(rewrites)
        assert relative_error(layer(x), conv(x) + shortcut(x, outputs)) <= 1e-12


@pytest.mark.parametrize("shortcut", [True, False])
@pytest.mark.parametrize("rewrites", [(), ("phases",), ("phases", "shortcuts")])
@pytest.mark.parametrize(("inputs", "outputs"), [(64, 64), (64, 32), (32, 64)])
def test_enlarging_and_convolving_is_four_small_convolutions(inputs, outputs, shortcut, rewrites):
    check(randomised(lambda: model.UpBlock(inputs, outputs, "interpolate", shortcut)), rewrites, inputs)


@pytest.mark.parametrize("scales", [(), (5,)])
def test_queries_keys_and_values_are_one_product(scales):
    # Attention works in fp32 whatever it is given.
    attention = randomised(lambda: model.LinearAttention(Stage(64, 1, "EfficientViTBlock", scales)))
    x = torch.randn(2, 64, 6, 10)
    with torch.no_grad():
        assert relative_error(AttentionLayer(attention, REWRITES)(x), attention(x)) <= 1e-5


@pytest.mark.parametrize("name", ONE_OF_EACH)
@pytest.mark.parametrize("rewrites", [(), *((r,) for r in REWRITES), REWRITES], ids="+".join)
def test_what_runs_is_the_reference(name, rewrites):
    variant = VARIANTS[name]
    reference = randomised(lambda: model.Autoencoder(variant.architecture))
    x = torch.rand(2, 3, variant.spatial_ratio, 2 * variant.spatial_ratio) * 2 - 1
    with torch.no_grad():
        z = reference.encoder(x)
        y = reference.decoder(z)
        running = InferenceAutoencoder(reference, rewrites)
        assert relative_error(running.encoder(x), z) <= 1e-5
        assert relative_error(running.decoder(z), y) <= 1e-5


@pytest.mark.parametrize(("dtype", "decibels"), [("bf16", 42), ("fp16", 55)])
def test_narrow_types_are_no_worse_than_the_reference_in_them(dtype, decibels, fp16_arithmetic):
    x = photograph(128, 96)
    state = Checkpoint(hub.bundled()).state(VARIANTS[DEMO].architecture)
    reference = model.Autoencoder(VARIANTS[DEMO].architecture).eval().requires_grad_(False)
    reference.load_state_dict(state)
    ae = DCAE.from_state_dict(state, DEMO, "cpu", dtype)
    z = reference.encoder(x)
    y = reference.decoder(z)
    errors = relative_error(ae.encode(x).float(), z), relative_error(ae.decode(z).float(), y)
    assert psnr(images.to_host(ae.decode(z)), images.to_host(y)) >= decibels
    reference.to(ae.dtype)
    own = relative_error(reference.encoder(x.to(ae.dtype)), z), relative_error(reference.decoder(z.to(ae.dtype)), y)
    assert errors[0] <= 1.1 * own[0]
    assert errors[1] <= 1.1 * own[1]
