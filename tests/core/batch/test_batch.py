"""Encode data sets to latents and decode them: sizes, formats, resuming, kills and engines."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from dcae_core import DCAE, DEMO, DCAEError, images
from dcae_core.batch import local_engine
from dcae_core.batch.device import Device
from dcae_core.batch.encode import Batcher, Options, open_job, open_model
from dcae_core.batch.prepare import Geometry, PreparedImage, prepare
from dcae_core.batch.sources import Item, Unreadable
from dcae_core.cli import main
from dcae_core.compare.metrics import psnr
from tests import datasets
from tests.datasets import FP32, done, encoded, rows, skipped


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """40 crops of photographs, 9 unusual and 8 broken pictures, and a text file."""
    pictures = tmp_path_factory.mktemp("pictures")
    datasets.pieces(pictures, 40, (60, 130))
    datasets.unusual_files(pictures / "odd ones")
    datasets.broken_files(pictures / "bad", 2)
    (pictures / "readme.txt").write_text("not a picture")
    return pictures


def same(a: dict, b: dict) -> bool:
    return a.keys() == b.keys() and all(same_row(a[key], b[key]) for key in a)


def same_row(a, b) -> bool:
    alike = (a.latents - b.latents).abs().max() < 2e-3 * a.latents.abs().max()  # rounding depends on the batch
    return bool(alike) and (a.size, a.source_size, a.crop, a.sha256) == (b.size, b.source_size, b.crop, b.sha256)


def test_every_source_is_a_row_or_has_a_reason(folder, tmp_path):
    encoded_rows, reasons = encoded(folder, tmp_path / "out"), skipped(tmp_path / "out")
    sources = {p.relative_to(folder).as_posix() for p in folder.rglob("*.*") if p.suffix != ".txt"}
    assert encoded_rows.keys() | reasons.keys() == sources and not encoded_rows.keys() & reasons.keys()
    assert reasons.keys() == {key for key in sources if key.startswith("bad/")}
    assert all(reasons.values())
    assert "truncated" in reasons["bad/truncated0.jpg"]


def test_a_row_is_what_the_core_encodes(folder, tmp_path):
    ae = DCAE(DEMO, "cpu", "fp32")
    encoded_rows = encoded(folder, tmp_path / "out", fit="pad", flip=True)
    for key in ("even/00000.jpg", "odd/00001.jpg", "odd ones/turned.jpg", "odd ones/dot.png"):
        picture = images.read(folder / key)
        wanted = ae.encode(images.from_host(picture))[0]
        row = encoded_rows[key]
        assert row.size == row.source_size == tuple(picture.shape[1:3])
        assert (row.latents - wanted).abs().max() < 2e-3 * wanted.abs().max()
        mirrored = ae.encode(images.from_host(picture.flip(2)))[0]
        assert (row.flipped - mirrored).abs().max() < 2e-3 * mirrored.abs().max()


def test_fits(folder, tmp_path):
    crop = encoded(folder, tmp_path / "crop")
    assert {tuple(row.latents.shape) for row in crop.values()} == {(32, 2, 2)}
    row = crop["odd ones/line.png"]
    assert row.source_size == (2, 300) and np.allclose(row.crop, (149, 0, 151, 2))
    bucket = encoded(folder, tmp_path / "bucket", fit="bucket", size=(96, 96))
    shapes = {row.size for row in bucket.values()}
    assert len(shapes) > 1 and all(side % 32 == 0 for size in shapes for side in size)
    assert bucket["odd ones/line.png"].size == (64, 160) or bucket["odd ones/line.png"].size[1] > 96
    scaled = encoded(folder, tmp_path / "scaled", scaled=True)
    assert torch.allclose(scaled["even/00000.jpg"].latents, crop["even/00000.jpg"].latents * 1.322, rtol=2e-3)


@pytest.mark.parametrize("enough", [True, False], ids=["budget for two", "budget for one"])
def test_cores_encode_in_parallel_if_the_budget_allows(folder, tmp_path, monkeypatch, enough):
    """A batch of 4 is 2 pictures for each of 2 threads. With a smaller budget, sequential runs use all threads."""
    budget = DCAE(DEMO, "cpu", "fp32").plan("encode", 64, 64, 2).peak_bytes * (2 if enough else 1)
    before, seen, running = torch.get_num_threads(), [], []
    original = DCAE.encode

    def recording_encode(ae, x, *args, **kwargs):
        running.append(x)
        seen.append((torch.get_num_threads(), len(running), len(x)))
        try:
            return original(ae, x, *args, **kwargs)
        finally:
            running.pop()

    wanted = encoded(folder, tmp_path / "wanted")
    monkeypatch.setattr(DCAE, "encode", recording_encode)
    try:
        torch.set_num_threads(2)
        assert same(wanted, encoded(folder, tmp_path / "out", batch=4, budget=str(budget)))
        with ThreadPoolExecutor(1) as pool:
            assert pool.submit(torch.get_num_threads).result() == 2, "threads started later use all cores"
    finally:
        torch.set_num_threads(before)
    of_two = [(threads, at_once) for threads, at_once, pictures in seen if pictures == 2]
    assert len(of_two) > 10 and max(pictures for _, _, pictures in seen) == 2
    assert {threads for threads, _ in of_two} == {1 if enough else 2}
    assert max(at_once for _, at_once in of_two) == (2 if enough else 1)


def test_fp16_is_not_encoded_in_parallel():
    """A run that overflows converts the shared weights to fp32, which would affect parallel runs."""
    options = Options("in", "out", DEMO, device="cpu", dtype="fp16")
    assert Device(open_model(options), "encode", 8).parallel == 1


@given(
    rows=st.integers(1, 5000),
    columns=st.integers(1, 5000),
    side=st.sampled_from([256, 512, 1024]),
    ratio=st.sampled_from([32, 64, 128]),
)
def test_buckets(rows, columns, side, ratio):
    height, width = Geometry("bucket", side, side, ratio).target(rows, columns)
    assert height % ratio == width % ratio == 0 and min(height, width) >= ratio
    assert height * width <= 1.6 * side * side
    assert Geometry("bucket", side, side, ratio).target(columns, rows) == (width, height)
    wanted = min(max(np.log(columns / rows), -np.log(3)), np.log(3))
    assert abs(np.log(width / height) - wanted) <= np.log(3) / 2 + 1e-9, "at most half of the step from 1:1 to 3:1"


def test_sources_and_formats_give_the_same_rows(folder, tmp_path):
    wanted = encoded(folder, tmp_path / "from-folder")
    (tmp_path / "tars").mkdir()
    datasets.as_tar(folder, tmp_path / "tars" / "a.tar")
    datasets.as_parquet(folder, tmp_path / "a.parquet")
    assert same(encoded(tmp_path / "tars", tmp_path / "from-tar", kind="webdataset"), wanted)
    from_parquet = encoded(tmp_path / "a.parquet", tmp_path / "from-parquet", kind="safetensors")
    assert same(from_parquet, wanted)
    assert "readme.txt" in skipped(tmp_path / "from-parquet"), "a row without a picture is reported"
    globbed = encoded(f"{folder}/odd/*.jpg", tmp_path / "globbed")
    assert globbed.keys() == {key.removeprefix("odd/") for key in wanted if key.startswith("odd/")}


def test_a_damaged_tar_gives_what_comes_before_the_damage(folder, tmp_path):
    (tmp_path / "tars").mkdir()
    datasets.as_tar(folder / "even", tmp_path / "tars" / "a.tar")
    datasets.as_tar(folder / "odd", tmp_path / "tars" / "b.tar")
    whole = (tmp_path / "tars" / "a.tar").read_bytes()
    (tmp_path / "tars" / "a.tar").write_bytes(whole[: len(whole) // 2])
    encoded_rows, reasons = encoded(tmp_path / "tars", tmp_path / "out"), skipped(tmp_path / "out")
    assert 5 < sum(key.startswith("0") for key in encoded_rows) < 40
    assert any("a.tar" in key for key in reasons)
    assert sum(int(key[:5]) % 2 for key in encoded_rows) == 20, "all of b.tar"


def test_resuming_does_what_is_new_and_nothing_else(tmp_path):
    source, target = tmp_path / "in", tmp_path / "out"
    datasets.pieces(source, 20, (60, 80))
    first = encoded(source, target)
    stamps = {p: p.stat().st_mtime_ns for p in target.glob("part-*")}
    datasets.pieces(source / "more", 5, (60, 80), seed=1)
    again = encoded(source, target)
    assert same({key: again[key] for key in first}, first) and len(again) == 25
    assert all(p.stat().st_mtime_ns == stamp for p, stamp in stamps.items())
    with pytest.raises(DCAEError, match=r"other settings \(flip: False, now True\)"):
        encoded(source, target, flip=True)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "diary.txt").write_text("dear")
    with pytest.raises(DCAEError, match="not empty"):
        encoded(source, tmp_path / "mine")


@pytest.mark.slow
def test_killed_at_any_moment_nothing_is_lost_or_duplicated(tmp_path):
    source, target, rng = tmp_path / "in", tmp_path / "out", random.Random(0)
    datasets.pieces(source, 240, (60, 80))
    bad = datasets.broken_files(source / "bad", 2)
    command = [sys.executable, "-m", "dcae_core", "batch", "encode", source, target, "--size", "64"]
    command += ["--part-size", "4", "--workers", "1", "--device", "cpu", "--dtype", "fp32"]
    progress, before_all = [], set(psutil.pids())
    for _ in range(4):
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        before, deadline = len(done(target)), time.monotonic() + 60
        while len(done(target)) <= before and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.02)
        time.sleep(rng.uniform(0, 0.3))
        process.send_signal(signal.SIGKILL)
        process.wait()
        progress.append(len(done(target)))
    assert progress == sorted(progress) and progress[0] > 0 and progress[0] < 64
    assert subprocess.run(command, capture_output=True).returncode == 0
    encoded_rows = rows(target)
    assert len(encoded_rows) == 240 and skipped(target).keys() == {f"bad/{name}" for name in bad}
    assert not list(target.rglob("*.part"))
    deadline = time.monotonic() + 30
    while left := [p.pid for p in psutil.process_iter() if p.pid not in before_all and "forkserver" in command_line(p)]:
        assert time.monotonic() < deadline, f"processes {left} outlived those that were killed"
        time.sleep(0.2)


def test_a_worker_that_dies_costs_nothing(folder, tmp_path):
    options = Options(str(folder), str(tmp_path / "out"), DEMO, size=(64, 64), part_size=4, batch=2, **FP32)
    ae = open_model(options)
    job = open_job(options, ae.variant)
    killed = []

    def kill_workers(part) -> None:
        if not killed:
            killed.extend(children())
            for pid in killed:
                os.kill(pid, signal.SIGKILL)

    local_engine.run(options, job, job.parts(), ae, 1, kill_workers)
    job.report(job.summary())
    assert killed
    sources = {p.relative_to(folder).as_posix() for p in folder.rglob("*.*") if p.suffix != ".txt"}
    assert rows(tmp_path / "out").keys() | skipped(tmp_path / "out").keys() == sources


def children() -> list[int]:
    """Return worker processes: children of the fork server, which is a child of this process."""
    servers = [p for p in psutil.Process().children() if "forkserver" in command_line(p)]
    return [child.pid for server in servers for child in server.children()]


def command_line(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline())
    except psutil.Error:
        return ""


def test_batches_of_one_size_and_few_at_a_time():
    batcher, seen = Batcher(4), []
    for i in range(100):
        pixels = np.zeros((3, 32, 32 * (i % 7 + 1)), np.uint8)
        image = PreparedImage(str(i), "", pixels, None, (32, 32), (32, 32), (0, 0, 1, 1))
        seen += [full] if (full := batcher.add(image)) else []
        assert i + 1 - sum(map(len, seen)) < 16
    seen += batcher.rest()
    assert sorted(int(image.key) for batch in seen for image in batch) == list(range(100))
    assert all(len({image.pixels.shape for image in batch}) == 1 and len(batch) <= 4 for batch in seen)


def test_a_huge_picture_is_skipped_unread(tmp_path):
    Image.new("L", (4000, 3000)).save(tmp_path / "huge.png")
    shape = Geometry("crop", 64, 64, 32, max_pixels=1 << 20)
    result = prepare(Item("huge.png", path=str(tmp_path / "huge.png")), shape, str(tmp_path))
    assert isinstance(result, Unreadable) and result.reason.startswith("huge: 4000x3000")


def test_there_and_back(folder, tmp_path, capsys):
    command = ["batch", "encode", str(folder), str(tmp_path / "latents"), "--fit", "pad", "--workers", "1", "--scaled"]
    assert main([*command, "--device", "cpu", "--dtype", "fp32", "--metrics", str(tmp_path / "m.jsonl")]) == 0
    output_text = capsys.readouterr().out
    assert "49 pictures" in output_text and "8 skipped" in output_text and "images/s" in output_text
    lines = [json.loads(line) for line in (tmp_path / "m.jsonl").read_text().splitlines()]
    assert sum(line["images"] for line in lines) == 49
    back = ["batch", "decode", str(tmp_path / "latents"), str(tmp_path / "back"), "--device", "cpu", "--dtype", "fp32"]
    assert main(back) == 0 and main(back) == 0
    for key in ("even/00000.jpg", "odd ones/grey.jpg"):
        picture = images.read(folder / key)
        again = images.read(tmp_path / "back" / f"{key}.png")
        assert again.shape == picture.shape and psnr(picture, again) > 20
    assert main(["batch", "decode", str(folder), str(tmp_path / "never")]) == 1
    encoded(folder, tmp_path / "others", fit="pad")
    capsys.readouterr()
    assert main(["batch", "decode", str(tmp_path / "others"), *back[3:]]) == 1
    assert "holds the pictures of other latents" in capsys.readouterr().err


def test_errors_are_reported_before_anything_is_written(folder, tmp_path, monkeypatch, capsys):
    """So the corrected command finds its destination empty."""
    out = tmp_path / "out"
    (tmp_path / "empty").mkdir()
    command = ["batch", "encode", str(folder), str(out), "--size", "64", "--device", "cpu"]
    for wrong, message in (
        (["batch", "encode", str(tmp_path / "nope"), str(out)], "There is no file or folder"),
        (["batch", "encode", str(tmp_path / "empty"), str(out)], "There are no pictures"),
        ([*command, "--model", "dc-ae-f32c32-sana-1.1"], "dcae download"),
    ):
        assert main(wrong) == 1 and message in capsys.readouterr().err
    for module, engine in (("pyarrow", "local"), ("ray", "ray")):
        with monkeypatch.context() as patch:
            patch.setitem(sys.modules, module, None)
            patch.setitem(sys.modules, f"{module}.parquet", None)
            assert main([*command, "--engine", engine]) == 1
            assert f"pip install {'fsspec pyarrow' if engine == 'local' else chr(39) + 'ray[data]'}" in (
                capsys.readouterr().err
            )
    assert not out.exists() or not list(out.iterdir())


def test_decoding_again_and_to_other_files(folder, tmp_path, capsys):
    encoded(folder / "even", tmp_path / "in")
    back = ["batch", "decode", str(tmp_path / "in"), str(tmp_path / "back"), "--device", "cpu"]
    assert main(back) == 0
    capsys.readouterr()
    assert main(back) == 0
    assert f"all that is in {tmp_path / 'in'} is in {tmp_path / 'back'}" in capsys.readouterr().out
    assert main([*back, "--format", "jpg"]) == 1
    assert "holds these pictures as .png files: name another folder" in capsys.readouterr().err


@pytest.mark.slow
def test_ray_gives_the_same_rows(folder, tmp_path):
    pytest.importorskip("ray", reason="Ray is not installed: the Ray engine was not tested")
    wanted = encoded(folder, tmp_path / "local")
    script = (
        "import sys; from dcae_core.batch import run; from dcae_core.batch.encode import Options\n"
        f"options = Options(*sys.argv[1:3], {DEMO!r}, size=(64, 64), part_size=16, **{FP32!r})\n"
        "run.encode(options, 'ray', actors=2)"
    )
    command = [sys.executable, "-c", script, folder, tmp_path / "ray"]
    finished = subprocess.run(command, capture_output=True, text=True, timeout=300, cwd=Path(__file__).parents[3])
    assert finished.returncode == 0, finished.stderr[-3000:]
    assert same(rows(tmp_path / "ray"), wanted) and skipped(tmp_path / "ray") == skipped(tmp_path / "local")
