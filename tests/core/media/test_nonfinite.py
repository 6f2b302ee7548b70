"""Numbers that are not finite raise an error with their cause, in every dtype, whole and in strips."""

import pytest
import torch
from safetensors.torch import save_file

from dcae_core import DCAE, DEMO, VARIANTS, CheckpointError, DCAEError, ImageError, LatentError, images, latents
from dcae_core.cli import main
from dcae_core.media.nonfinite import describe_nonfinite, is_finite
from dcae_core.weights.checkpoint import Checkpoint

NAN, INF = float("nan"), float("inf")
DTYPES = ("fp32", "bf16", "fp16")


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16, torch.float8_e5m2])
def test_one_number_among_many_is_seen(dtype):
    x = torch.rand(3, 70, 90).to(dtype)
    assert is_finite(x)
    assert is_finite((x.float() * 3000 if dtype != torch.float8_e5m2 else x).to(dtype)), "though their sum overflows"
    for number in (NAN, INF, -INF):
        bad = x.clone()
        bad[1, 2, 3] = number
        assert not is_finite(bad)
        assert describe_nonfinite(bad) == "1 of 18900 NaN or infinite, the first at [1, 2, 3]"
    both = x.clone()
    both[0, 0, 0], both[2, 69, 89] = INF, -INF
    assert not is_finite(both)


def test_what_is_always_finite():
    assert is_finite(torch.zeros(3, dtype=torch.int64))
    assert is_finite(torch.empty(3, device="meta"))
    assert describe_nonfinite(torch.tensor(NAN)) == "1 of 1 NaN or infinite, the first at [0]"


@pytest.fixture(params=DTYPES)
def ae(request, small_state) -> DCAE:
    return DCAE.from_state_dict(small_state, device="cpu", dtype=request.param)


def least(ae: DCAE, direction: str, height: int, width: int, batch: int) -> int:
    with pytest.raises(DCAEError) as error:
        ae.plan(direction, height, width, batch, 1)
    return error.value.needed


@pytest.mark.parametrize("whole", [True, False])
@pytest.mark.parametrize("as_uint8", [True, False])
def test_a_latent_that_is_not_finite(ae, whole, as_uint8):
    """In bytes it could not be seen."""
    z = torch.zeros(2, 32, 3, 2)
    z[1, 4, 2, 1] = NAN
    budget = None if whole else least(ae, "decode", 96, 64, 2)
    with pytest.raises(LatentError, match=r"1 of 384 NaN or infinite, the first at \[1, 4, 2, 1\]"):
        ae.decode(z, budget=budget, as_uint8=as_uint8)
    assert ae.decode(torch.zeros_like(z), budget=budget, as_uint8=as_uint8) is not None


@pytest.mark.parametrize("number", [NAN, INF])
def test_a_picture_that_is_not_finite(ae, number):
    x = torch.zeros(1, 3, 64, 64)
    x[0, 2, 10, 20] = number
    with pytest.raises(ImageError, match=r"1 of 12288 NaN or infinite, the first at \[0, 2, 10, 20\]"):
        ae.encode(x)
    assert ae.encode(torch.zeros_like(x)).isfinite().all()


def test_weights_in_a_file(tmp_path, small_state, capsys):
    path = tmp_path / "x.safetensors"
    bad = small_state["decoder.conv_in.weight"].clone()
    bad[0, 0, 0, 1] = -INF
    save_file({**small_state, "decoder.conv_in.weight": bad}, path)
    words = r"x.safetensors: the weights decoder.conv_in.weight are not finite \(1 of 36864 "
    with pytest.raises(CheckpointError, match=words):
        DCAE.from_file(path, device="cpu")
    assert Checkpoint(path).choose().name == DEMO, "to look at it is no reason to read it"
    assert main(["convert", str(path), str(tmp_path / "y.safetensors"), "--to", "original"]) == 1
    assert "are not finite" in capsys.readouterr().err
    assert not (tmp_path / "y.safetensors").exists()


def test_weights_that_are_large_and_finite_load(tmp_path, small_state):
    huge = torch.full_like(small_state["decoder.conv_in.bias"], 3e38)  # their sum is infinite
    save_file({**small_state, "decoder.conv_in.bias": huge}, tmp_path / "x.safetensors")
    assert DCAE.from_file(tmp_path / "x.safetensors", device="cpu", dtype="fp32")


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("as_uint8", [True, False])
def test_weights_that_came_some_other_way(small_state, dtype, as_uint8):
    ae = DCAE.from_state_dict({k: t.clone() for k, t in small_state.items()}, device="cpu", dtype=dtype)
    with torch.no_grad():
        name, weights = next((n, w) for n, w in ae.model.decoder.named_parameters() if w.ndim == 4)
        weights[0, 0, 0, 0] = NAN
    with pytest.raises(CheckpointError, match=f"The weights {name} are not finite in .*1 of"):
        ae.decode(torch.zeros(1, 32, 2, 2), as_uint8=as_uint8)
    assert ae.encode(torch.zeros(1, 3, 64, 64)).isfinite().all(), "the encoder has none"
    assert {p.dtype for p in ae.model.parameters()} == {ae.dtype}


def test_weights_that_fp16_can_not_hold(tmp_path, small_state, capsys):
    large = {**small_state, "decoder.conv_in.weight": small_state["decoder.conv_in.weight"] * 1e7}
    with pytest.raises(CheckpointError, match=r"not finite in float16.*too large for this dtype. Use bf16 or fp32"):
        DCAE.from_state_dict(dict(large), device="cpu", dtype="fp16").decode(torch.zeros(1, 32, 2, 2))
    assert DCAE.from_state_dict(dict(large), device="cpu", dtype="bf16").decode(torch.zeros(1, 32, 2, 2)) is not None
    save_file(large, tmp_path / "x.safetensors")
    arguments = [str(tmp_path / "x.safetensors"), str(tmp_path / "y.safetensors"), "--to", "diffusers"]
    assert main(["convert", *arguments, "--dtype", "fp16"]) == 1
    assert "decoder.conv_in.weight holds numbers that fp16 can't" in capsys.readouterr().err
    assert main(["convert", *arguments, "--dtype", "bf16"]) == 0


def test_numbers_in_between_that_overflow_fp32(small_state):
    """Weights and input are finite: the result is still no picture, and is not given out as one."""
    hot = {k: t * 1e18 if t.ndim == 4 and k.startswith("decoder.") else t for k, t in small_state.items()}
    ae = DCAE.from_state_dict(hot, device="cpu", dtype="fp32")
    for as_uint8 in (False, True):
        with pytest.raises(DCAEError, match="not finite, although weights and input are"):
            ae.decode(torch.rand(1, 32, 2, 2) * 1e30, as_uint8=as_uint8)


def test_latents_that_overflow_are_reported_with_their_file(tmp_path, capsys):
    for name in ("good", "large"):
        z = torch.full((1, 32, 2, 2), 3e38 if name == "large" else 0.1)
        latents.write(tmp_path / f"{name}.safetensors", z, VARIANTS[DEMO], (64, 64))
    files = [str(tmp_path / f"{name}.safetensors") for name in ("good", "large")]
    assert main(["decode", *files, "-o", str(tmp_path / "out"), "--device", "cpu", "--dtype", "fp32"]) == 1
    error = capsys.readouterr().err
    assert "large.safetensors: The result is not finite" in error and "good" not in error.split("dcae: ")[1]


def test_bytes_hide_nothing():
    x = torch.zeros(1, 3, 600, 2)
    x[0, 1, 599, 1] = NAN
    with pytest.raises(DCAEError, match="not finite"):
        images.to_uint8(x)


def test_fp16_that_overflows_is_still_done_again_in_bytes(small_state, caplog, fp16_arithmetic):
    hot = {**small_state, "decoder.conv_in.weight": small_state["decoder.conv_in.weight"] * 3e4}
    ae, wide = (DCAE.from_state_dict(dict(hot), device="cpu", dtype=dtype) for dtype in ("fp16", "fp32"))
    z = torch.rand(1, 32, 2, 2) * 300
    decoded = ae.decode(z, as_uint8=True)
    assert "overflowed in fp16" in caplog.text
    assert decoded.dtype == torch.uint8 and ae.dtype == torch.float16
    assert (decoded.float() - wide.decode(z, as_uint8=True).float()).abs().mean() < 8
    assert VARIANTS[DEMO].name == ae.variant.name
