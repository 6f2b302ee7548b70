"""Gradients of a streamed AutoencoderDC: diffusers' own, or recomputed."""

import pytest
import torch
from torch.nn import functional as F

from dcae_core import BudgetError
from dcae_core.engine.live_bytes import LiveBytes
from dcae_core.errors import OptionError
from dcae_core.integrations.diffusers import stream
from tests import tiny_models
from tests.core.integrations.streamed import same


def gradients(vae, x, z):
    """Of a loss on a picture and a latent, through the vae to them and to its weights."""
    x, z = x.clone().requires_grad_(), z.clone().requires_grad_()
    loss = vae.decode(z).sample.square().mean() + vae.encode(x).latent.square().mean() + z.square().mean()
    weights = [p for p in vae.parameters() if p.requires_grad]
    return loss, torch.autograd.grad(loss, [x, z, *weights])


@pytest.mark.parametrize("train_weights", [True, False])
@pytest.mark.parametrize("recompute", [True, False])
def test_gradients_are_those_of_diffusers(x, z, recompute, train_weights, caplog):
    theirs = tiny_models.autoencoder().requires_grad_(train_weights)
    ours = stream(tiny_models.autoencoder().requires_grad_(train_weights), recompute=recompute)
    wanted, wanted_gradients = gradients(theirs, x, z)
    loss, found = gradients(ours, x, z)
    assert (ours.streaming.last_plan is not None) == recompute
    assert ("gradients are on" in caplog.text) != recompute
    torch.testing.assert_close(loss, wanted, rtol=1e-5, atol=1e-5)
    assert len(found) == len(wanted_gradients)
    for one, other in zip(found, wanted_gradients, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4 * float(other.abs().max()))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_gradients_of_what_is_padded_and_converted(dtype):
    vae, other = stream(tiny_models.autoencoder(), recompute=True), tiny_models.autoencoder()
    given = [torch.randn(1, 3, 48, 40, generator=torch.Generator().manual_seed(2), dtype=dtype) for _ in range(2)]
    for x in given:
        x.requires_grad_()
    vae.encode(given[0]).latent.square().sum().backward()
    other.encode(F.pad(given[1].float(), (0, 24, 0, 16), mode="replicate")).latent.square().sum().backward()
    torch.testing.assert_close(given[0].grad, given[1].grad, rtol=1e-3, atol=1e-4)


def test_gradients_that_recompute_does_not_have(z, x):
    vae, other = stream(tiny_models.autoencoder(), recompute=True), tiny_models.autoencoder()
    given = z.clone().requires_grad_()
    with pytest.raises(OptionError, match="create_graph"):
        torch.autograd.grad(vae.decode(given).sample.mean(), given, create_graph=True)
    bad = x.clone().requires_grad_()
    with torch.no_grad():
        bad[0, 0, 0, 0] = float("inf")
    for one in (vae, other):
        one.encode(bad).latent.sum().backward()
    assert not bad.grad.isfinite().all()  # so that a GradScaler sees it


def test_gradients_within_a_budget(z, stock):
    vae = stream(tiny_models.autoencoder(), 1, recompute=True)
    z = torch.randn(1, 32, 8, 8, requires_grad=True)
    with pytest.raises(BudgetError) as error:
        vae.decode(z)
    vae.streaming.budget = error.value.needed
    (found,) = torch.autograd.grad(vae.decode(z).sample.square().mean(), z)
    assert vae.streaming.last_plan.strips > 1
    (wanted,) = torch.autograd.grad(stock.decode(z).sample.square().mean(), z)
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-7)


def test_going_back_holds_the_maps_between_blocks_only():
    """Not what each block makes inside: counted while it goes back, against diffusers' own."""
    peaks = []
    for recompute in (False, True):
        vae = stream(tiny_models.autoencoder(), recompute=recompute)
        z = torch.randn(1, 32, 8, 8)
        with torch.no_grad():
            vae.decode(z)  # so that the engine is there
        with LiveBytes([*vae.parameters(), *vae.streaming.coders["decode"].engine.parameters()]) as counted:
            vae.decode(z.requires_grad_()).sample.square().mean().backward()
        peaks.append(counted.peak)
    assert peaks[1] < 0.6 * peaks[0]


def test_a_step_of_training(x):
    """The weights change, and what is derived from them with them."""
    pair = [tiny_models.autoencoder().requires_grad_(True) for _ in range(2)]
    stream(pair[1], recompute=True)
    for vae in pair:
        optimiser = torch.optim.SGD(vae.parameters(), lr=1e-3)
        for _ in range(2):
            optimiser.zero_grad()
            (vae(x).sample - x).square().mean().backward()
            optimiser.step()
    same(pair[1], pair[0], x, pair[0].encode(x).latent.detach(), rtol=1e-3, atol=1e-3)
