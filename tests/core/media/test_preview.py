"""Previews: the fit, the table, and the script that writes it."""

import importlib.util
import json
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image
from skimage import data

from dcae_core import DCAE, DEMO, LatentError, find, hub, images, preview
from dcae_core.compare.metrics import psnr

SCRIPT = Path(__file__).resolve().parents[3] / "tools" / "fit_preview.py"
EXAMPLE = hub.bundled().with_name("example.jpg")


@pytest.fixture(scope="module")
def ae() -> DCAE:
    return DCAE(DEMO, device="cpu", dtype="fp32")


@pytest.fixture(scope="module")
def example(ae) -> preview.Pair:
    return preview.pair(ae.variant, ae.encode, images.from_host(images.read(EXAMPLE)))


def likeness(x: torch.Tensor, picture: torch.Tensor) -> float:
    return psnr(images.to_host(x), images.to_host(picture))


def linear(channels: int, count: int) -> tuple[list[preview.Pair], torch.Tensor, torch.Tensor]:
    """Random latents, and colours that are a linear map of them: (pairs, factors, bias)."""
    generator = torch.Generator().manual_seed(0)
    factors, bias = torch.randn(channels, 3, generator=generator), torch.tensor([0.1, -0.2, 0.3])
    z = torch.randn(count, channels, 4, 6, generator=generator) * torch.linspace(0.2, 2, channels)[:, None, None] + 1
    colours = torch.einsum("bchw,cd->bdhw", z, factors) + bias[:, None, None]
    return [(a[None], b[None]) for a, b in zip(z, colours, strict=True)], factors, bias


def test_a_fit_recovers_a_linear_map():
    pairs, factors, bias = linear(channels=8, count=20)
    fitted = preview.fit(pairs, ridge=0)
    torch.testing.assert_close(fitted.factors, factors)
    torch.testing.assert_close(fitted.bias, bias)
    z, colours = pairs[3]
    torch.testing.assert_close(fitted(z), colours)
    assert preview.fit(pairs)(z).sub(colours).abs().max() < 0.02 * colours.abs().max()


def test_more_channels_than_latent_pixels():
    """As f128c512 has with few photographs: a map that explains what it has seen, and has no large factors."""
    pairs, factors, _ = linear(channels=64, count=1)
    fitted = preview.fit(pairs)
    z, colours = pairs[0]
    assert fitted(z).sub(colours).square().mean() < 0.01 * colours.var()
    assert fitted.factors.norm() < factors.norm()


def test_channels_that_say_nothing():
    z, colours = torch.zeros(1, 4, 3, 3), torch.full((1, 3, 3, 3), 0.25)
    fitted = preview.fit([(z, colours)])
    assert not fitted.factors.any()
    torch.testing.assert_close(fitted(z), colours)


def test_other_scales():
    pairs, *_ = linear(channels=8, count=20)
    fitted, (z, _) = preview.fit(pairs), pairs[0]
    shift, factor = torch.linspace(-1, 1, 8)[:, None, None], 0.4
    other = (z - shift) * factor
    torch.testing.assert_close(fitted.after(lambda x: x / factor + shift)(other), fitted(z), rtol=1e-4, atol=1e-5)


def test_latents_that_overflowed():
    pairs, *_ = linear(channels=8, count=2)
    pairs[1][0][0, 3, 0, 0] = torch.inf
    with pytest.raises(LatentError, match=r"not finite.*bf16 or fp32"):
        preview.fit(pairs)


def test_a_pair_is_scaled_latents_and_mean_colours(ae):
    picture = images.from_host(images.read(EXAMPLE))[:, :, :100, :70]
    z, colours = preview.pair(ae.variant, ae.encode, picture)
    cut = picture[:, :, 2:98, 3:67]
    torch.testing.assert_close(z, ae.encode(cut) * ae.scaling_factor)
    assert colours.shape == (1, 3, 3, 2)
    torch.testing.assert_close(colours[0, :, 1, 1], cut[0, :, 32:64, 32:64].mean((1, 2)))


def test_the_demos_preview_of_a_photograph_it_was_not_fitted_to(example):
    z, colours = example
    assert "budgie-branch" in json.loads(preview.TABLE.read_text(encoding="utf-8"))[DEMO]["held_out"]  # the example
    assert likeness(preview.find(DEMO)(z), colours) > 46  # 47.75
    assert likeness(colours.mean((2, 3), keepdim=True).expand_as(colours), colours) < 16


def test_every_entry_of_the_table():
    for space, entry in json.loads(preview.TABLE.read_text(encoding="utf-8")).items():
        variant = find(entry["variant"])
        fitted = preview.find(variant)
        assert variant.latent_space == space
        assert fitted.factors.shape == (variant.latent_channels, 3) and fitted.bias.shape == (3,)
        assert fitted.factors.isfinite().all() and fitted.factors.any()
        assert entry["fitted_to"] and not set(entry["fitted_to"]) & set(entry.get("held_out", ()))


def test_variants_that_read_each_others_latents_share_a_preview(monkeypatch):
    monkeypatch.setattr(preview, "_table", lambda: {"sana": {"factors": [[0.5] * 3] * 32, "bias": [0.0] * 3}})
    for name in ("dc-ae-f32c32-sana-1.0", "dc-ae-f32c32-sana-1.1", "dc-ae-lite-f32c32-sana-1.1"):
        assert preview.find(name).factors[0, 0] == 0.5
    assert preview.find("dc-ae-f32c32-mix-1.0") is None


def test_a_fit_to_the_bundled_photograph_does_for_others(ae):
    fitted = preview.fit_example(ae.variant, ae.encode)
    x = images.from_host(images.from_pil(Image.fromarray(data.coffee())))
    z, colours = preview.pair(ae.variant, ae.encode, x)
    assert likeness(fitted(z), colours) > 40  # 42.3; the table's 45.3


def test_few_latent_pixels_take_more_runs_in_other_colours():
    """Of ratio 128 the photograph has 35 latent pixels. A stand-in encoder, of noise: the weights are not here."""
    given = []

    def encode(x):
        given.append(x)
        return torch.randn(1, 512, x.shape[2] // 128, x.shape[3] // 128)

    fitted = preview.fit_example(find("dc-ae-f128c512-mix-1.0"), encode)
    assert fitted.factors.shape == (512, 3)
    assert len(given) == 6
    corner = torch.stack([x[0, :, 0, 0] for x in given])
    assert len(corner.unique(dim=0)) == 6 and len(corner.sort(1)[0].unique(dim=0)) == 1


@pytest.fixture
def script(monkeypatch):
    spec = importlib.util.spec_from_file_location("fit_preview", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)

    def run(*args) -> None:
        monkeypatch.setattr(sys, "argv", [SCRIPT.name, *map(str, args)])
        module.main()

    return run


def test_the_script_writes_what_find_reads(script, tmp_path, monkeypatch, capsys, example):
    folder, table = tmp_path / "photos", tmp_path / "table.json"
    folder.mkdir()
    for name in ("astronaut", "chelsea", "coffee"):
        Image.fromarray(getattr(data, name)()).save(folder / f"{name}.png")
    table.write_text(json.dumps({"another": {"bias": [1]}}))
    script(DEMO, folder, EXAMPLE, "--hold-out", "chelsea", "example", "--table", table, "--device", "cpu")
    entries = json.loads(table.read_text())
    assert list(entries) == ["another", DEMO] and entries["another"] == {"bias": [1]}
    assert entries[DEMO]["fitted_to"] == ["astronaut", "coffee"]
    printed = capsys.readouterr().out
    assert f"psnr_held_out: {entries[DEMO]['psnr_held_out']:.2f} dB\n" in printed
    assert entries[DEMO]["psnr_held_out"] > 40 > 25 > entries[DEMO]["psnr_held_out_of_one_colour"]
    assert [path.name for path in tmp_path.iterdir() if path.is_file()] == ["table.json"]

    monkeypatch.setattr(preview, "_table", lambda: entries)
    z, colours = example
    assert likeness(preview.find(DEMO)(z), colours) > 42


def test_the_script_says_what_is_wrong(script, tmp_path):
    with pytest.raises(SystemExit, match="no photograph called nobody"):
        script(DEMO, EXAMPLE, "--hold-out", "nobody", "--table", tmp_path / "table.json")
    with pytest.raises(SystemExit, match="no photographs to fit to"):
        script(DEMO, EXAMPLE, "--hold-out", "example", "--table", tmp_path / "table.json")
    with pytest.raises(SystemExit, match="no DC-AE variant named 'nothing'"):
        script("nothing", EXAMPLE, "--table", tmp_path / "table.json")
    assert not list(tmp_path.iterdir())
