"""Every variant that is published for diffusers, at full width, against diffusers' AutoencoderDC with the same random
weights. (Of 1.5 there are original keys only: test_adaptive.py.)"""

import pytest
import torch
from diffusers import AutoencoderDC

from dcae_core import DCAE, VARIANTS, checkpoint
from dcae_core.weights import keys
from dcae_core.weights.checkpoint import Checkpoint
from tests.core.helpers import diffusers_vae, streamed

PUBLISHED = [name for name, v in VARIANTS.items() if any(repo.endswith("-diffusers") for repo in v.repos)]
SIDES = {  # height, width: 64 to 384 pixels, none square
    32: [(64, 96), (160, 128), (384, 64)],
    64: [(64, 128), (192, 128), (384, 64)],
    128: [(128, 256), (384, 128)],
}
BOUND = 1e-5


def architectures() -> list[list[str]]:
    """Names of variants that share keys and shapes, so that their weights are made once."""
    groups: dict[tuple, list[str]] = {}
    for name in PUBLISHED:
        groups.setdefault(VARIANTS[name].architecture, []).append(name)
    return list(groups.values())


@pytest.fixture(scope="module", params=architectures(), ids=lambda names: names[-1])
def names(request) -> list[str]:
    return request.param


@pytest.fixture(scope="module")
def oracle(names) -> AutoencoderDC:
    return diffusers_vae(VARIANTS[names[0]].diffusers_config())


@pytest.fixture(scope="module")
def half(oracle) -> dict[str, torch.Tensor]:
    return {k: v.half() if v.is_floating_point() else v for k, v in oracle.state_dict().items()}


def relative_error(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    assert ours.shape == theirs.shape
    return ((ours - theirs).norm() / theirs.norm()).item()


@pytest.mark.slow
def test_encodes_and_decodes_alike(names, oracle):
    ratio = VARIANTS[names[0]].spatial_ratio
    for i, (height, width) in enumerate(SIDES.get(ratio, [(2 * ratio, 3 * ratio)])):
        torch.manual_seed(height)
        x = torch.rand(1, 3, height, width) * 2 - 1
        with torch.inference_mode():
            z = oracle.encode(x).latent
            y = oracle.decode(z).sample
        for name in names if i == 0 else names[:1]:  # others have the same network
            ae = DCAE.from_state_dict(oracle.state_dict(), variant=name, device="cpu", dtype="fp32")
            assert ae.variant.name == name
            errors = relative_error(ae.encode(x), z), relative_error(ae.decode(z), y)
            print(f"{name} {width}x{height}: encode {errors[0]:.1e}, decode {errors[1]:.1e}")
            assert max(errors) <= BOUND, (name, height, width, errors)


def test_streams_to_the_same_numbers(names, oracle):
    ae = DCAE.from_state_dict(oracle.state_dict(), variant=names[0], device="cpu", dtype="fp32")
    x = torch.rand(1, 3, 2 * ae.spatial_ratio, ae.spatial_ratio) * 2 - 1
    z = ae.encode(x)
    errors = relative_error(streamed(ae, "encode", x), z), relative_error(streamed(ae, "decode", z), ae.decode(z))
    print(f"{names[0]}: streamed against whole, encode {errors[0]:.1e}, decode {errors[1]:.1e}")
    assert max(errors) <= BOUND


@pytest.mark.parametrize("shards", [1, 2])
def test_loads_what_diffusers_writes(names, oracle, tmp_path, shards):
    size = sum(tensor.nbytes for tensor in oracle.state_dict().values())
    oracle.save_pretrained(tmp_path / names[0], max_shard_size=2 * size // shards**2)
    source = Checkpoint(tmp_path / names[0])
    assert (len(source.files) > 1) == (shards > 1)
    assert source.layout == "diffusers"
    assert names[0] in [v.name for v in source.fits]
    state = source.state(source.choose().architecture)
    theirs = oracle.state_dict()
    assert state.keys() == theirs.keys()
    assert all(torch.equal(state[k], theirs[k]) for k in theirs)


def test_what_we_write_in_the_original_layout_loads_in_diffusers(names, half, tmp_path):
    variant = VARIANTS[names[0]]
    file = checkpoint.save(tmp_path / "model.safetensors", half, variant, "original")
    checkpoint.save(tmp_path / "config", {"x": torch.zeros(1)}, variant, "diffusers")  # only for its config.json

    back = Checkpoint(file)
    assert back.layout == "original"
    assert back.choose() == variant
    ours = back.state(variant.architecture)
    assert ours.keys() == half.keys()
    assert all(torch.equal(ours[k], half[k]) for k in half)

    if variant.architecture.decoder.pixel_stage and not variant.architecture.encoder.pixel_stage:
        # diffusers' converter renames the decoder's last convolution by what the encoder's first looks like, which is
        # wrong for lite: its other keys are checked, and this one is put right by hand.
        theirs = converted_by_diffusers(file)
        for part in ("weight", "bias"):
            theirs[f"decoder.conv_out.conv.{part}"] = theirs.pop(f"decoder.conv_out.{part}")
    else:
        theirs = AutoencoderDC.from_single_file(
            str(file), config=str(tmp_path / "config"), torch_dtype=torch.float16, local_files_only=True
        ).state_dict()
    assert theirs.keys() == half.keys()
    assert all(torch.equal(theirs[k], half[k]) for k in half)


def converted_by_diffusers(file):
    from diffusers.loaders.single_file_utils import convert_autoencoder_dc_checkpoint_to_diffusers
    from safetensors.torch import load_file

    return convert_autoencoder_dc_checkpoint_to_diffusers(load_file(file))


def test_the_layouts_differ_for_every_variant():
    for variant in VARIANTS.values():
        ours, theirs = keys.expected(variant.architecture, "diffusers"), keys.expected(variant.architecture, "original")
        assert not set(ours) & set(theirs)
        assert sum(torch.Size(s).numel() for s in ours.values()) == sum(torch.Size(s).numel() for s in theirs.values())
