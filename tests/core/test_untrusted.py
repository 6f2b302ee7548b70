"""What fuzzing has found, one by one: each is refused with a sentence that names the file."""

import io
import json
import os
import shutil
import struct
import tarfile
import zlib
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from dcae_core import DCAE, DEMO, VARIANTS, CheckpointError, DCAEError, ImageError, LatentError, images, latents
from dcae_core.batch import decode as decoding
from dcae_core.batch import shards, sources
from dcae_core.batch.encode import Options, open_job, save_part
from dcae_core.batch.job import Job
from dcae_core.batch.prepare import Geometry, prepare
from dcae_core.batch.shards import Row
from dcae_core.batch.sources import Item, Part, Unreadable
from dcae_core.batch.storage import Storage
from dcae_core.cli import main
from dcae_core.untrusted import MAX_HEADER_BYTES, MAX_JSON_BYTES, file_in_folder
from dcae_core.weights.checkpoint import Checkpoint, is_dcae

INDEX = "diffusion_pytorch_model.safetensors.index.json"


def refused(kind: type[DCAEError], words: str, work, *args) -> str:
    """The message of what must be refused, which must be one line."""
    with pytest.raises(kind, match=words) as error:
        work(*args)
    assert str(error.value).isprintable()
    assert len(str(error.value)) < 4000
    return str(error.value)


def empty_file(path: Path, tensors: dict[str, tuple[str, list[int]]], metadata: dict | None = None) -> Path:
    """A safetensors file of zeros that takes no room."""
    sizes, at = {"F32": 4, "F16": 2, "I8": 1, "C64": 8, "I64": 8}, 0
    header = {"__metadata__": metadata} if metadata else {}
    for name, (dtype, shape) in tensors.items():
        size = sizes[dtype] * torch.Size(shape).numel()
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [at, at + size]}
        at += size
    text = json.dumps(header).encode()
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        file.truncate(8 + len(text) + at)
    return path


@pytest.fixture
def demo_shapes(small_state) -> dict[str, tuple[str, list[int]]]:
    return {name: ("F32", list(t.shape)) for name, t in small_state.items()}


@pytest.mark.parametrize("claimed", [1 << 60, (1 << 64) - 1, MAX_HEADER_BYTES + 1])
def test_a_header_that_claims_to_be_huge(tmp_path, claimed):
    path = tmp_path / "x.safetensors"
    path.write_bytes(struct.pack("<Q", claimed) + b"{}")
    refused(CheckpointError, f"x.safetensors is not .*claims {claimed} bytes", Checkpoint, path)
    refused(LatentError, "x.safetensors is not", latents.read, path)


def test_pipes_and_devices_are_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "model.safetensors")
    os.mkfifo(tmp_path / "config.json")
    (tmp_path / "zero.safetensors").symlink_to("/dev/zero")
    (tmp_path / "loop.safetensors").symlink_to("loop.safetensors")
    (tmp_path / "folder.safetensors").mkdir()
    refused(CheckpointError, "holds no DC-AE", Checkpoint, tmp_path)
    for name in ("model", "zero", "loop"):
        path = tmp_path / f"{name}.safetensors"
        refused(CheckpointError, f"{name}.safetensors is neither a file nor", Checkpoint, path)
        refused(LatentError, f"{name}.safetensors", latents.read, path)
        refused(ImageError, f"{name}.safetensors", images.read, path)
        assert not is_dcae(path)
    shape = Geometry("crop", 64, 64, 32)
    assert isinstance(prepare(Item("x", path=str(tmp_path / "model.safetensors")), shape, str(tmp_path)), Unreadable)


def test_an_index_with_names_that_no_disk_takes(tmp_path):
    for name in ("x" * 300 + ".safetensors", "\ud800.safetensors", "a\0b.safetensors", "\x1b[31m.safetensors"):
        (tmp_path / INDEX).write_text(json.dumps({"weight_map": {"a": name}}))
        refused(CheckpointError, "lists 1 file. Not there: ", Checkpoint, tmp_path)
    for name in (".", "", "..", "/etc/passwd", "a/b.safetensors", "../x.safetensors", 3, None, ["x"]):
        (tmp_path / INDEX).write_text(json.dumps({"weight_map": {"a": name}}))
        refused(CheckpointError, "must name files of the same folder", Checkpoint, tmp_path)
    (tmp_path / INDEX).write_text(json.dumps({"weight_map": {str(i): f"{i}.safetensors" for i in range(60)}}))
    refused(CheckpointError, "Not there: .* and 57 more", Checkpoint, tmp_path)
    (tmp_path / INDEX).write_text(json.dumps({"weight_map": {str(i): f"{i}.safetensors" for i in range(20_000)}}))
    refused(CheckpointError, "lists 20000 files; the limit is 64", Checkpoint, tmp_path)
    (tmp_path / INDEX).write_bytes(b'{"weight_map": {"a": "' + b"x" * MAX_JSON_BYTES + b'"}}')
    refused(CheckpointError, "larger than 1 MiB", Checkpoint, tmp_path)
    for text in (b"[" * 100_000, b"\xff\xfe{", b"", b"9" * 10_000):
        (tmp_path / INDEX).write_bytes(text)
        refused(CheckpointError, "can't be read as JSON", Checkpoint, tmp_path)


@pytest.mark.parametrize("dtype", ["I8", "C64"])
def test_weights_that_are_no_floats(tmp_path, demo_shapes, dtype):
    name = next(iter(demo_shapes))
    path = empty_file(tmp_path / "x.safetensors", {**demo_shapes, name: (dtype, demo_shapes[name][1])})
    message = f"holds {name} as {dtype}"
    if dtype == "C64":  # older safetensors do not know it
        message = f"({message}|is not a readable safetensors file)"
    refused(CheckpointError, f"x.safetensors {message}", Checkpoint, path)


def test_counters_of_any_shape_and_name_are_left_out(tmp_path, small_state):
    more = {"decoder.conv_in.num_batches_tracked": torch.zeros(3, 3, dtype=torch.int64)}
    save_file({**small_state, **more}, tmp_path / "x.safetensors")
    ae = DCAE.from_file(tmp_path / "x.safetensors", device="cpu", dtype="fp32")
    assert ae.decode(torch.zeros(1, 32, 1, 1)).isfinite().all()


def test_messages_are_one_line_whatever_the_file_holds(tmp_path, demo_shapes, capsys):
    path = tmp_path / "x.safetensors"
    names = ["encoder.\x1b[31m\n", "encoder." + "x" * 100_000, "encoder.\u202e"]
    empty_file(path, {name: ("F32", [1]) for name in names})
    message = refused(CheckpointError, "x.safetensors is not a DC-AE", Checkpoint, path)
    assert r"\x1b[31m\n" in message and "x" * 200 not in message
    assert main(["info", str(path)]) == 1
    assert capsys.readouterr().err.count("\n") == 1
    empty_file(path, {**demo_shapes, "encoder.conv_out.weight": ("F32", [1] * 50_000)})
    refused(CheckpointError, "x.safetensors is nearest to", Checkpoint, path)


@pytest.mark.parametrize(
    "hints",
    [
        {"model_name": "f1c1" * 30_000},
        {"model_name": "f32c32" + "-mi" * 30_000},
        {"variant": [[]], "_name_or_path": {"a": 1}},
        {"model_name": "\ud800"},
    ],
)
def test_invalid_hints_are_passed_over_quickly(tmp_path, demo_shapes, hints):
    """Without limits the long names take minutes, since patterns try each place with each other."""
    path = empty_file(tmp_path / "model.safetensors", demo_shapes)
    (tmp_path / "config.json").write_text(json.dumps({"_class_name": "AutoencoderDC", **hints}))
    assert Checkpoint(path).choose().name == DEMO


@pytest.mark.parametrize(
    ("field", "value"),
    [("scaling_factor", v) for v in (10**400, float("nan"), "much", [0.3], True, 0)]
    + [("adaptive_channels", v) for v in (16, ["16"], [0], [1] * 1000)]
    + [("decoder_act_fns", v) for v in (3, ["silu"] * 100, [None])]
    + [("encoder_layers_per_block", v) for v in ([10**9] * 6, [[]])]
    + [("encoder_block_out_channels", v) for v in ([10**9] * 6, "wide", [128] * 10_000)],
)
def test_a_config_that_can_not_be_is_refused_by_field(tmp_path, demo_shapes, field, value):
    path = empty_file(tmp_path / "model.safetensors", demo_shapes)
    (tmp_path / "config.json").write_text(json.dumps({"_class_name": "AutoencoderDC", field: value}))
    refused(CheckpointError, f"model.safetensors.*config.json.*{field}", lambda: Checkpoint(path).choose())


def test_the_way_to_convert_a_pickle_runs_nothing_else(tmp_path):
    path = tmp_path / "x'); print('run.pt"
    path.write_bytes(b"\x80\x02}.")
    message = refused(CheckpointError, "is a PyTorch pickle", Checkpoint, path)
    assert "torch.load('FILE.pt', weights_only=True)" in message


def latent_metadata(**changes: str | None) -> dict[str, str]:
    fields = {"variant": DEMO, "height": "50", "width": "60", "scale": "raw", "scaling_factor": "1.322", **changes}
    return {name: value for name, value in fields.items() if value is not None}


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"height": "-5"}, "height '-5' is no number of pixels"),
        ({"height": "9" * 5000}, "is no number of pixels"),
        ({"width": None}, "width 'None' is no number of pixels"),
        ({"width": "1e2"}, "width '1e2'"),
        ({"height": "5000"}, "a picture of 60x5000 does not have"),
        ({"variant": "sdxl" * 1000}, "variant .* is no name"),
        ({"variant": "dc-ae-f64c128-in-1.0"}, "dc-ae-f64c128-in-1.0 has 128 channels"),
        ({"scale": "double"}, "scale 'double' is neither"),
        *[({"scale": "scaled", "scaling_factor": f}, "is no factor") for f in ("nan", "0", "inf", "-1", "", "1e-300")],
        ({"scale": "scaled", "scaling_factor": None}, "is no factor"),
        *[({"milliseconds": m}, "are not 1 number") for m in ("", "1,2", "-1", "1.5", "9" * 10, "1," * (1 << 20))],
    ],
)
def test_latents_with_metadata_that_makes_no_sense(tmp_path, changes, words):
    save_file({"latents": torch.zeros(1, 32, 2, 2)}, tmp_path / "a.safetensors", latent_metadata(**changes))
    refused(LatentError, f"a.safetensors.*{words}", latents.read, tmp_path / "a.safetensors")


@pytest.mark.parametrize(
    "alpha",
    [
        torch.zeros(50, 60),
        torch.zeros(1, 50, 60),
        *(torch.zeros(s, dtype=torch.uint8) for s in ((50, 60), (1, 60, 50), ())),
    ],
)
def test_latents_with_an_alpha_of_other_pictures(tmp_path, alpha):
    tensors = {"latents": torch.zeros(1, 32, 2, 2), "alpha": alpha}
    save_file(tensors, path := tmp_path / "a.safetensors", latent_metadata())
    refused(LatentError, r"a.safetensors.*its alpha is .*, where U8 \[1, 50, 60\] is needed", latents.read, path)
    save_file(tensors, path, latent_metadata(height=None, width=None))
    refused(LatentError, "a.safetensors.*where a height and a width is needed", latents.read, path)


@pytest.mark.parametrize("shape", [(32, 2, 2), (1, 32, 1, 2, 2), (0, 32, 2, 2), (), (1, 4, 2, 2)])
def test_latents_of_shapes_that_are_none(tmp_path, shape):
    save_file({"latents": torch.zeros(shape)}, tmp_path / "a.safetensors", latent_metadata())
    refused(LatentError, "a.safetensors.*latents of shape", latents.read, tmp_path / "a.safetensors")


def test_latents_that_are_huge_whole_or_not_finite(tmp_path):
    path = tmp_path / "a.latent"
    empty_file(path, {"latent_tensor": ("F32", [1, 32, 2897, 2897])})  # 1 GiB, which takes no room on the disk
    refused(LatentError, "a.latent.*latents of shape", latents.read, path)
    save_file({"latent_tensor": torch.zeros(1, 32, 2, 2, dtype=torch.int64)}, path)
    refused(LatentError, "a.latent.*I64, not floating-point", latents.read, path)
    z = torch.zeros(1, 32, 2, 2)
    z[0, 5, 1, 0] = z[0, 7, 1, 1] = float("nan")
    save_file({"latent_tensor": z}, path)
    refused(LatentError, r"a.latent.*2 of 128 NaN or infinite, the first at \[0, 5, 1, 0\]", latents.read, path)


def row(**changes) -> Row:
    z = torch.ones(32, 2, 2, dtype=torch.float16)
    fields = {"key": "k.jpg", "latents": z, "flipped": None, "size": (50, 60), "source_size": (50, 60)}
    return Row(**{**fields, "crop": (0.0, 0.0, 60.0, 50.0), "sha256": "0" * 64, **changes})


COMMON = {"variant": DEMO, "dtype": "fp16", "scale": "raw", "scaling_factor": "1.322"}


@pytest.mark.parametrize("kind", shards.FORMATS)
@pytest.mark.parametrize(
    ("changes", "common"),
    [
        ({"size": (50, 600)}, {}),
        ({"size": (0, 60)}, {}),
        ({"source_size": (50, -60)}, {}),
        ({"crop": (0.0, 0.0, float("inf"), 1.0)}, {}),
        ({"key": ""}, {}),
        ({"latents": torch.full((32, 2, 2), float("nan"), dtype=torch.float16)}, {}),
        ({"latents": torch.ones(16, 2, 2, dtype=torch.float16)}, {}),
        ({"flipped": torch.ones(32, 2, 1, dtype=torch.float16)}, {}),
        ({}, {"variant": ""}),
        ({}, {"scale": "scaled", "scaling_factor": "nan"}),
    ],
)
def test_rows_that_encoding_does_not_give(tmp_path, kind, changes, common):
    name = f"part-000000{shards.suffix(kind)}"
    shards.write(tmp_path / name, kind, [row(**changes)], {**COMMON, **common})
    refused(LatentError, "part-000000.*Encode its part again", lambda: list(shards.read(Storage(tmp_path), name)))


def test_parts_that_are_damaged_or_no_files(tmp_path):
    def read(name: str) -> list:
        return list(shards.read(Storage(tmp_path), name))

    os.mkfifo(tmp_path / "part-000000.parquet")
    (tmp_path / "part-000001").mkdir()
    os.mkfifo(tmp_path / "part-000001" / "a.safetensors")
    (tmp_path / "part-000002.tar").write_bytes(b"\x1f\x8b" + bytes(100))
    with tarfile.open(tmp_path / "part-000003.tar", "w") as archive:
        archive.addfile(tarfile.TarInfo("x.safetensors"), io.BytesIO())
        archive.members[-1].type = tarfile.DIRTYPE
    shards.write(tmp_path / "part-000004.parquet", "parquet", [row()], COMMON)
    whole = (tmp_path / "part-000004.parquet").read_bytes()
    (tmp_path / "part-000004.parquet").write_bytes(whole[: len(whole) // 2])
    for name in ("part-000000.parquet", "part-000001", "part-000002.tar", "part-000003.tar", "part-000004.parquet"):
        refused(LatentError, name, read, name)


def test_rows_that_are_far_larger_than_their_file(tmp_path, monkeypatch):
    monkeypatch.setattr(shards, "EXTRA_BYTES", 1 << 20)
    shards.write(tmp_path / "a.parquet", "parquet", [row()] * 5000, COMMON)
    pq.write_table(pq.read_table(tmp_path / "a.parquet"), tmp_path / "a.parquet")
    assert (tmp_path / "a.parquet").stat().st_size < 1 << 20, "Parquet keeps equal rows once"
    refused(LatentError, "a.parquet.*far larger", lambda: list(shards.read(Storage(tmp_path), "a.parquet")))


def part(folder: Path, number: int, variant: str, **changes) -> None:
    (folder / "done").mkdir(parents=True, exist_ok=True)
    (folder / "done" / f"part-{number:06d}.json").write_text("{}")
    shards.write(folder / f"part-{number:06d}", "safetensors", [row(**changes)], {**COMMON, "variant": variant})


def test_latents_of_another_variant_of_the_same_shape(tmp_path, capsys):
    """sana's and the demo's latents have the same shape."""
    sana = VARIANTS["dc-ae-f32c32-sana-1.0"]
    latents.write(tmp_path / "a.safetensors", torch.zeros(1, 32, 2, 2), sana, (50, 60))
    assert main(["decode", str(tmp_path / "a.safetensors"), "--model", DEMO, "--device", "cpu"]) == 1
    output_text = capsys.readouterr().err
    assert f"made with {sana.name}, but {DEMO} is loaded" in output_text and "a.safetensors" in output_text
    part(tmp_path / "parts", 0, DEMO)
    part(tmp_path / "parts", 1, sana.name)  # only the second part is another's
    options = decoding.DecodeOptions(str(tmp_path / "parts"), str(tmp_path / "back"), device="cpu", dtype="fp32")
    words = f"part-000001.*'k.jpg' are of {sana.name}, but {DEMO} is loaded"
    refused(LatentError, words, decoding.decode, options)
    assert [path.name for path in (tmp_path / "back").glob("*.png")] == ["k.jpg.png"]


def test_keys_that_are_no_file_names(tmp_path):
    part(tmp_path / "parts", 0, DEMO, key="../../a\0b\n.jpg")
    options = decoding.DecodeOptions(str(tmp_path / "parts"), str(tmp_path / "back"), device="cpu", dtype="fp32")
    decoding.decode(options)
    assert [path.name for path in (tmp_path / "back").glob("*.png")] == ["a_b_.jpg.png"]
    part(tmp_path / "parts", 1, DEMO, key="x" * 300)
    part(tmp_path / "parts", 2, DEMO, key="x" * 301)
    part(tmp_path / "parts", 3, DEMO, key="..")
    decoding.decode(options)
    names = {path.name for path in (tmp_path / "back").iterdir()} - {"decoded"}
    assert len(names) == 4 and all(len(name) < 60 for name in names)


def saved(mode: str, kind: str, **options) -> bytes:
    buffer = io.BytesIO()
    Image.new(mode, (40, 30)).save(buffer, kind, **options)
    return buffer.getvalue()


def test_pictures_that_would_start_a_program(tmp_path, monkeypatch):
    """For EPS Pillow runs Ghostscript, whatever the file's name."""
    started = []
    monkeypatch.setattr("subprocess.Popen", lambda *args, **options: started.append(args))
    (tmp_path / "a.png").write_bytes(saved("RGB", "EPS"))
    refused(ImageError, "a.png can't be read as a picture", images.read, tmp_path / "a.png")
    shape = Geometry("crop", 64, 64, 32)
    assert isinstance(prepare(Item("a", (tmp_path / "a.png").read_bytes()), shape, ""), Unreadable)
    assert not started


def test_decompression_bombs(tmp_path, monkeypatch):
    data = bytearray(saved("L", "PNG"))
    data[16:24] = struct.pack(">II", 50_000, 50_000)
    data[29:33] = struct.pack(">I", zlib.crc32(data[12:29]))
    (tmp_path / "a.png").write_bytes(data)
    refused(
        ImageError, "a.png is a picture of more than 178956970 pixels: scale it down", images.read, tmp_path / "a.png"
    )
    assert prepare(Item("a", bytes(data)), Geometry("crop", 64, 64, 32), "").reason.startswith("huge: ")


def test_decoders_that_raise_of_any_kind(tmp_path):
    """Cut at each byte, and with each byte of the front inverted: a picture, or an ImageError."""
    path, refusals = tmp_path / "a.bin", 0
    for kind in ("PNG", "JPEG", "GIF", "TIFF", "BMP", "WEBP", "TGA", "ICO"):
        whole = saved("RGB", kind)
        for at in range(0, min(len(whole), 120), 3):
            for data in (whole[:at], whole[:at] + bytes([whole[at] ^ 255]) + whole[at + 1 :]):
                path.write_bytes(data)
                try:
                    picture = images.read(path)
                    assert picture.numel() and picture.min() >= 0 and picture.max() <= 1
                except ImageError as error:
                    assert "a.bin" in str(error)
                    refusals += 1
    assert refusals > 100


def job(tmp_path: Path):
    """A job of four pictures in two parts, of which the first is done; its options."""
    (tmp_path / "in").mkdir(exist_ok=True)
    for i in range(4):
        (tmp_path / "in" / f"{i}.png").write_bytes(saved("L", "PNG"))
    folders = str(tmp_path / "in"), str(tmp_path / "out")
    options = Options(*folders, DEMO, size=(64, 64), kind="safetensors", store="fp16", part_size=2)
    made = open_job(options, VARIANTS[DEMO])
    save_part(made, made.parts()[0], [row(key="0.png"), row(key="1.png")], [], 0.5)
    return options


DAMAGE = (b"", b"{", b"null", b"[]", b"\xff\xfe", b'{"part": 1}', b"[" * 100_000)


@pytest.mark.parametrize("name", ["job.json", "done/part-000000.json", "parts/000000.jsonl"])
@pytest.mark.parametrize("damage", DAMAGE, ids=range(len(DAMAGE)))
def test_a_job_whose_files_are_damaged_says_which_and_changes_nothing(tmp_path, name, damage):
    options = job(tmp_path)
    (tmp_path / "out" / name).write_bytes(damage)
    before = {path: path.read_bytes() for path in (tmp_path / "out").rglob("*") if path.is_file()}

    def go_on() -> None:
        again = open_job(options, VARIANTS[DEMO])
        again.parts()
        again.summary()

    refused(DCAEError, name if damage != b'{"part": 1}' or name != "job.json" else "other settings", go_on)
    assert before == {path: path.read_bytes() for path in (tmp_path / "out").rglob("*") if path.is_file()}


def test_what_the_message_of_a_damaged_part_advises_works(tmp_path):
    options = job(tmp_path)
    done = tmp_path / "out" / "done" / "part-000000.json"
    done.write_text("{")
    message = refused(DCAEError, "Remove it, and its part is done again", open_job(options, VARIANTS[DEMO]).summary)
    assert str(done) in message
    done.unlink()
    again = open_job(options, VARIANTS[DEMO])
    assert again.finished() == [] and len(again.parts()) == 2


def test_a_listing_that_is_lost_does_not_cost_what_is_done(tmp_path):
    """New parts would take the numbers, and so the files, of those that are done."""
    options = job(tmp_path)
    (tmp_path / "in" / "4.png").write_bytes(saved("L", "PNG"))
    assert len(open_job(options, VARIANTS[DEMO]).parts()) == 3
    listings = tmp_path / "out" / "parts"
    kept = (listings / "000000.jsonl").read_text()
    (listings / "000000.jsonl").unlink()
    refused(DCAEError, "a listing is missing", open_job(options, VARIANTS[DEMO]).parts)
    shutil.rmtree(listings)
    refused(DCAEError, "part-000000 is done, but not listed", open_job(options, VARIANTS[DEMO]).parts)
    listings.mkdir()
    (listings / "000000.jsonl").write_text(kept[:-5])
    refused(DCAEError, "000000.jsonl is damaged", open_job(options, VARIANTS[DEMO]).parts)
    (listings / "000000.jsonl").write_text(kept.replace("1.png", "0.png"))
    refused(DCAEError, "0.png is listed twice", open_job(options, VARIANTS[DEMO]).parts)
    for field in ("paths", "keys", "number", "group", "kind"):
        for other in (3, 1.5, True, None, [3], {}):
            wrong = json.dumps(json.loads(kept.splitlines()[0]) | {field: other})
            (listings / "000000.jsonl").write_text(wrong + "\n")
            refused(DCAEError, "is damaged", open_job(options, VARIANTS[DEMO]).parts)
    (listings / "000000.jsonl").write_text(kept.replace('"group": 0', '"group": 7'))  # else each would be done again
    refused(DCAEError, "000000.jsonl is damaged", open_job(options, VARIANTS[DEMO]).parts)


def test_a_listing_does_not_lead_out_of_its_source(tmp_path, monkeypatch):
    (tmp_path / "secret.png").write_bytes(saved("L", "PNG"))
    options = job(tmp_path)
    listing = tmp_path / "out" / "parts" / "000000.jsonl"
    kept = listing.read_text()
    for path in (tmp_path / "secret.png", tmp_path / "in" / ".." / "secret.png", "secret.png", f"{tmp_path}/in"):
        listing.write_text(kept.replace(f"{tmp_path}/in/3.png", str(path)))
        refused(DCAEError, "is not in .*Put it back", open_job(options, VARIANTS[DEMO]).parts)
    listing.write_text(kept.replace('"2.png"', '""'))
    refused(DCAEError, "000000.jsonl is damaged", open_job(options, VARIANTS[DEMO]).parts)
    import fsspec

    fsspec.filesystem("memory").pipe({"/set/in/a.png": b"", "/set/in/b/c.png": b"", "/secret.png": b""})
    monkeypatch.chdir(tmp_path)
    addresses = ("in", "in/", "in/*.png", "in/0.png", "./in/../in", f"file://{tmp_path}/in", "memory://set/in")
    for i, source in enumerate(addresses):
        for _ in range(2):
            listed = Job(source, str(tmp_path / f"job{i}"), {}).parts()
        assert len(listed) == 1 and sources.outside(listed, source) is None
    for source in ("in/0.png", "in/*.png", "memory://set/in"):
        assert sources.outside([Part(0, "files", (f"{tmp_path}/secret.png",), ("a",))], source)
    assert sources.outside([Part(0, "files", ("/secret.png",), ("a",))], "memory://set/in") == "/secret.png"


def test_sources_with_holes_and_without_bytes(tmp_path):
    def found(name: str) -> list:
        (part,) = sources.parts(str(tmp_path / name), 10)
        return list(sources.items(part, str(tmp_path)))

    png = saved("L", "PNG")
    with tarfile.open(tmp_path / "a.tar", "w") as archive:
        holes = tarfile.TarInfo("hole.png")
        sparse = {"major": "0", "minor": "1", "map": f"0,{len(png)}", "size": str(1 << 40)}
        holes.size, holes.pax_headers = len(png), {f"GNU.sparse.{name}": value for name, value in sparse.items()}
        archive.addfile(holes, io.BytesIO(png))
        plain = tarfile.TarInfo("plain.png")
        plain.size = len(png)
        archive.addfile(plain, io.BytesIO(png))
    hole, whole = found("a.tar")
    assert hole.reason == f"huge: {1 << 40} bytes" and whole.data == png
    with tarfile.open(tmp_path / "b.tar", "w:gz") as archive:
        archive.addfile(plain, io.BytesIO(png))
    assert [type(one) for one in found("b.tar")] == [Unreadable]


def test_names_stay_inside_their_folder(tmp_path):
    (tmp_path / "input" / "sub").mkdir(parents=True)
    (tmp_path / "input-2").mkdir()
    for path in ("secret", "input/a", "input/sub/b", "input-2/c"):
        (tmp_path / path).write_text("x")
    folder = tmp_path / "input"
    assert file_in_folder(folder, "a") == str(folder / "a")
    assert file_in_folder(folder, "sub/../a") == str(folder / "a")
    assert file_in_folder(folder, "sub/b") == str(folder / "sub" / "b")
    for name in (
        "../secret",
        str(tmp_path / "secret"),
        "/etc/passwd",
        "../input-2/c",
        "sub",
        "",
        ".",
        "absent",
        "a\0b",
    ):
        assert file_in_folder(folder, name) is None, name
