"""`dcae compare`: autoencoders of several kinds used as their own classes would be, and a run that nothing stops."""

import json
import shutil
import statistics
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote

import diffusers
import numpy as np
import pytest
import skimage.data
import torch
from diffusers.models.autoencoders.vae import DecoderOutput
from PIL import Image, ImageDraw
from safetensors.torch import load_file, save_file
from torch.nn import functional as F

from dcae_core import DCAE, DEMO, BudgetError, hub, images, metrics, variants
from dcae_core.cli import main
from dcae_core.compare import codecs, compare, pictures, run, sheet, taesana, text
from dcae_core.compare.page import write_page
from dcae_core.compare.run import Cell, Column, Comparison, Row, measure, resized
from dcae_core.errors import CheckpointError, DCAEError

from .conftest import randomised

EXAMPLE = Path(hub.__file__).parent / "assets" / "example.jpg"
CPU = ["--device", "cpu", "--dtype", "fp32"]
GROUPS = {"norm_num_groups": 4}


def kl(levels: int) -> diffusers.AutoencoderKL:
    return diffusers.AutoencoderKL(
        down_block_types=["DownEncoderBlock2D"] * levels,
        up_block_types=["UpDecoderBlock2D"] * levels,
        block_out_channels=[8] * levels,
        latent_channels=16,
        **GROUPS,
    )


def tiny(levels: int) -> diffusers.AutoencoderTiny:
    sides = {f"{side}_block_out_channels": [8] * levels for side in ("encoder", "decoder")}
    blocks = {f"num_{side}_blocks": [1] * levels for side in ("encoder", "decoder")}
    return diffusers.AutoencoderTiny(**sides, **blocks)


def asymmetric(levels: int) -> diffusers.AsymmetricAutoencoderKL:
    return diffusers.AsymmetricAutoencoderKL(
        down_block_types=["DownEncoderBlock2D"] * levels,
        down_block_out_channels=[8] * levels,
        up_block_types=["UpDecoderBlock2D"] * levels,
        up_block_out_channels=[12] * levels,
        layers_per_up_block=2,
        **GROUPS,
    )


def dc(levels: int) -> diffusers.AutoencoderDC:
    """None of the variants: another width."""
    blocks = {"block_types": "ResBlock", "block_out_channels": [8] * levels, "layers_per_block": [1] * levels}
    config = {f"{side}_{name}": value for side in ("encoder", "decoder") for name, value in blocks.items()}
    scales = {f"{side}_qkv_multiscales": [[]] * levels for side in ("encoder", "decoder")}
    return diffusers.AutoencoderDC(latent_channels=8, **config, **scales)


def consistency(levels: int) -> diffusers.ConsistencyDecoderVAE:
    """Its decoder, by default of 600 million weights, has two levels of 8 channels here."""
    return diffusers.ConsistencyDecoderVAE(
        encoder_block_out_channels=[8] * levels,
        encoder_down_block_types=["DownEncoderBlock2D"] * levels,
        encoder_layers_per_block=1,
        encoder_norm_num_groups=4,
        decoder_block_out_channels=[8, 8],
        decoder_down_block_types=["ResnetDownsampleBlock2D"] * 2,
        decoder_up_block_types=["ResnetUpsampleBlock2D"] * 2,
        decoder_layers_per_block=1,
        decoder_norm_num_groups=4,
    )


# class: (makes a small one of so many levels, levels, latent channels)
CLASSES = {
    "AutoencoderKL": (kl, 4, 16),
    "AutoencoderTiny": (tiny, 4, 4),
    "AsymmetricAutoencoderKL": (asymmetric, 3, 4),
    "AutoencoderDC": (dc, 5, 8),
    "ConsistencyDecoderVAE": (consistency, 3, 4),
}


def by_hand(kind: str, vae, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """(latent, result) of pictures in [-1, 1], as diffusers' documentation says."""
    with torch.no_grad():
        encoded = vae.encode(x, return_dict=False)[0]
        z = encoded if isinstance(encoded, torch.Tensor) else encoded.mode()
        options = {"generator": torch.Generator().manual_seed(0)} if kind == "ConsistencyDecoderVAE" else {}
        return z, vae.decode(z, return_dict=False, **options)[0]


@pytest.fixture(scope="module")
def models(tmp_path_factory) -> Path:
    """A folder with a small model of each class, in random weights."""
    folder = tmp_path_factory.mktemp("models")
    for kind, (make, levels, _) in CLASSES.items():
        torch.manual_seed(0)
        make(levels).save_pretrained(folder / kind)
    return folder


@pytest.fixture(autouse=True)
def nothing_else_here(monkeypatch, tmp_path):
    """No weights of LPIPS and rFID that happen to be on this machine."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch-home"))


def photograph(height: int, width: int, name: str = "astronaut", left: int = 150, top: int = 30) -> torch.Tensor:
    """Cut from a real one."""
    return images.of_pil(Image.fromarray(getattr(skimage.data, name)()[top : top + height, left : left + width]))


def of_file(kind: str, models: Path) -> codecs.Codec:
    return codecs.load(str(models / kind), "cpu", "fp32")


def demo() -> codecs.Codec:
    return codecs.load(DEMO, "cpu", "fp32")


def test_every_class_is_tried():
    assert set(CLASSES) == set(codecs.RULES)


@pytest.mark.parametrize("kind", CLASSES)
def test_a_class_is_used_as_it_is_by_hand(kind, models):
    picture = photograph(45, 70)
    channels = CLASSES[kind][2]
    ratio = 2 ** (CLASSES[kind][1] - 1)
    codec = of_file(kind, models)
    assert (codec.kind, codec.ratio, codec.name) == (kind, ratio, str(models / kind))

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
    codec = codecs.of_diffusers(vae, "some")
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


def taesana_folder(folder: Path, *parts: str) -> Path:
    folder.mkdir()
    for part in parts:
        make = {"encoder": taesana.encoder, "decoder": taesana.decoder}[part]
        save_file(dict(randomised(make).state_dict()), folder / f"taesana_{part}.safetensors")
    return folder


def every_codec(models: Path, folder: Path) -> dict[str, codecs.Codec]:
    made = {kind: of_file(kind, models) for kind in CLASSES}
    taesana_folder(folder, "encoder", "decoder")
    return {**made, "DC-AE": demo(), "TAESANA": codecs.load(f"taesana:{folder}", "cpu", "fp32")}


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
            assert seen[0][1] == [picture if kind == "TAESANA" else value], kind
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
    plan._whole.cache_clear()
    plan._structure.cache_clear()
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
        with pytest.raises(CheckpointError, match="weights are not there"):
            of_file(kind, tmp_path)


@pytest.fixture
def photographs(tmp_path) -> Path:
    """A folder of 20 pictures, one of them corrupt, and of a file that is none."""
    folder = tmp_path / "photographs"
    folder.mkdir()
    names = ("astronaut", "chelsea", "coffee", "rocket")
    for i in range(20):
        picture = getattr(skimage.data, names[i % 4])()
        top, left = 12 * i % 150, 17 * i % 200
        one = Image.fromarray(picture[top : top + 90 + i, left : left + 130 - i])
        one.save(folder / f"{i:02}.{('png', 'jpg', 'webp')[i % 3]}")
    (folder / "07.jpg").write_bytes((folder / "07.jpg").read_bytes()[:300])
    (folder / "notes.txt").write_text("not a picture")
    return folder


def test_a_folder_with_a_corrupt_picture(photographs, models, tmp_path, capsys):
    report, page, grid = (tmp_path / name for name in ("report.json", "report.html", "report.png"))
    outputs = ["--json", str(report), "--html", str(page), "--out", str(grid), "--rows", "9", "--repeats", "1"]
    names = [DEMO, str(models / "AutoencoderTiny")]
    assert main(["compare", str(photographs), "--models", *names, "--size", "64", *outputs, *CPU]) == 0
    said = capsys.readouterr().out
    assert [line for line in said.splitlines() if line.startswith("07.jpg: ") and "07.jpg can't be read" in line]
    assert sum(line.endswith("19 of 20") for line in said.splitlines()) == 2
    assert str(page) in said and str(grid) in said

    told = json.loads(report.read_text())
    rows = {row["name"]: row for row in told["pictures"]}
    assert len(rows) == 20 and "notes.txt" not in rows
    assert [name for name, row in rows.items() if row["error"]] == ["07.jpg"]
    assert [model["name"] for model in told["models"]] == names
    for model in told["models"]:
        done = [cell for cell in model["cells"] if not cell["error"]]
        assert len(model["cells"]) == 20 and len(done) == 19
        assert model["cells"][7]["error"] == rows["07.jpg"]["error"] and "psnr" not in model["cells"][7]
        for score in ("psnr", "ssim", "mse", "mae"):
            assert model["means"][score] == pytest.approx(statistics.fmean(cell[score] for cell in done))
        assert model["means"]["ms_ssim"] is None and model["means"]["lpips"] is None, "64 pixels; no weights"
        assert model["device"] == "cpu" and model["dtype"] == "float32"

    mean = []
    ae = DCAE(DEMO, device="cpu", dtype="fp32")
    for file in sorted(photographs.iterdir()):
        if file.name in ("07.jpg", "notes.txt"):
            continue
        with Image.open(file) as picture:
            scale = 64 / min(picture.size)
            width, height = (round(side * scale + 0.499) for side in picture.size)
            left, top = (width - 64) // 2, (height - 64) // 2
            cut = picture.resize((width, height), Image.Resampling.LANCZOS).crop((left, top, left + 64, top + 64))
        x = images.from_host(images.of_pil(cut))
        back = np.rint(images.to_host(ae.decode(ae.encode(x)))[0].numpy() * 255)
        mean.append(10 * np.log10(255**2 / np.square(back - np.asarray(cut, dtype=float)).mean()))
    assert told["models"][0]["means"]["psnr"] == pytest.approx(statistics.fmean(mean), abs=0.01)

    assert Image.open(grid).height > 9 * 64
    named = page.read_text()
    assert "07.jpg can&#x27;t be read" in named
    assert named.count("<figure>") == 8, "of nine rows one can't be read"


def broken(name: str) -> codecs.Codec:
    """A codec whose decoder goes wrong in the way that its name says."""
    whole = demo()

    def fails(z: torch.Tensor) -> torch.Tensor:
        if name == "not finite":
            return whole.decode(z) * float("nan")
        raise {"RuntimeError": RuntimeError, "TypeError": TypeError, "KeyError": KeyError}[name]("it went wrong\nhere")

    return replace(whole, name=name, decode=fails)


def test_a_model_that_fails_is_said_in_its_place_and_the_others_are_there(models, tmp_path, monkeypatch, capsys):
    CLASSES["AutoencoderKL"][0](2).save_pretrained(tmp_path / "pickle", safe_serialization=False)
    diffusers.VQModel(block_out_channels=(32,)).save_pretrained(tmp_path / "unknown")
    real = codecs.load
    lead = ("RuntimeError", "TypeError", "KeyError", "not finite")
    monkeypatch.setattr(codecs, "load", lambda name, *rest: broken(name) if name in lead else real(name, *rest))
    drawn = []
    for method in ("text", "multiline_text"):
        original = getattr(ImageDraw.ImageDraw, method)

        def noted(self, place, text, *args, original=original, **options):
            drawn.append(text.replace("\n", " "))
            return original(self, place, text, *args, **options)

        monkeypatch.setattr(ImageDraw.ImageDraw, method, noted)

    failing = {
        "nonsense": "no DC-AE variant named 'nonsense'",
        "nobody/nothing": "not on this machine",
        str(tmp_path / "absent"): "absent",
        str(tmp_path / "pickle"): "safetensors",
        str(tmp_path / "unknown"): "VQModel",
        "RuntimeError": "it went wrong",
        "TypeError": "it went wrong",
        "KeyError": "it went wrong",
        "not finite": "not finite",
        f"taesana:{tmp_path}": "taesana_decoder",
    }
    names = [*failing, DEMO, str(models / "AutoencoderKL")]
    report, grid = tmp_path / "report.json", tmp_path / "report.png"
    outputs = ["--json", str(report), "--out", str(grid), "--repeats", "1"]
    page = ["--html", str(tmp_path / "report.html")]
    assert main(["compare", str(EXAMPLE), "--size", "96", "--models", *names, *outputs, *page, *CPU]) == 0
    said = capsys.readouterr()
    assert "Traceback" not in said.err
    told = {model["name"]: model for model in json.loads(report.read_text())["models"]}
    assert list(told) == names
    for name, reason in failing.items():
        found = told[name]["error"] or told[name]["cells"][0]["error"]
        assert reason in found and "\n" not in found
        assert told[name]["means"]["psnr"] is None
        assert any(line.startswith(f"{name}") and line.endswith(found) for line in said.out.splitlines())
        assert any(text.startswith(found[:12]) for text in drawn), f"{name} is no cell of the grid"
    for name in (DEMO, str(models / "AutoencoderKL")):
        assert told[name]["means"]["psnr"] > 3 and not told[name]["error"]
    alarm = np.array(Image.new("RGB", (1, 1), sheet.ALARM))[0, 0]
    assert (np.asarray(Image.open(grid)) == alarm).all(-1).sum() > 100 * len(failing)

    assert main(["compare", str(EXAMPLE), "--size", "96", "--models", *failing, *outputs, *page, *CPU]) == 1
    said = capsys.readouterr()
    assert said.err.splitlines()[-1].startswith("dcae: No autoencoder made anything")
    assert all(name in said.out for name in failing)


def test_pictures_that_are_not_there(tmp_path, capsys):
    (tmp_path / "empty").mkdir()
    for given, reason in (("absent", "no file or folder"), ("empty", "no picture in the folder")):
        assert main(["compare", str(tmp_path / given), *CPU]) == 1
        assert reason in capsys.readouterr().err
    (tmp_path / "bad.png").write_text("x")
    assert main(["compare", str(tmp_path / "bad.png"), "--models", DEMO, *CPU]) == 1
    assert "bad.png can't be read" in capsys.readouterr().out
    for size in ("0", "axb", "-64"):
        assert main(["compare", str(EXAMPLE), f"--size={size}", *CPU]) == 1
        assert "WIDTHxHEIGHT" in capsys.readouterr().err


def test_sizes_are_covered_and_cut_to_the_centre():
    picture = torch.zeros(100, 200, 3)
    picture[:, 50:150] = 1  # the middle half is white
    for size, white in (((50, 50), 1.0), ((100, 200), 0.5), ((25, 50), 0.5), ((200, 200), 1.0), ((50, 25), 1.0)):
        made = resized(picture, size)
        assert made.shape == (*size, 3)
        assert made.mean().item() == pytest.approx(white, abs=0.01)
    assert [name for name, _ in pictures([str(EXAMPLE)], (64, 96))] == ["example.jpg"]
    assert next(pictures([str(EXAMPLE)], (64, 96)))[1]().shape == (64, 96, 3)


def test_rfid_is_over_several_pictures_only(photographs, tmp_path, monkeypatch, capsys):
    small = torch.nn.Sequential(torch.nn.AdaptiveAvgPool2d(2))
    monkeypatch.setattr(metrics, "frechet", lambda download: lambda: metrics.Frechet(small))

    def rfid(*given: Path) -> float | None:
        arguments = ["--models", DEMO, "--size", "64", "--repeats", "1", "--json", str(tmp_path / "r.json"), *CPU]
        assert main(["compare", *map(str, given), *arguments]) == 0
        return json.loads((tmp_path / "r.json").read_text())["models"][0]["rfid"]

    assert rfid(EXAMPLE) is None
    assert "rFID is over a set of pictures" in capsys.readouterr().out
    assert rfid(EXAMPLE, photographs / "07.jpg") is None, "one of the two can't be read"
    assert rfid(EXAMPLE, photographs / "06.png", photographs / "09.png") > 0


def test_what_is_missing_for_lpips_and_rfid_is_said_with_where_to_get_it(photographs, tmp_path, capsys):
    several = [str(photographs / "00.png"), str(photographs / "01.jpg"), "--models", DEMO, "--repeats", "1", *CPU]
    assert main(["compare", *several, "--json", str(tmp_path / "r.json")]) == 0
    said = capsys.readouterr().out
    notes = json.loads((tmp_path / "r.json").read_text())["notes"]
    for score, file, address in (
        ("LPIPS", "alexnet-owt-7be5be79.pth", "https://download.pytorch.org/models/"),
        ("rFID", "weights-inception-2015-12-05-6726825d.pth", "https://github.com/toshas/torch-fidelity/releases/"),
    ):
        (note,) = [one for one in notes if one.startswith(score)]
        assert file in note and address in note and str(tmp_path / "torch-home") in note
        assert note in said
    assert not (tmp_path / "torch-home").exists(), "something was fetched, or made ready to be"


class Page(HTMLParser):
    """What of a page is of interest: addresses of pictures, and texts by element."""

    def __init__(self, text: str):
        super().__init__()
        self.addresses, self.texts, self._open = [], {}, ""
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self._open = tag
        self.addresses += [value for name, value in attrs if name in ("src", "data-result", "data-difference")]

    def handle_data(self, data):
        self.texts.setdefault(self._open, []).append(data)


def made_up(encode, decode, weights: tuple = ()) -> codecs.Codec:
    return codecs.Codec("made up", "none", 8, encode, decode, torch.device("cpu"), torch.float32, weights)


def test_times_are_medians_after_a_run_that_is_not_timed(monkeypatch):
    clock, durations = [0.0], {"encode": [100, 1, 9, 2], "decode": [200, 30, 20, 90]}
    monkeypatch.setattr(run.time, "perf_counter", lambda: clock[0])

    def taking(name: str, made):
        def work(x):
            clock[0] += durations[name].pop(0)
            return made(x)

        return work

    codec = made_up(
        taking("encode", lambda x: x[:, :1, ::8, ::8]), taking("decode", lambda z: z.new_zeros(1, 3, 64, 64))
    )
    cell, _ = measure(codec, photograph(64, 64), repeats=3)
    assert (cell.encode_seconds, cell.decode_seconds) == (2, 30)


def test_the_peak_counts_what_is_made_and_not_the_weights():
    weight, extra = torch.zeros(1 << 20), 3 << 20

    def peak(hold: int) -> int:
        def encode(x):
            held = torch.empty(hold, dtype=torch.uint8)
            weight.view(1024, 1024)
            return x[:, :1, ::8, ::8] + held[:0].sum()

        codec = made_up(encode, lambda z: z.new_zeros(1, 3, 64, 64), (weight,))
        return measure(codec, photograph(64, 64), 1)[0].peak_bytes

    assert peak(2 * extra) - peak(extra) == extra
    assert peak(0) < 1 << 20


@pytest.mark.parametrize("value", [float("inf"), float("nan")])
def test_a_result_that_is_not_finite_is_no_result(value):
    codec = made_up(lambda x: x[:, :1, ::8, ::8], lambda z: torch.full((1, 3, 64, 64), value))
    with pytest.raises(DCAEError, match="not finite"):
        measure(codec, photograph(64, 64), 1)


def test_outputs_that_cannot_be_written_are_said_before_anything_runs(tmp_path, capsys):
    given = ["compare", str(EXAMPLE), "--models", DEMO, *CPU]
    for option, path in (("--json", tmp_path / "no" / "a.json"), ("--out", tmp_path / "a.txt")):
        assert main([*given, option, str(path)]) == 1
        said = capsys.readouterr()
        assert str(path) in said.err and not said.out
    for options in (["--repeats", "0"], ["--rows", "-1"], ["--amplify", "nan"], ["--budget", "zzz"]):
        assert main([*given, *options]) == 1
    assert not list(tmp_path.iterdir())


def test_one_output_that_fails_does_not_take_the_others_with_it(tmp_path, monkeypatch, capsys):
    def broken(*arguments):
        raise OSError("the disk is full")

    monkeypatch.setattr("dcae_core.compare.page.write_page", broken)
    outputs = {"--html": "a.html", "--json": "a.json", "--out": "a.png"}
    given = [part for option, name in outputs.items() for part in (option, str(tmp_path / name))]
    assert main(["compare", str(EXAMPLE), "--models", DEMO, "--size", "64", *given, *CPU]) == 1
    assert "the disk is full" in capsys.readouterr().err
    assert {path.name for path in tmp_path.iterdir()} == {"a.json", "a.png"}


def test_which_files_of_folders_are_pictures_and_what_they_are_called(tmp_path):
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        for name in ("same.png", f"{folder}.png", ".hidden.png", "book.pdf", "film.mpg"):
            images.write(tmp_path / folder / "x.png", photograph(16, 16))
            (tmp_path / folder / "x.png").rename(tmp_path / folder / name)
    names = [name for name, _ in pictures([str(tmp_path / "a"), str(tmp_path / "b")])]
    assert names == ["a.png", str(tmp_path / "a" / "same.png"), "b.png", str(tmp_path / "b" / "same.png")]


def test_a_sheet_of_many_that_failed_stays_small():
    rows = [Row(f"line\nbreak {i}", error="it is damaged") for i in range(500)]
    assert sheet.draw(Comparison(rows, [Column("none")])).height < 1000


@pytest.fixture
def one_result() -> Comparison:
    """A picture and one result, and one more model that failed; names that HTML has to escape."""
    picture = photograph(96, 200)
    result = (picture + 0.03).clamp(0, 1)
    kept = metrics.scores(picture, result)
    cell = Cell(kept, 1.25, 2.5, 3 << 30, (32, 4, 7), 1792, 0.75, result=result)
    failed = Column("<u>broken", error="it <i>broke")
    return Comparison([Row("a", 200, 96, picture=picture)], [Column("<b>bold", cells=[cell]), failed], ["<s>note"])


def test_the_sheet_shows_original_result_and_difference(one_result):
    made = np.asarray(sheet.draw(one_result, amplify=5, cell=400)).astype(int)
    (row,), (cell,) = one_result.rows, one_result.columns[0].cells

    def there(picture: torch.Tensor, left: int, top: int) -> bool:
        part = made[top : top + 96, left : left + 200]
        return abs(part - (picture.numpy() * 255)).max() <= 1

    gap, step = sheet.GAP, 200 + sheet.GAP
    below = gap + 96 + 3 * sheet.LINE + sheet.GAP
    assert there(row.picture, gap, gap) and there(cell.result, gap + step, gap)
    assert there(sheet.difference(row.picture, cell.result, 5), gap + step, below)
    words = made[gap + 96 + 2 : below, gap + step : gap + step + 200]
    cell.scores = replace(cell.scores, psnr=12.34)
    others = np.asarray(sheet.draw(one_result, amplify=5, cell=400)).astype(int)
    assert (words != others[gap + 96 + 2 : below, gap + step : gap + step + 200]).any(), "the caption has the PSNR"


def test_the_table_has_each_number_under_its_heading(one_result):
    headings, line, failed = text.means(one_result)
    numbers = dict(zip(headings, line, strict=True))
    assert (numbers["encode s"], numbers["decode s"], numbers["peak GiB"]) == ("1.250", "2.500", "3.00")
    assert (numbers["latent kB"], numbers["bit/px"], numbers["pictures"]) == ("1.8", "0.750", "1 of 1")
    kept = one_result.columns[0].cells[0].scores
    assert numbers["MAE"] == f"{kept.mae:.2f}" and numbers["PSNR dB"] == f"{kept.psnr:.2f}"
    assert set(failed[1:-1]) == {"-"} and failed[-1] == "0 of 1"
    headings, only = text.each(one_result)
    assert only[:2] == ["a", "<b>bold"] and dict(zip(headings, only, strict=True))["decode s"] == "2.500"


def test_equal_pictures_are_valid_json(one_result):
    picture = one_result.rows[0].picture
    one_result.columns[0].cells[0].scores = metrics.scores(picture, picture)
    told = json.loads(json.dumps(text.as_json(one_result), allow_nan=False))
    (cell,) = told["models"][0]["cells"]
    assert cell["psnr"] is None and cell["mse"] == 0 and told["models"][0]["means"]["psnr"] is None
    assert "inf" in text.table(one_result)


def test_the_page_escapes_names_errors_and_notes(one_result, tmp_path):
    html = write_page(tmp_path / "page.html", one_result).read_text()
    for tag in ("<b>", "<u>", "<i>", "<s>"):
        assert tag not in html and tag.replace("<", "&lt;").replace(">", "&gt;") in html


@pytest.fixture
def report(models, tmp_path) -> Path:
    """A page of two pictures and two models, with names that HTML and addresses have to escape."""
    strange = tmp_path / 'a<b>&"c'
    shutil.copytree(models / "AutoencoderTiny", strange)
    for name, size in (("a&b.png", (96, 128)), ("<script>alert(1)<script>.png", (128, 64))):
        images.write(tmp_path / name, photograph(*size))
    page = tmp_path / "r&d #1, 100%.html"
    given = [str(path) for path in sorted(tmp_path.glob("*.png"))]
    names = ["--models", DEMO, str(strange), str(tmp_path / "absent")]
    assert main(["compare", *given, *names, "--html", str(page), "--repeats", "1", "--amplify", "4", *CPU]) == 0
    return page


def test_the_page_names_only_files_that_are_there_and_escapes_names(report, tmp_path):
    page = Page(report.read_text())
    assert len(page.addresses) == 2 * (1 + 2 * 2)
    files = {report.parent / unquote(address) for address in page.addresses}
    assert all("#" not in address and " " not in address for address in page.addresses)
    assert not [file for file in files if not file.is_file()]
    assert {file.parent for file in files} == {report.with_name("r&d #1, 100%_files")}
    assert set((tmp_path / "r&d #1, 100%_files").iterdir()) == files
    assert page.texts["h2"] == ["<script>alert(1)<script>.png, 64x128", "a&b.png, 128x96"]
    assert page.texts["option"][:2] == [DEMO, str(tmp_path / 'a<b>&"c')]
    assert "".join(page.texts["script"]).count("alert") == 0
    assert any("absent" in text for text in page.texts["p"])

    result, off, original = (images.read(report.parent / unquote(page.addresses[i]))[0] for i in (0, 1, 4))
    assert (off - ((original - result).abs() * 4).clamp(0, 1)).abs().max() < 0.51 / 255


@pytest.fixture(scope="module")
def browser():
    sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed: no browser to test in")
    chromium = shutil.which("chromium")
    if chromium is None:
        pytest.skip("there is no Chromium (on Debian: apt install chromium): no browser to test in")
    with sync_api.sync_playwright() as play:
        browser = play.chromium.launch(executable_path=chromium, args=["--no-sandbox", "--disable-gpu"])
        yield browser
        browser.close()


def test_the_page_in_a_browser(report, browser, tmp_path):
    complaints = []
    page = browser.new_page(viewport={"width": 1000, "height": 900})
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.on("console", lambda one: complaints.append(f"{one.type} {one.text}"))
    page.on("requestfailed", lambda request: complaints.append(request.url))
    page.goto(report.as_uri())
    figure = page.locator("figure").nth(1)
    pair, after, cut = figure.locator(".pair"), figure.locator(".after"), figure.locator("input")

    def shown() -> str:
        page.wait_for_function("image => image.complete && image.naturalWidth", arg=after.element_handle())
        return unquote(after.evaluate("image => image.src")).rsplit("/", 1)[1]

    def at() -> float:
        return float(pair.evaluate("pair => getComputedStyle(pair).getPropertyValue('--cut')").rstrip("%"))

    def clip() -> str:
        return after.evaluate("image => getComputedStyle(image).clipPath")

    assert shown() == "1-0.png"
    assert at() == 50 and "50%" in clip()
    cut.focus()
    for _ in range(4):
        page.keyboard.press("ArrowRight")
    assert at() == 52 and "52%" in clip()
    page.keyboard.press("Home")
    assert at() == 0
    page.mouse.click(*middle(pair.bounding_box(), 0.75))
    assert at() == pytest.approx(75, abs=0.5)

    view, model = figure.get_by_label("view"), figure.get_by_label("autoencoder")
    view.select_option("difference")
    assert shown() == "1-0-difference.png" and clip() == "none"
    model.select_option(index=1)
    assert shown() == "1-1-difference.png"
    assert figure.locator(".says").inner_text().startswith(f"{psnr_of(report, 1, 1):.2f} dB")
    view.select_option(index=0)
    assert shown() == "1-1.png" and "%" in clip()
    assert page.locator("img").evaluate_all("all => all.every(one => one.naturalWidth > 0)")
    assert page.evaluate("document.documentElement.scrollWidth") <= 1000
    page.close()
    assert not complaints


def middle(box: dict, along: float) -> tuple[float, float]:
    return box["x"] + box["width"] * along, box["y"] + box["height"] / 2


def psnr_of(report: Path, row: int, column: int) -> float:
    folder = report.with_name(report.stem + "_files")
    return metrics.psnr(*(images.read(folder / name) for name in (f"{row}.png", f"{row}-{column}.png")))


def test_taesana(tmp_path):
    folder = taesana_folder(tmp_path / "taesana", "encoder", "decoder")
    codec = codecs.load(f"taesana:{folder}", "cpu", "fp32")
    assert (codec.kind, codec.ratio, codec.scaling_factor) == ("TAESANA", 32, 1)
    cell, result = measure(codec, photograph(50, 70), repeats=1)
    assert cell.latent_shape == (32, 2, 3) and result.shape == (50, 70, 3)

    state = load_file(folder / "taesana_encoder.safetensors")
    assert sum(value.numel() for value in state.values()) == codec_numbers(taesana.encoder)
    x = images.from_host(photograph(64, 96))
    z = codec.encode(x)
    first = F.conv2d((x + 1) / 2, state["0.weight"], state["0.bias"], stride=2, padding=1)
    inner = torch.nn.Sequential(*list(taesana.load(folder, "encoder"))[1:])
    assert torch.allclose(z, inner(first), atol=1e-5)
    decoded = taesana.load(folder, "decoder")(z)
    assert torch.allclose(codec.decode(z), decoded * 2 - 1, atol=1e-5)


def codec_numbers(make) -> int:
    with torch.device("meta"):
        return sum(value.numel() for value in make().state_dict().values())


def test_taesana_without_its_files_says_how_to_get_them(tmp_path, monkeypatch):
    for parts, missing in (((), "decoder"), (("decoder",), "encoder")):
        folder = taesana_folder(tmp_path / f"without-{missing}", *parts)
        with pytest.raises(CheckpointError) as error:
            codecs.load(f"taesana:{folder}", "cpu", "fp32")
        said = str(error.value)
        assert f"taesana_{missing}.safetensors" in said and f"taesana_{missing}.pth" in said
        assert "github.com/madebyollin/taesd" in said and "weights_only=True" in said and "python -c" in said
    save_file({"0.weight": torch.zeros(2)}, folder / "taesana_encoder.safetensors")
    with pytest.raises(DCAEError, match="not TAESANA's encoder"):
        codecs.load(f"taesana:{folder}", "cpu", "fp32")


def test_taesanas_decoder_runs_after_a_sana_dc_ae_that_is_here(tmp_path, monkeypatch):
    """The demo model stands in for the sana DC-AE, whose file is 1.2 GB: it has as many channels."""
    folder = taesana_folder(tmp_path / "decoder-only", "decoder")
    ae = DCAE(DEMO, device="cpu", dtype="fp32")
    monkeypatch.setattr(codecs, "local", lambda cache_dir: [DEMO, "dc-ae-f32c32-sana-1.1"])
    asked = []
    monkeypatch.setattr(codecs, "DCAE", lambda *given: asked.append(given[0]) or ae)
    codec = codecs.load(f"taesana:{folder}", "cpu", "fp32")
    assert asked == ["dc-ae-f32c32-sana-1.1"]
    assert codec.name == f"taesana:{folder} after dc-ae-f32c32-sana-1.1"
    x = images.from_host(photograph(64, 96))
    z = codec.encode(x)
    assert torch.allclose(z, ae.encode(x) * ae.scaling_factor, atol=1e-5)
    assert torch.allclose(codec.decode(z), taesana.load(folder, "decoder")(z) * 2 - 1, atol=1e-5)
