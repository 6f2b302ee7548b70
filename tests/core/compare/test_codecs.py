"""`dcae compare`: autoencoders of several kinds, used as their own classes would be."""

import shutil
import sys
from dataclasses import replace
from pathlib import Path

import diffusers
import pytest
import torch
from diffusers.models.autoencoders.vae import DecoderOutput
from safetensors.torch import load_file, save_file
from torch.nn import functional as F

from dcae_core import DCAE, DEMO, TAESANA, BudgetError, hub, images, metrics, variants
from dcae_core.cli import main
from dcae_core.compare import codecs, compare
from dcae_core.compare.run import measure, resized
from dcae_core.errors import CheckpointError, DCAEError
from tests.core.compare.vaes import CLASSES, CPU, EXAMPLE, demo, of_file, photograph
from tests.core.helpers import taesana_files

pytestmark = pytest.mark.usefixtures("nothing_else_here")


def by_hand(kind: str, vae, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """(latent, result) of pictures in [-1, 1], as diffusers' documentation says."""
    with torch.no_grad():
        encoded = vae.encode(x, return_dict=False)[0]
        z = encoded if isinstance(encoded, torch.Tensor) else encoded.mode()
        options = {"generator": torch.Generator().manual_seed(0)} if kind == "ConsistencyDecoderVAE" else {}
        return z, vae.decode(z, return_dict=False, **options)[0]


def test_every_class_is_tried():
    assert set(CLASSES) == set(codecs.RULES)


@pytest.mark.parametrize("kind", CLASSES)
def test_a_class_is_used_as_it_is_by_hand(kind, models):
    picture = photograph(45, 70)
    channels = CLASSES[kind][2]
    ratio = 2 ** (CLASSES[kind][1] - 1)
    codec = of_file(kind, models)
    assert (codec.kind, codec.ratio, codec.name.removeprefix("diffusers:")) == (kind, ratio, str(models / kind))

    vae = getattr(diffusers, kind).from_pretrained(models / kind).eval()
    rows, columns = -(-45 // ratio), -(-70 // ratio)
    x = F.pad(picture.permute(2, 0, 1)[None] * 2 - 1, (0, columns * ratio - 70, 0, rows * ratio - 45), mode="replicate")
    z, y = by_hand(kind, vae, x)
    assert (codec.encode(x) - z).abs().max() < 1e-5
    assert (codec.decode(z) - y).abs().max() < 1e-5

    cell, result = measure(codec, picture, repeats=1)
    expected = ((y[0, :, :45, :70].permute(1, 2, 0) + 1) / 2).clamp(0, 1)
    assert expected.std() > 0.01
    assert (result - expected).abs().max() <= 0.5 / 255 + 1e-5
    assert cell.latent_shape == (channels, rows, columns)
    assert cell.latent_bytes == 2 * channels * rows * columns
    assert cell.bits_per_pixel == pytest.approx(16 * channels * rows * columns / (45 * 70))
    assert min(cell.encode_seconds, cell.decode_seconds) > 0
    assert torch.equal(result, measure(codec, picture, repeats=1)[1]), "runs differ"


@pytest.mark.parametrize("kind", CLASSES)
@pytest.mark.parametrize("levels", [2, 4])
def test_the_ratio_follows_from_the_levels(kind, levels):
    torch.manual_seed(0)
    vae = CLASSES[kind][0](levels).eval()
    codec = codecs.from_diffusers(vae, "some")
    assert codec.ratio == {2: 2, 4: 8}[levels]
    z = codec.encode(torch.zeros(1, 3, 32, 48))
    assert z.shape[2:] == (32 // codec.ratio, 48 // codec.ratio)
    assert codec.decode(z).shape == (1, 3, 32, 48)


def test_a_pipelines_folder(models, tmp_path):
    (tmp_path / "pipeline").mkdir()
    (tmp_path / "pipeline" / "model_index.json").write_text("{}")
    shutil.copytree(models / "AutoencoderKL", tmp_path / "pipeline" / "vae")
    x = images.from_host(photograph(32, 32))
    whole, alone = (codecs.load(str(path), "cpu", "fp32") for path in (tmp_path / "pipeline", models / "AutoencoderKL"))
    assert torch.equal(whole.encode(x), alone.encode(x))


def every_codec(models: Path, folder: Path) -> dict[str, codecs.Codec]:
    made = {kind: of_file(kind, models) for kind in CLASSES}
    taesana_files(folder)
    return {**made, "DC-AE": demo(), "TAESANA": codecs.load(f"taesana:{folder}", "cpu", "fp32")}


def test_a_dcae_that_is_not_published_runs_on_ours_without_a_prefix(models):
    ours, theirs = codecs.load(str(models / "AutoencoderDC"), "cpu", "fp32"), of_file("AutoencoderDC", models)
    x = images.from_host(photograph(64, 96))
    assert (ours.kind, ours.ratio) == ("DC-AE", theirs.ratio)
    assert torch.allclose(ours.encode(x), theirs.encode(x), atol=1e-4)


def test_every_network_sees_black_and_white_as_it_was_trained_to(models, tmp_path):
    """-1 and 1; but TAESANA, and AutoencoderTiny inside of its class, have 0 for black."""
    made = every_codec(models, tmp_path / "taesana")
    seen = []

    def hook(module, args):
        if args and isinstance(args[0], torch.Tensor) and not args[0].is_meta:
            seen.append((isinstance(module, torch.nn.Conv2d), args[0].unique().tolist()))

    for kind, codec in made.items():
        for picture, value in ((0.0, -1.0), (1.0, 1.0)):
            seen.clear()
            x = images.from_host(torch.full((128, 128, 3), picture))
            with torch.nn.modules.module.register_module_forward_pre_hook(hook):
                codec.encode(x)
            assert seen[0][1] == [value], kind
            if kind != "DC-AE":
                first = next(values for is_convolution, values in seen if is_convolution)
                assert first == [picture if kind in ("TAESANA", "AutoencoderTiny") else value], kind


def test_what_a_network_means_by_black_comes_out_black(models, tmp_path, monkeypatch):
    made = every_codec(models, tmp_path / "taesana")
    output = 0.0

    def filled(z: torch.Tensor, ratio: int) -> torch.Tensor:
        return torch.full((1, 3, z.shape[2] * ratio, z.shape[3] * ratio), output)

    for kind, codec in made.items():
        if kind in CLASSES:
            patched = getattr(diffusers, kind), lambda _, z, r=codec.ratio, **__: DecoderOutput(sample=filled(z, r))
        elif kind == "DC-AE":
            patched = DCAE, lambda _, z, *__, **___: filled(z, 32)
        else:
            patched = torch.nn.Sequential, lambda _, z: filled(z, 32) if z.shape[1] == 32 else torch.zeros(1, 32, 4, 4)
        lowest = 0.0 if kind == "TAESANA" else -1.0
        middle = (lowest + 1) / 2
        for output, shade in ((lowest, 0), (middle, 128), (1.0, 255), (lowest - 0.5, 0), (1.5, 255)):
            with monkeypatch.context() as patch:
                patch.setattr(patched[0], "forward" if kind == "TAESANA" else "decode", patched[1])
                result = measure(codec, photograph(100, 128), repeats=1)[1]
            assert (result * 255).unique().tolist() == pytest.approx([shade], abs=1e-3), (kind, output)


def test_pictures_are_not_squeezed_before_the_model_and_stretched_after_it(tmp_path, capsys):
    """A mistake of another script: pictures in [0.5, 1] into a model for [-1, 1], and 2x-1 of what comes out. With the
    demo model it costs half a dB in fp32 and up to 3 in bf16. The codec's score is that of `dcae demo`."""
    picture = images.read(EXAMPLE)[0]
    made = compare([("demo", demo)], [("example", lambda: picture)], repeats=1)
    score = made.columns[0].cells[0].scores.psnr
    assert main(["demo", "-o", str(tmp_path / "demo.png"), *CPU]) == 0
    assert f"PSNR      {score:.2f} dB" in capsys.readouterr().out
    assert score == pytest.approx(26.9, abs=0.05)

    codec, picture = demo(), photograph(160, 224, "chelsea", 100, 60)

    def squeezed(x: torch.Tensor) -> torch.Tensor:
        return codec.encode(((x + 1) / 2) / 2 + 0.5)

    def stretched(z: torch.Tensor) -> torch.Tensor:
        return (2 * codec.decode(z) - 1) * 2 - 1  # 2x-1 is in [0, 1] then, which a codec has in [-1, 1]

    wrong = replace(codec, encode=squeezed, decode=stretched)
    right, mistaken = (metrics.psnr(picture, measure(one, picture, 1)[1]) for one in (codec, wrong))
    assert mistaken < right - 0.3


def test_diffusers_own_class_on_a_dc_ae_gives_the_same_picture(tmp_path, monkeypatch):
    folder = tmp_path / "demo-diffusers"
    assert main(["convert", str(hub.bundled()), str(folder), "--to", "diffusers", "--dtype", "fp32"]) == 0
    picture = resized(images.read(EXAMPLE)[0], (200, 300))
    ours, theirs = (codecs.load(name, "cpu", "fp32") for name in (str(folder), f"diffusers:{folder}"))
    assert (ours.kind, theirs.kind, ours.ratio, theirs.ratio) == ("DC-AE", "AutoencoderDC", 32, 32)
    assert ours.scaling_factor == theirs.scaling_factor == variants.find(DEMO).scaling_factor
    first, second = (measure(codec, picture, repeats=1) for codec in (ours, theirs))
    assert (first[1] - second[1]).abs().max() <= 1.001 / 255
    assert first[0].latent_shape == second[0].latent_shape == (32, 7, 10)


def test_a_budget_is_kept_or_said_to_be_too_small():
    picture = resized(images.read(EXAMPLE)[0], (640, 640))
    ae = DCAE(DEMO, device="cpu", dtype="fp32")
    needed = 0
    for direction in ("encode", "decode"):
        with pytest.raises(BudgetError) as error:
            ae.plan(direction, 640, 640, budget=1)
        needed = max(needed, error.value.needed)
    budgets = {"none": None, "fits": needed, "too small": needed // 2}
    opened = [(name, lambda b=b: codecs.load(DEMO, "cpu", "fp32", b)) for name, b in budgets.items()]
    without, fitting, small = (column.cells[0] for column in compare(opened, [("one", lambda: picture)]).columns)
    assert small.scores is None and small.result is None
    assert "GiB" in small.error and "budget" in small.error.lower()
    assert fitting.peak_bytes < without.peak_bytes / 2
    assert (fitting.result - without.result).abs().max() <= 1.001 / 255
    assert fitting.scores.psnr == pytest.approx(without.scores.psnr, abs=0.01)


def test_the_peak_is_that_of_the_run_and_not_of_its_planning(models):
    """Which counts on meta tensors, once for each architecture."""
    from dcae_core import plan

    picture = photograph(96, 160)
    for cached in vars(plan).values():
        getattr(cached, "cache_clear", lambda: None)()
    codec = demo()
    first, second = (measure(codec, picture, repeats=1)[0].peak_bytes for _ in range(2))
    assert first == second
    assert 96 * 160 * 3 * 4 < first < 10e6
    small, large = (measure(of_file("AutoencoderKL", models), photograph(s, s), 1)[0].peak_bytes for s in (64, 128))
    assert 3.5 < large / small < 4.5


def test_a_model_whose_file_lacks_weights_is_refused(models, tmp_path):
    """diffusers goes on with random ones."""
    for kind in CLASSES:
        shutil.copytree(models / kind, tmp_path / kind)
        (file,) = (tmp_path / kind).glob("*.safetensors")
        state = load_file(file)
        del state[next(name for name in state if name.startswith("encoder"))]
        save_file(state, file, {"format": "pt"})
        with pytest.raises(CheckpointError, match=r"it lacks [0-9]+ weights?, such as "):
            of_file(kind, tmp_path)


def test_a_diffusers_that_does_not_work_here_is_said_with_its_cause(models, monkeypatch):
    class Broken:
        def __getattr__(self, name):
            raise RuntimeError("Failed to import") from RuntimeError("operator torchvision::nms does not exist")

    monkeypatch.setitem(sys.modules, "diffusers", Broken())
    with pytest.raises(DCAEError, match=r"can't be imported \(operator torchvision::nms does not exist\)"):
        of_file("AutoencoderKL", models)


def test_taesana(tmp_path):
    folder = taesana_files(tmp_path / "taesana", "encoder", "decoder")
    codec = codecs.load(f"taesana:{folder}", "cpu", "fp32")
    assert (codec.kind, codec.ratio, codec.scaling_factor) == ("TAESANA", 32, 0.41407)
    cell, result = measure(codec, photograph(50, 70), repeats=1)
    assert cell.latent_shape == (32, 2, 3) and result.shape == (50, 70, 3)
    x, tiny = images.from_host(photograph(64, 96)), TAESANA.from_folder(folder, "cpu", "fp32")
    z = codec.encode(x)
    assert torch.equal(z, tiny.encode(x)) and torch.equal(codec.decode(z), tiny.decode(z))


def test_taesana_without_its_files_says_how_to_get_them(tmp_path, monkeypatch):
    for parts, missing in (((), "decoder"), (("decoder",), "encoder"), (("encoder",), "decoder")):
        folder = tmp_path / f"with-{len(parts)}-without-{missing}"
        if parts:
            taesana_files(folder, *parts)
        with pytest.raises(CheckpointError) as error:
            codecs.load(f"taesana:{folder}", "cpu", "fp32")
        assert f"taesana_{missing}.pth from https://github.com/madebyollin/taesd" in str(error.value)


def test_taesanas_decoder_runs_after_a_sana_dc_ae_that_is_here(tmp_path, monkeypatch):
    """The demo model stands in for the sana DC-AE, whose file is 1.2 GB: it has as many channels."""
    folder = taesana_files(tmp_path / "decoder-only", "decoder")
    ae = DCAE(DEMO, device="cpu", dtype="fp32")
    monkeypatch.setattr(codecs, "local", lambda cache_dir: [DEMO, "dc-ae-f32c32-sana-1.1"])
    asked = []
    monkeypatch.setattr(codecs, "DCAE", lambda *given: asked.append(given[0]) or ae)
    codec = codecs.load(f"taesana:{folder}", "cpu", "fp32")
    assert asked == ["dc-ae-f32c32-sana-1.1"]
    assert codec.name == f"taesana:{folder} after dc-ae-f32c32-sana-1.1"
    x = images.from_host(photograph(64, 96))
    z = codec.encode(x)
    assert torch.equal(z, ae.encode(x))
    assert torch.equal(codec.decode(z), TAESANA.from_folder(folder, "cpu", "fp32").decode(z))
