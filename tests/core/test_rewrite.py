"""The rewrites change nothing but rounding: in fp64 the same numbers, in fp32 and narrower no worse ones."""

import pytest
import torch
from torch import nn

from dcae_core import DCAE, DEMO, VARIANTS, hub, images, model
from dcae_core.compare.metrics import psnr
from dcae_core.engine import coder as fast
from dcae_core.engine import rewrites as rewrite
from dcae_core.variants import Stage
from dcae_core.weights.checkpoint import Checkpoint

from .conftest import randomised
from .test_plan_and_stream import photograph, relative_error

ONE_OF_EACH = ["dc-ae-f32c32-in-1.0", "dc-ae-f64c128-in-1.0", "dc-ae-f32c32-sana-1.0", "dc-ae-lite-f32c32-sana-1.1"]


def check(module: nn.Module, change, channels: int) -> None:
    """`change(module)`, a function or module, gives in fp64 what `module` gave."""
    module = module.double()
    x = torch.randn(2, channels, 6, 10, dtype=torch.float64)
    with torch.no_grad():
        wanted = module(x)
        got = change(module)(x.contiguous(memory_format=torch.channels_last))
    assert got.shape == wanted.shape
    assert relative_error(got, wanted) <= 1e-12


def in_place(rewriting, switched: str):
    def change(module):
        rewriting(module)
        assert isinstance(module.norm, nn.Identity) if switched == "norm" else not module.shortcut
        return module

    return change


def test_batch_norms_are_folded():
    block = randomised(lambda: model.ResBlock(Stage(64, 1, norm="batch", act="relu")))
    check(block, in_place(rewrite.fold_norm, "norm"), 64)


@pytest.mark.parametrize(
    ("inputs", "outputs", "resample"),
    [(64, 64, "shuffle"), (64, 32, "shuffle"), (64, 16, "shuffle"), (32, 64, "conv"), (64, 64, "conv")],
)
def test_shortcuts_are_folded(inputs, outputs, resample):
    kind = model.Up if resample == "shuffle" else model.Down
    check(randomised(lambda: kind(inputs, outputs, resample)), in_place(rewrite.fold_shortcut, "shortcut"), inputs)


@pytest.mark.parametrize("shortcut", [True, False])
@pytest.mark.parametrize("rewrites", [(), ("phases",), ("phases", "shortcuts")])
@pytest.mark.parametrize(("inputs", "outputs"), [(64, 64), (64, 32), (32, 64)])
def test_enlarging_and_convolving_is_four_small_convolutions(inputs, outputs, shortcut, rewrites):
    up = randomised(lambda: model.Up(inputs, outputs, "interpolate", shortcut))
    check(up, lambda up: fast.Up(up, rewrites), inputs)


@pytest.mark.parametrize("scales", [(), (5,)])
def test_queries_keys_and_values_are_one_product(scales):
    # Attention works in fp32 whatever it is given.
    attention = randomised(lambda: model.LinearAttention(Stage(64, 1, "vit", scales)))
    x = torch.randn(2, 64, 6, 10)
    with torch.no_grad():
        wanted = attention(x)
        assert relative_error(fast.Attention(attention)(x), wanted) <= 1e-5


@pytest.mark.parametrize("name", ONE_OF_EACH)
@pytest.mark.parametrize("rewrites", [(), *((r,) for r in rewrite.REWRITES), rewrite.REWRITES], ids="+".join)
def test_what_runs_is_the_reference(name, rewrites):
    variant = VARIANTS[name]
    reference = randomised(lambda: model.Autoencoder(variant))
    x = torch.rand(2, 3, variant.spatial_ratio, 2 * variant.spatial_ratio) * 2 - 1
    with torch.no_grad():
        z = reference.encoder(x)
        y = reference.decoder(z)
        running = fast.Autoencoder(reference, rewrites)
        assert relative_error(running.encoder(x), z) <= 1e-5
        assert relative_error(running.decoder(z), y) <= 1e-5


@pytest.mark.parametrize(("dtype", "decibels"), [("bf16", 42), ("fp16", 55)])
def test_narrow_types_are_no_worse_than_the_reference_in_them(dtype, decibels):
    x = photograph(128, 96)
    state = Checkpoint(hub.bundled()).state(VARIANTS[DEMO])
    reference = model.Autoencoder(VARIANTS[DEMO]).eval().requires_grad_(False)
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
