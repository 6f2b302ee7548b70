"""A variant is one entry in the table, and nothing else: made-up ones are added, and all that the others do works."""

import dataclasses
from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderDC
from PIL import Image
from safetensors.torch import save_file

from dcae_core import DCAE, VARIANTS, CheckpointError, DownloadError, find, hub, images, latents, names, plan
from dcae_core.architecture import Architecture, CoderSpec, Stage
from dcae_core.batch.decode import read_rows
from dcae_core.cli import main
from dcae_core.compare import codecs
from dcae_core.errors import OptionError
from dcae_core.variants import Variant
from dcae_core.weights import keys
from dcae_core.weights.checkpoint import Checkpoint
from tests.core.helpers import counted, diffusers_vae, least, relative_error, streamed

CPU = ["--device", "cpu", "--dtype", "fp32"]

# What would be written into `variants._table` for each.
VIT = "EfficientViTBlock"
SMALL = Variant(
    "dc-ae-f16c16-made-up-2.0",
    Architecture(
        16,
        CoderSpec((Stage(16, 1), Stage(32, 1), Stage(32, 2), Stage(64, 1, VIT, (5,)), Stage(64, 1, VIT)), "Conv"),
        CoderSpec(
            (Stage(32, 0), Stage(32, 1, norm="batch_norm", act="relu"), *[Stage(32, 1)] * 2, Stage(64, 1, VIT)),
            "pixel_shuffle",
        ),
    ),
    0.71,
    ("someone/dc-ae-f16c16-made-up-2.0-diffusers", "someone/made-up"),
)
FEWER = Variant(
    "dc-ae-f8c64-made-up-2.5",
    Architecture(
        64,
        CoderSpec(tuple(Stage(32, n) for n in (0, 1, 2, 1)), "pixel_unshuffle", shortcut=False),
        CoderSpec(tuple(Stage(32, n) for n in (1, 1, 2, 1)), "interpolate", shortcut=False, conv_act="silu"),
    ),
    None,
    adaptive=(8, 32),
)
SAME_SHAPES = dataclasses.replace(SMALL, name="dc-ae-f16c16-other-2.0", scaling_factor=0.6)


@pytest.fixture(params=[SMALL, FEWER], ids=lambda variant: variant.name)
def variant(request, monkeypatch) -> Variant:
    monkeypatch.setitem(VARIANTS, request.param.name, request.param)
    return request.param


@pytest.fixture
def oracle(variant) -> AutoencoderDC:
    return diffusers_vae(variant.diffusers_config())


@pytest.fixture
def files(variant, oracle, tmp_path) -> dict[str, Path]:
    """In each layout a file whose name and metadata say nothing."""
    state = {"diffusers": oracle.state_dict(), "original": keys.to_original(oracle.state_dict(), variant.architecture)}
    for layout in keys.LAYOUTS:
        save_file({k: t.contiguous() for k, t in state[layout].items()}, tmp_path / f"{layout}.safetensors")
    return {layout: tmp_path / f"{layout}.safetensors" for layout in keys.LAYOUTS}


@pytest.mark.parametrize("layout", keys.LAYOUTS)
def test_it_is_known_by_its_file_and_does_what_diffusers_does(variant, oracle, files, layout):
    ae = DCAE.from_file(files[layout], device="cpu", dtype="fp32")
    assert (ae.variant, ae.layout) == (variant, layout)
    x = torch.rand(1, 3, 6 * ae.spatial_ratio, 4 * ae.spatial_ratio) * 2 - 1
    with torch.inference_mode():
        z = oracle.encode(x).latent
        y = oracle.decode(z).sample
    assert z.shape == (1, variant.latent_channels, 6, 4)
    for got, wanted in ((ae.encode(x), z), (ae.decode(z), y)):
        assert relative_error(got, wanted) <= 1e-5
    for got, wanted in ((streamed(ae, "encode", x), z), (streamed(ae, "decode", z), y)):
        assert relative_error(got, wanted) <= 1e-5
    for channels in variant.adaptive:
        few = ae.encode(x, latent_channels=channels)
        assert torch.allclose(few, z[:, :channels], atol=1e-5)
        zeros = z.new_zeros(1, variant.latent_channels - channels, *z.shape[2:])
        assert relative_error(ae.decode(few), ae.decode(torch.cat([few, zeros], dim=1))) <= 1e-5


@pytest.mark.parametrize("direction", plan.DIRECTIONS)
def test_its_memory_is_planned(variant, direction):
    ae = DCAE.empty(variant, device="meta", dtype="bf16")
    for channels in (None, *variant.adaptive):
        low = least(variant, direction, 96, 80, ae.dtype, channels=channels)
        for budget in (None, low, 2 * low):
            made = plan.make(variant.architecture, direction, 96, 80, 1, budget, ae.dtype, channels=channels)
            assert 0.85 * made.peak_bytes <= counted(ae, made) <= made.peak_bytes <= (budget or made.peak_bytes)


def test_its_name_is_known_everywhere(variant, tmp_path, capsys):
    assert variant.name in names()
    assert find(f"{variant.name.upper()}-diffusers") is variant
    assert main(["plan", "--variant", variant.name, "--size", "96x96", "--budget", "1GiB"]) == 0
    assert f"{variant.name}, 96x96" in capsys.readouterr().out
    assert main(["variants", "--cache-dir", str(tmp_path)]) == 0
    assert variant.name in capsys.readouterr().out
    if not variant.repos:
        return
    assert find("someone/made-up") is variant
    with pytest.raises(DownloadError, match=f"dcae download {variant.name}"):
        DCAE(variant.name, cache_dir=tmp_path)
    (tmp_path / f"{variant.name}.safetensors").touch()
    assert hub.find(variant, tmp_path) == tmp_path / f"{variant.name}.safetensors"


def test_the_command_line(variant, files, tmp_path, capsys):
    assert main(["info", str(files["original"])]) == 0
    output = capsys.readouterr().out
    for part in (variant.name, "original", f"scaling factor  {variant.scaling_factor or 'not published'}"):
        assert part in output
    assert main(["convert", str(files["original"]), str(tmp_path / "out"), "--to", "diffusers"]) == 0
    assert Checkpoint(tmp_path / "out").choose() is variant
    picture, weights = tmp_path / "bird.png", ["--model", str(files["diffusers"])]
    Image.open(hub.bundled().with_name("example.jpg")).crop((400, 80, 450, 120)).save(picture)
    for channels in (None, *variant.adaptive):
        fewer = [] if channels is None else ["--latent-channels", str(channels)]
        assert main(["encode", str(picture), *fewer, *weights, *CPU]) == 0
        found = latents.read(tmp_path / "bird.safetensors")
        assert (found.variant, found.size) == (variant, (40, 50))
        assert found.raw.shape[1] == (channels or variant.latent_channels)
        assert main(["decode", str(tmp_path / "bird.safetensors"), *weights, *CPU]) == 0
        assert images.read(tmp_path / "bird-dcae.png").shape == (1, 40, 50, 3)
    assert main(["encode", str(picture), "--latent-channels", "7", *weights, *CPU]) == 1
    assert f"{variant.name} can't run with 7 latent channels" in capsys.readouterr().err
    assert main(["roundtrip", str(picture), *weights, *CPU]) == 0
    assert codecs.load(str(files["original"]), "cpu", "fp32").scaling_factor == variant.scaling_factor


def test_scaled_latents(variant, files, tmp_path, capsys):
    picture, target = hub.bundled().with_name("example.jpg"), tmp_path / "z.safetensors"
    encode = ["encode", str(picture), "-o", str(target), "--model", str(files["original"]), "--scaled", *CPU]
    if variant.scaling_factor is None:
        assert main(encode) == 1
        assert f"No scaling factor is published for {variant.name}" in capsys.readouterr().err
        assert not target.exists()
    assert main([*encode, "--scaling-factor", "0.25"]) == 0
    raw = latents.read(target).raw
    ae = DCAE.from_file(files["original"], device="cpu", dtype="fp32")
    assert relative_error(raw, ae.encode(images.from_host(images.read(picture)))) <= 1e-5


def test_a_whole_data_set(variant, files, tmp_path, capsys):
    (tmp_path / "in").mkdir()
    photograph, target = images.read(hub.bundled().with_name("example.jpg")), tmp_path / "out"
    images.write(tmp_path / "in" / "bird.png", photograph[0, 80:144, 400:464])
    weights = ["--model", str(files["diffusers"]), *CPU]
    command = ["batch", "encode", str(tmp_path / "in"), str(target), "--size", "64", "--workers", "1", *weights]
    for wrong, says in (
        ("--latent-channels=7", "can't run with 7 latent"),
        ("--scaling-factor=2", "for scaled latents"),
    ):
        assert main([*command, wrong]) == 1
        assert says in capsys.readouterr().err
        assert not target.exists()
    channels = variant.adaptive[0] if variant.adaptive else variant.latent_channels
    command += ["--scaled", "--scaling-factor", "0.25", "--latent-channels", str(channels)]
    assert main(command) == 0
    ((row, common),) = read_rows(str(target))
    ae = DCAE.from_file(files["original"], device="cpu", dtype="fp32")
    wanted = ae.encode(images.from_host(photograph[:, 80:144, 400:464]), latent_channels=channels)
    assert common["scaling_factor"] == "0.25" and row.latents.shape[0] == channels
    assert relative_error(row.latents.float() / 0.25, wanted[0]) <= 2**-8  # bf16
    assert main(["batch", "decode", str(target), str(tmp_path / "back"), *weights]) == 0
    decoded = images.to_host(ae.decode(row.latents.float()[None] / 0.25))
    assert (images.read(tmp_path / "back" / "bird.png.png") - decoded).abs().max() <= 2 / 255
    if variant.adaptive:
        fewer = [*command[:-1], str(variant.adaptive[1])]
        assert main(fewer) == 1 and "latent_channels" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"latent_channels": 24}, r"encoder: .* 64 to be a multiple of 24; decoder: .* 64"),
        ({"decoder": FEWER.architecture.decoder}, "as many stages"),
        (
            {"encoder": CoderSpec(SMALL.architecture.encoder.stages, "Foo")},
            "encoder: 'Foo' is not one of pixel_unshuffle, Conv",
        ),
        ({"decoder": CoderSpec((), "interpolate")}, "decoder: it has no stages"),
        ({"encoder": CoderSpec((Stage(6, 1), *[Stage(32, 1)] * 4), "Conv", False)}, "four times 6 to .* of 32"),
        (
            {"encoder": CoderSpec((Stage(5, 1), Stage(10, 1), *[Stage(10, 1)] * 3), "pixel_unshuffle", False)},
            "10 to .* of 4",
        ),
    ],
)
def test_numbers_that_do_not_go_together_are_said(change, says):
    with pytest.raises(OptionError, match=f"f16c[0-9]+ is impossible: .*{says}"):
        dataclasses.replace(SMALL.architecture, **change)


def test_a_block_that_is_not_known():
    stages = tuple(dataclasses.replace(stage, block="NoBlock") for stage in SMALL.architecture.encoder.stages)
    changed = dataclasses.replace(SMALL.architecture, encoder=CoderSpec(stages, "Conv"))
    with pytest.raises(OptionError, match="no block 'NoBlock': known are ResBlock, EfficientViTBlock"):
        DCAE.empty(dataclasses.replace(SMALL, architecture=changed), device="meta")


def test_fewer_channels_need_a_network_without_shortcuts():
    with pytest.raises(OptionError, match=f"{SMALL.name} is impossible: .* without a shortcut"):
        dataclasses.replace(SMALL, adaptive=(8,))


def test_a_variant_outside_the_table():
    """Is planned and run like the others."""
    ae = DCAE.empty(SMALL, device="cpu", dtype="fp32")
    assert SMALL.name not in VARIANTS
    for tensor in (*ae.model.parameters(), *ae.model.buffers()):
        torch.nn.init.constant_(tensor, 0.01)
    x = torch.rand(1, 3, 96, 80) * 2 - 1
    assert ae.plan("encode", 96, 80).whole and ae.plan("decode", 96, 80).whole
    z = ae.encode(x)
    y = ae.decode(z)
    assert (z.shape, y.shape) == ((1, 16, 6, 5), x.shape)
    assert relative_error(streamed(ae, "encode", x), z) <= 1e-5
    assert relative_error(streamed(ae, "decode", z), y) <= 1e-5


def test_one_with_the_keys_and_shapes_of_another_is_told_by_its_name(monkeypatch, tmp_path):
    for one in (SMALL, SAME_SHAPES):
        monkeypatch.setitem(VARIANTS, one.name, one)
    state = {k: torch.zeros(s) for k, s in keys.expected(SAME_SHAPES.architecture, "original").items()}
    for name in (SMALL.name, SAME_SHAPES.name, "unnamed"):
        save_file(state, tmp_path / f"{name}.safetensors")
        found = Checkpoint(tmp_path / f"{name}.safetensors")
        assert found.fits == [SMALL, SAME_SHAPES]
        if name == "unnamed":
            with pytest.raises(CheckpointError, match=rf"{SMALL.name} or {SAME_SHAPES.name}.*\(0\.71, 0\.6\)"):
                found.choose()
        else:
            assert found.choose().name == name
