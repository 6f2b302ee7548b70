"""DC-AE 1.5: latents of the first channels only, against diffusers' AutoencoderDC with a part of its weights; and a
variant that no scaling factor is published for."""

import types

import pytest
import torch
from diffusers import AutoencoderDC
from safetensors import safe_open

from dcae_core import DCAE, DEMO, VARIANTS, LatentError, latents, model
from dcae_core.batch.encode import Options, open_job
from dcae_core.cli import main
from dcae_core.compare.codecs import from_dcae
from dcae_core.errors import OptionError
from dcae_core.integrations import diffusers as for_diffusers
from dcae_core.integrations.diffusers import StreamedAutoencoderDC
from dcae_core.weights import keys, recognise
from tests.core.helpers import diffusers_vae, relative_error, streamed

ADAPTIVE = {name: variant for name, variant in VARIANTS.items() if variant.adaptive}
UNSCALED = VARIANTS["dc-ae-f32c128-1.5"]


def cut(half: torch.nn.Module, conv: str, weight: torch.Tensor, bias: torch.Tensor) -> None:
    """Gives a convolution of diffusers other weights."""
    module = getattr(half, conv)
    module.weight, module.bias = (torch.nn.Parameter(t, requires_grad=False) for t in (weight, bias))
    module.out_channels, module.in_channels = weight.shape[:2]


@pytest.fixture(scope="module", params=ADAPTIVE)
def pair(request) -> tuple[AutoencoderDC, DCAE]:
    """diffusers' and ours at full width, with the same random weights, in the layout that is published."""
    variant = VARIANTS[request.param]
    oracle = diffusers_vae(variant.diffusers_config())
    ae = DCAE.from_state_dict(keys.to_original(oracle.state_dict(), variant.architecture), device="cpu", dtype="fp32")
    assert (ae.variant, ae.layout) == (variant, "original")  # nothing but the keys said so
    return oracle, ae


def test_any_number_of_channels_is_as_with_that_part_of_the_weights(pair):
    oracle, ae = pair
    out, into = (oracle.encoder.conv_out.weight, oracle.encoder.conv_out.bias), oracle.decoder.conv_in.weight
    x = torch.rand(1, 3, 64, 2 * ae.spatial_ratio) * 2 - 1
    for channels in (None, 48) if ae.variant is UNSCALED else (112,):
        cut(oracle.encoder, "conv_out", *(t[:channels] for t in out))
        cut(oracle.decoder, "conv_in", into[:, :channels], oracle.decoder.conv_in.bias)
        with torch.inference_mode():
            z = oracle.encode(x).latent
            y = oracle.decode(z).sample
        assert z.shape[1] == (channels or 128)
        if channels == 112:
            made = streamed(ae, "encode", x, channels), streamed(ae, "decode", z)
        else:
            made = ae.encode(x, latent_channels=channels), ae.decode(z)
        errors = relative_error(made[0], z), relative_error(made[1], y)
        print(f"{ae.variant.name}, {z.shape[1]} channels: encode {errors[0]:.1e}, decode {errors[1]:.1e}")
        assert max(errors) <= 1e-5


@pytest.mark.parametrize("name", ADAPTIVE)
def test_the_published_layout_is_told_from_all_others(name):
    expected = keys.expected(VARIANTS[name].architecture, "original")
    found = recognise.candidates(expected, "x")
    assert (found.layout, found.fits) == ("original", [VARIANTS[name]])
    assert expected["encoder.project_out.op_list.0.conv.weight"] == (128, 1024, 3, 3)
    assert expected["decoder.project_in.conv.weight"] == (1024, 128, 3, 3)


def test_what_the_plan_says_of_fewer_channels():
    ae = DCAE.empty("dc-ae-f64c128-1.5", device="meta", dtype="bf16")
    few, all_ = (ae.plan("decode", 512, 512, latent_channels=n) for n in (16, None))
    assert (few.channels, all_.channels) == (16, 128)
    assert few.peak_bytes < all_.peak_bytes
    assert few.weight_bytes == all_.weight_bytes
    z = ae.encode(torch.empty(1, 3, 128, 100, device="meta"), latent_channels=64)
    assert z.shape == (1, 64, 2, 2)
    assert ae.decode(z, (128, 100)).shape == (1, 3, 128, 100)
    assert ae.last_plan.channels == 64


@pytest.mark.parametrize(
    ("name", "channels", "says"),
    [
        (
            "dc-ae-f32c128-1.5",
            40,
            "can't run with 40 latent channels: it has 128, or its first 16, 32, 48, 64, 80, 96, 112",
        ),
        ("dc-ae-f32c128-1.5", 0, "can't run with 0 latent channels"),
        (DEMO, 16, "dc-ae-f32c32-demo can't run with 16 latent channels: it has 32 and takes no other number"),
    ],
)
def test_other_numbers_are_refused(name, channels, says):
    ae = DCAE.empty(name, device="meta")
    for run in (ae.encode, lambda x, **more: ae.plan("encode", 64, 64, **more)):
        with pytest.raises(OptionError, match=says):
            run(torch.empty(1, 3, 64, 64, device="meta"), latent_channels=channels)
    with pytest.raises(LatentError, match=f"{name} needs"):
        ae.decode(torch.empty(1, channels, 2, 2, device="meta"))


def test_a_number_that_all_have_may_be_said():
    ae = DCAE.empty(DEMO, device="meta")
    assert ae.encode(torch.empty(1, 3, 64, 64, device="meta"), latent_channels=32).shape == (1, 32, 2, 2)


def test_wrong_latents_are_told_what_would_fit():
    ae = DCAE.empty("dc-ae-f64c128-1.5", device="meta")
    needs = r"needs \[batch, 128 or 112 or 96 or 80 or 64 or 48 or 32 or 16, height/64, width/64\]"
    with pytest.raises(LatentError, match=needs):
        ae.decode(torch.empty(1, 512, 2, 2, device="meta"))
    with pytest.raises(LatentError, match=r"Latents of 48 channels belong to dc-ae-f32c128-1\.5, dc-ae-f64c128-1\.5"):
        DCAE.empty(DEMO, device="meta").decode(torch.empty(1, 48, 2, 2, device="meta"))


def test_diffusers_needs_a_scaling_factor(monkeypatch):
    """Pipelines work with the config's."""
    with torch.device("meta"):
        state = model.Autoencoder(UNSCALED.architecture).state_dict()
    file = types.SimpleNamespace(choose=lambda named: UNSCALED, fits=[UNSCALED], state=lambda of: state)
    file.path, file.layout = "a file", "original"
    monkeypatch.setattr(for_diffusers, "Checkpoint", lambda *given: file)
    with pytest.raises(OptionError, match=r"No scaling factor is published for dc-ae-f32c128-1\.5"):
        StreamedAutoencoderDC.from_single_file("a.safetensors")
    vae = StreamedAutoencoderDC.from_single_file("a.safetensors", scaling_factor=0.7)
    assert vae.config.scaling_factor == 0.7 and vae.streaming.variant is UNSCALED


def test_no_scaling_factor_is_invented(tmp_path, capsys):
    says = "No scaling factor is published for dc-ae-f32c128-1.5"
    ae, z = DCAE.empty(UNSCALED, device="meta"), torch.ones(1, 16, 2, 2)
    with pytest.raises(OptionError, match=says):
        _ = ae.scaling_factor
    assert UNSCALED.diffusers_config()["scaling_factor"] is None
    assert from_dcae(ae).scaling_factor is None
    with pytest.raises(OptionError, match=says):
        open_job(Options("pictures", str(tmp_path / "job"), UNSCALED.name, scaled=True), UNSCALED)
    with pytest.raises(OptionError, match=says):
        latents.write(tmp_path / "z.safetensors", z, UNSCALED, (64, 64), scaled=True)
    assert list(tmp_path.iterdir()) == []
    for factor in (0.0, -1.0, float("nan"), 1e7, 1e-9):
        with pytest.raises(OptionError, match="needed is a number from 1e-6 to 1e6"):
            UNSCALED.factor(factor)

    latents.write(tmp_path / "z.safetensors", z, UNSCALED, (64, 64), scaled=True, scaling_factor=0.5)
    with safe_open(tmp_path / "z.safetensors", "pt") as file:
        assert torch.equal(file.get_tensor("latents"), z / 2)
    assert torch.equal(latents.read(tmp_path / "z.safetensors").raw, z)
    latents.write(tmp_path / "raw.safetensors", z, UNSCALED, (64, 64))
    found = latents.read(tmp_path / "raw.safetensors")
    assert (found.variant, found.raw.shape) == (UNSCALED, z.shape)
    assert main(["variants", "--cache-dir", str(tmp_path)]) == 0
    (line,) = (line for line in capsys.readouterr().out.splitlines() if line.startswith(UNSCALED.name))
    assert line.split()[1:4] == ["32", "128", "-"]
    assert VARIANTS["dc-ae-f64c128-1.5"].scaling_factor == 0.5935
