"""What several tests of the core share: random weights, the smallest plan, what is counted, photographs."""

from pathlib import Path

import numpy as np
import pytest
import skimage.data
import torch
from PIL import Image
from safetensors.torch import save_file

from dcae_core import DCAE, BudgetError, images, plan, taesana
from dcae_core.engine.coder import InferenceCoder
from dcae_core.engine.execute import run_plan
from dcae_core.engine.live_bytes import LiveBytes
from dcae_core.files import ASSETS


def randomised(make, seed: int = 0) -> torch.nn.Module:
    """`make()` with random weights of torch's default spread (but made quickly), and with norms, biases and running
    statistics away from their defaults, where mistakes would not show."""
    with torch.device("meta"):
        model = make()
    model.to_empty(device="cpu").eval()
    generator = torch.Generator().manual_seed(seed)
    for name, tensor in model.state_dict().items():
        if tensor.ndim > 1:
            bound = tensor[0].numel() ** -0.5
            tensor.uniform_(-bound, bound, generator=generator)
        elif tensor.ndim == 1:
            tensor.uniform_(0.75, 1.25, generator=generator)
            if "bias" in name:
                tensor.sub_(1)
        else:
            tensor.zero_()  # batch-norm counters
    return model


def diffusers_vae(config: dict, seed: int = 0) -> torch.nn.Module:
    """diffusers' AutoencoderDC of a config, with random weights."""
    from diffusers import AutoencoderDC  # which most tests do without

    config = {name: value for name, value in config.items() if not name.startswith("_")}
    return randomised(lambda: AutoencoderDC(**config), seed)


def coder_of(ae: DCAE, direction: str) -> InferenceCoder:
    return ae.model.encoder if direction == "encode" else ae.model.decoder


def least(variant, direction: str, height: int, width: int, dtype=torch.float32, batch: int = 1, **options) -> int:
    """The smallest budget that works."""
    with pytest.raises(BudgetError) as error:
        plan.make(variant.architecture, direction, height, width, batch, 1, dtype, **options)
    return error.value.needed


def streamed(ae: DCAE, direction: str, given: torch.Tensor, channels: int | None = None) -> torch.Tensor:
    """The result of streaming in the smallest strips there are, even where a whole run would take less."""
    scale = 1 if direction == "encode" else ae.spatial_ratio
    size = tuple(side * scale for side in given.shape[2:])
    options = {"whole": False, "channels": given.shape[1] if direction == "decode" else channels, "strict": False}
    made = plan.make(ae.variant.architecture, direction, *size, len(given), 1, ae.dtype, **options)
    assert not made.whole
    with torch.no_grad():
        return run_plan(coder_of(ae, direction), made, given)


def counted(ae: DCAE, made: plan.Plan) -> int:
    """Peak bytes of a run on meta tensors, input and output included."""
    coder = coder_of(ae, made.direction)
    with LiveBytes([*coder.parameters(), *coder.buffers()]) as count:
        if made.direction == "encode":
            x = torch.empty(made.batch, 3, made.height, made.width, device="meta", dtype=ae.dtype)
        else:
            x = torch.empty(made.batch, made.channels, *made.latent_size, device="meta", dtype=ae.dtype)
        with torch.no_grad():
            run_plan(coder, made, x)
    return count.peak


def relative_error(a: torch.Tensor, b: torch.Tensor) -> float:
    assert a.shape == b.shape
    return ((a - b).norm() / b.norm()).item()


def check_same(ae: DCAE, oracle) -> None:
    """Ours does what diffusers' AutoencoderDC does, whole and in strips."""
    generator = torch.Generator().manual_seed(0)  # not what the process has drawn before
    x = torch.rand(1, 3, 5 * ae.spatial_ratio, 3 * ae.spatial_ratio, generator=generator) * 2 - 1
    with torch.no_grad():
        z = oracle.encode(x).latent
        y = oracle.decode(z).sample
    for direction, given, wanted in (("encode", x, z), ("decode", z, y)):
        assert relative_error(getattr(ae, direction)(given), wanted) <= 1e-5
        assert relative_error(streamed(ae, direction, given), wanted) <= 1e-5


def photograph(height: int, width: int, left: int = 100) -> torch.Tensor:
    """A part of the bundled photograph, [1, 3, height, width] in [-1, 1]."""
    return images.from_host(images.read(ASSETS / "example.jpg"))[:, :, :height, left : left + width]


def square(name: str) -> torch.Tensor:
    """A centre square of one of scikit-image's pictures at 512x512, [1, 512, 512, 3] in [0, 1]."""
    picture = Image.fromarray(getattr(skimage.data, name)())
    side, (width, height) = min(picture.size), picture.size
    left, top = (width - side) // 2, (height - side) // 2
    picture = picture.crop((left, top, left + side, top + side))
    if side != 512:
        picture = picture.resize((512, 512), Image.Resampling.LANCZOS)
    return torch.from_numpy(np.asarray(picture).astype("float32") / 255)[None]


def taesana_files(folder: Path, *parts: str, suffix: str = ".safetensors", seed: int = 0) -> Path:
    """Write the files of a TAESANA of random weights, whose pictures have contrast."""
    folder.mkdir(parents=True, exist_ok=True)
    for part in parts or taesana.PARTS:
        state = randomised({"encoder": taesana.encoder, "decoder": taesana.decoder}[part], seed).state_dict()
        if part == "decoder":
            *_, weight, bias = state
            state[weight] *= 8
            state[bias] += 0.5
        file = folder / f"taesana_{part}{suffix}"
        torch.save(state, file) if suffix == ".pth" else save_file(dict(state), file)
    return folder
