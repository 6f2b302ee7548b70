import copy
import threading
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from dcae_core import DCAE, DEMO, VARIANTS, BudgetError, CheckpointError, DownloadError, ImageError, LatentError, images
from dcae_core.engine import devices, execute
from dcae_core.errors import OptionError
from dcae_core.media.sizes import Fit


@pytest.fixture
def ae(small_state) -> DCAE:
    return DCAE.from_state_dict(small_state, device="cpu", dtype="fp32")


@pytest.mark.parametrize(("height", "width"), [(32, 32), (33, 64), (1, 1), (31, 200), (96, 65)])
def test_any_size_comes_back_at_its_size(ae, height, width):
    x = torch.rand(2, 3, height, width) * 2 - 1
    z = ae.encode(x)
    assert z.shape == (2, 32, -(-height // 32), -(-width // 32))
    assert ae.decode(z, (height, width)).shape == x.shape


def test_padding_repeats_the_edge(ae):
    x = torch.rand(1, 3, 40, 50) * 2 - 1
    padded = torch.nn.functional.pad(x, (0, 14, 0, 24), mode="replicate")
    assert torch.equal(ae.encode(x), ae.encode(padded))


@pytest.mark.parametrize("whole", [True, False])
@pytest.mark.parametrize("dtype", ["fp32", "fp16"])
def test_pictures_in_bytes(small_state, whole, dtype, fp16_arithmetic):
    ae = DCAE.from_state_dict(small_state, device="cpu", dtype=dtype)
    x = torch.randint(256, (2, 3, 130, 95), dtype=torch.uint8)
    budget = {d: None if whole else _least(ae, d, x.shape) for d in ("encode", "decode")}
    as_floats = ae.encode(x.float() / 127.5 - 1, budget["encode"])
    z = ae.encode(x, budget["encode"])
    assert torch.allclose(z.float(), as_floats.float(), atol=2e-5 if dtype == "fp32" else 1e-2)
    floats = ae.decode(z, (130, 95), budget["decode"])
    made = ae.decode(z, (130, 95), budget["decode"], as_uint8=True)
    assert made.dtype == torch.uint8
    assert torch.equal(made, ((floats.float().clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8))


def _least(ae: DCAE, direction: str, shape: torch.Size) -> int:
    with pytest.raises(BudgetError) as error:
        ae.plan(direction, *shape[2:], len(shape), 1)
    return error.value.needed


def test_copies_run_too(ae):
    x = torch.rand(1, 3, 32, 32)
    assert torch.equal(copy.deepcopy(ae).encode(x), ae.encode(x))


def test_two_threads_while_one_overflows(small_state, fp16_arithmetic):
    """fp16 that overflows is done again with the weights in fp32: another run must not meet them under way."""
    ae = DCAE.from_state_dict(small_state, device="cpu", dtype="fp16")
    x = torch.rand(1, 3, 64, 64)
    right, failed = ae.encode(x), []

    def steady():
        for _ in range(20):
            z = ae.encode(x)
            if z.dtype != torch.float16 or not torch.equal(z, right):
                failed.append(z)

    other = threading.Thread(target=steady)
    other.start()
    for _ in range(10):
        assert ae.encode(x * 60000).dtype == torch.float32
    other.join()
    assert not failed


def test_a_batch_is_its_pictures(ae):
    x = torch.rand(3, 3, 64, 96) * 2 - 1
    together, alone = ae.encode(x), torch.cat([ae.encode(one[None]) for one in x])
    assert torch.allclose(together, alone, atol=1e-5)


def test_facts(ae):
    assert (ae.spatial_ratio, ae.latent_channels, ae.variant.name) == (32, 32, DEMO)
    assert ae.scaling_factor == VARIANTS[DEMO].scaling_factor
    for name, ratio, channels in (("dc-ae-f64c128-in-1.0", 64, 128), ("dc-ae-f128c512-mix-1.0", 128, 512)):
        meta = DCAE.empty(name, device="meta", dtype="bf16")
        assert (meta.spatial_ratio, meta.latent_channels, meta.dtype) == (ratio, channels, torch.bfloat16)
        z = meta.encode(torch.empty(1, 3, 256, 384, device="meta"))
        assert z.shape == (1, channels, 256 // ratio, 384 // ratio)
        assert meta.decode(z).shape == (1, 3, 256, 384)


def test_empty_on_the_cpu_takes_weights(small_state):
    ae, loaded = DCAE.empty(DEMO, "cpu", "fp32"), DCAE.from_state_dict(small_state, device="cpu", dtype="fp32")
    ae.model.load_state_dict(loaded.model.state_dict())
    x = torch.rand(1, 3, 32, 32)
    assert torch.equal(ae.encode(x), loaded.encode(x))


@pytest.mark.parametrize("shape", [(3, 64, 64), (1, 4, 64, 64), (1, 64, 64, 3), (1, 3, 0, 64), (0, 3, 64, 64)])
def test_pictures_of_the_wrong_shape_are_refused(ae, shape):
    with pytest.raises(ImageError):
        ae.encode(torch.zeros(shape))


@pytest.mark.parametrize(
    ("shape", "hint"),
    [((1, 4, 8, 8), "Stable Diffusion"), ((1, 16, 8, 8), "Flux"), ((1, 128, 4, 4), "f64c128"), ((32, 8, 8), "needs")],
)
def test_latents_of_another_model_are_refused(ae, shape, hint):
    with pytest.raises(LatentError, match=hint):
        ae.decode(torch.zeros(shape))


def test_strings_that_are_paths(tmp_path, small_state, monkeypatch):
    with pytest.raises(CheckpointError, match="There is no file"):
        DCAE(str(tmp_path / "absent.ckpt"))
    save_file(small_state, tmp_path / "x.safetensors")
    assert DCAE(str(tmp_path / "x.safetensors"), device="cpu", dtype="fp32").variant.name == DEMO
    monkeypatch.chdir(tmp_path)
    Path("dc-ae-f32c32-demo").mkdir()  # an empty folder that happens to have a variant's name
    assert DCAE("dc-ae-f32c32-demo", device="cpu").variant.name == DEMO


@pytest.mark.parametrize("option", [{"dtype": "float16"}, {"device": "nonsense"}])
def test_options_that_can_not_be(option):
    with pytest.raises(OptionError):
        DCAE(DEMO, **option)


def test_by_name_it_is_local_first_and_never_downloads_unasked(tmp_path):
    ae = DCAE(DEMO, device="cpu")
    assert ae.variant.name == DEMO
    with pytest.raises(DownloadError, match=r"download=True.*dcae download dc-ae-f32c32-mix-1.0"):
        DCAE(cache_dir=tmp_path)


@pytest.mark.parametrize("dtype", ["bf16", "fp16"])
def test_narrow_types_stay_close(dtype):
    x = images.from_host(images.read(Path(__file__).parents[2] / "dcae_core" / "assets" / "example.jpg"))
    x = x[:, :, 200:264, 400:496]  # small: CPUs without bf16 instructions are very slow at it
    wide, narrow = DCAE(DEMO, device="cpu", dtype="fp32"), DCAE(DEMO, device="cpu", dtype=dtype)
    z = wide.encode(x)
    assert ((narrow.encode(x).float() - z).norm() / z.norm()).item() < 0.05
    difference = (narrow.decode(z).float() - wide.decode(z)).abs().mean().item()
    assert difference < 0.02  # of a range of 2


def test_fp16_runs_in_fp32_where_the_cpu_lacks_it(small_state, monkeypatch, caplog):
    """fp16 is emulated there, an order of magnitude slower than fp32. Weights stay in fp16, and so does the result."""
    monkeypatch.setattr(devices, "_cpu_has_fp16", lambda: False)
    execute._warn_of_fp32.cache_clear()
    narrow = DCAE.from_state_dict(dict(small_state), device="cpu", dtype="fp16")
    rounded = {name: tensor.half().float() for name, tensor in narrow.model.state_dict().items()}
    wide = DCAE.from_state_dict(dict(small_state), device="cpu", dtype="fp32")
    wide.model.load_state_dict(rounded)
    inputs = {"encode": torch.rand(1, 3, 96, 64) * 2 - 1, "decode": torch.randn(1, 32, 3, 2)}
    for direction, x in inputs.items():
        result = getattr(narrow, direction)(x)
        assert result.dtype == torch.float16
        assert torch.equal(result, getattr(wide, direction)(x).half())
        assert narrow.last_plan == wide.last_plan == narrow.plan(direction, 96, 64)
    assert {p.dtype for p in narrow.model.parameters()} == {torch.float16}
    assert caplog.text.count("This CPU has no fp16 arithmetic") == 1


def test_fp16_that_overflows_is_done_again_in_fp32(small_state, caplog, fp16_arithmetic):
    hot = dict(small_state)
    for key in ("encoder.conv_in.conv.weight", "decoder.conv_in.weight"):
        hot[key] = hot[key] * 3e4
    x = torch.rand(1, 3, 64, 64) * 2 - 1
    narrow = DCAE.from_state_dict(hot, device="cpu", dtype="fp16")
    z = narrow.encode(x * 30)
    assert z.isfinite().all()
    assert "overflowed in fp16" in caplog.text
    assert narrow.dtype == torch.float16
    caplog.clear()
    assert narrow.decode(z * 30).isfinite().all()
    assert "overflowed in fp16" in caplog.text
    assert {p.dtype for p in narrow.model.parameters()} == {torch.float16}


def test_fit():
    assert Fit(100, 65, 32).latent == (4, 3)
    assert Fit(100, 65, 32).padded == (128, 96)
    assert Fit(100, 65, 32).true == (100, 65)
    crop = Fit(100, 65, 32, "crop")
    assert (crop.latent, crop.true, crop.offset) == ((3, 2), (96, 64), (2, 0))
    with pytest.raises(ImageError, match="smaller than one latent pixel of 32x32"):
        Fit(31, 500, 32, "crop")
    with pytest.raises(ImageError, match="no pixels"):
        Fit(0, 500, 32)


def test_a_name_and_another_variant():
    with pytest.raises(OptionError, match=f"{DEMO} is a name, and variant says dc-ae-f32c32-in-1.0"):
        DCAE(DEMO, device="cpu", variant="dc-ae-f32c32-in-1.0")
    assert DCAE(DEMO, device="cpu", variant=DEMO).variant.name == DEMO


def test_from_pretrained_has_diffusers_names_for_arguments(tmp_path):
    for options in ({"torch_dtype": torch.bfloat16}, {"dtype": "bf16"}):
        ae = DCAE.from_pretrained(DEMO, device="cpu", local_files_only=True, **options)
        assert ae.dtype == torch.bfloat16
    with pytest.raises(DownloadError, match="dcae download"):
        DCAE.from_pretrained("dc-ae-f32c32-in-1.0", local_files_only=True, cache_dir=tmp_path)


def test_repr_and_to():
    ae = DCAE(DEMO, "cpu", "fp32")
    assert repr(ae) == f"DCAE({DEMO}, cpu, float32, from {ae.path})" and ae.path.is_file()
    assert repr(DCAE.empty(DEMO, "meta", "bf16")) == f"DCAE({DEMO}, meta, bfloat16)"
    assert ae.to(torch.bfloat16).dtype == torch.bfloat16 and ae.to("cpu", "fp32").dtype == torch.float32
    for missing in ("no such device", "xpu"):
        with pytest.raises(OptionError, match=r"can't be used here: .* Use cpu\."):
            ae.to(missing)
