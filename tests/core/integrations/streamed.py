"""What the tests of streamed AutoencoderDCs share."""

import torch

BOUND = {"rtol": 0, "atol": 1e-5}


def plans(vae, direction="decode"):
    """How many runs went through the engine, from here on: a list that grows."""
    seen, progress = [], vae.streaming.progress
    vae.streaming.progress = lambda done, total: seen.append(vae.streaming) if done == total else progress
    return seen


def same(vae, stock, x, z, **bound):
    bound = bound or BOUND
    with torch.no_grad():
        torch.testing.assert_close(vae.encode(x).latent, stock.encode(x).latent, **bound)
        torch.testing.assert_close(vae.decode(z).sample, stock.decode(z).sample, **bound)
