"""Weights of a streamed AutoencoderDC that hooks keep elsewhere."""

import accelerate
import pytest
import torch
from diffusers.hooks import apply_group_offloading

from dcae_core.integrations.diffusers import stream, unstream
from tests import tiny_models
from tests.core.integrations.streamed import BOUND, same


@pytest.mark.parametrize("first", ["stream", "offload"])
def test_sequential_offload(stock, x, z, first):
    vae = tiny_models.autoencoder()
    for step in (first, "offload" if first == "stream" else "stream"):
        if step == "stream":
            stream(vae)
        else:
            accelerate.cpu_offload(vae, execution_device="cpu")
    assert all(p.is_meta for p in vae.parameters())
    same(vae, stock, x, z)
    assert vae.streaming.last_plan is not None and vae.streaming.held_bytes == 0
    torch.testing.assert_close(vae.encoder(x), stock.encoder(x), **BOUND)
    torch.testing.assert_close(vae.decoder(z), stock.decoder(z), **BOUND)
    assert all(p.is_meta for p in vae.parameters())
    accelerate.hooks.remove_hook_from_module(vae, recurse=True)
    same(vae, stock, x, z)
    assert torch.equal(unstream(vae).decode(z).sample, stock.decode(z).sample)


def test_unstream_while_offloaded(vae, stock, z):
    accelerate.cpu_offload(vae, execution_device="cpu")
    assert torch.equal(unstream(vae).decode(z).sample, stock.decode(z).sample)


@pytest.mark.parametrize("times", [1, 2])
def test_out_of_memory_while_weights_come(vae, stock, z, times, monkeypatch):
    """The first time they come again; else the error is that, and nothing is left half done."""
    accelerate.cpu_offload(vae, execution_device="cpu")
    hook, failures = vae.decoder.conv_in._hf_hook, []
    load = hook.pre_forward

    def fail(module, *args, **options):
        if len(failures) < times:
            failures.append(1)
            raise torch.OutOfMemoryError("CUDA out of memory")
        return load(module, *args, **options)

    monkeypatch.setattr(hook, "pre_forward", fail)
    if times == 2:
        with pytest.raises(torch.OutOfMemoryError):
            vae.decode(z)
    assert all(p.is_meta for p in vae.parameters())
    torch.testing.assert_close(vae.decode(z).sample, stock.decode(z).sample, **BOUND)


@pytest.mark.parametrize("to_disk", [True, False])
def test_group_offload(stock, x, z, to_disk, tmp_path):
    vae = stream(tiny_models.autoencoder())
    options = {"offload_type": "leaf_level"}
    if to_disk:
        options["offload_to_disk_path"] = str(tmp_path)
    try:
        apply_group_offloading(vae, onload_device=torch.device("cpu"), **options)
    except RuntimeError as error:
        if "Cannot access accelerator device" not in str(error):
            raise
        pytest.skip(f"this torch and diffusers offload groups with an accelerator only: {error}")
    same(vae, stock, x, z)
    assert vae.streaming.last_plan is not None and vae.streaming.held_bytes == 0
