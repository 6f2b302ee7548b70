"""Data sets: keys and file names, options, concurrent writes and leftover files."""

import io
import json
import os
import subprocess
import sys
import tarfile
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from dcae_core import DEMO, VARIANTS, DCAEError
from dcae_core.batch import decode as decoding
from dcae_core.batch import names as naming
from dcae_core.batch import shards, sources
from dcae_core.batch.encode import Encoder, Options, geometry, open_job, open_model, save_part
from dcae_core.batch.job import Summary
from dcae_core.batch.prepare import Geometry, PreparedImage, prepare
from dcae_core.batch.shards import Row
from dcae_core.batch.sources import Item, Unreadable
from dcae_core.batch.storage import Storage, machine_id
from dcae_core.cli import main
from tests import datasets
from tests.datasets import FP32, done, encoded, rows, skipped, tar


def test_untrusted_keys_stay_in_the_folder(tmp_path):
    (tmp_path / "in").mkdir()
    datasets.pieces(tmp_path / "pieces", 2, (40, 50))
    with tarfile.open(tmp_path / "in" / "a.tar", "w") as archive:
        for name in ("../../escaped.jpg", "/absolute.jpg"):
            archive.add(tmp_path / "pieces" / "even" / "00000.jpg", name)
            archive.members[-1].name = name
    for kind in ("safetensors", "webdataset"):
        encoded(tmp_path / "in", tmp_path / kind, kind=kind)
    decoding.decode(decoding.DecodeOptions(str(tmp_path / "safetensors"), str(tmp_path / "back"), device="cpu"))
    assert not list(tmp_path.parent.glob("escaped*")) and not list(tmp_path.glob("escaped*"))
    assert not Path("/absolute.jpg.png").exists()
    assert {p.name for p in (tmp_path / "back").glob("*.png")} == {"escaped.jpg.png", "absolute.jpg.png"}


def dot(side: int = 8) -> bytes:
    return saved(Image.new("RGB", (side, side), (side, 100, 200)))


def saved(picture: Image.Image) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, "PNG")
    return buffer.getvalue()


def parquet(path: Path, keys: list | None, count: int = 0) -> None:
    """Write pictures of 1x1, 2x2, ..., with `keys`, or without a column of keys."""
    pictures = [dot(i + 1) for i in range(count or len(keys))]
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table({"image": pictures, **({} if keys is None else {"key": keys})}), path)


def decoded(source: Path, target: Path, **options) -> list[str]:
    """Decode; return the names of pictures in `target`."""
    decoding.decode(decoding.DecodeOptions(str(source), str(target), **{"device": "cpu", "dtype": "fp32", **options}))
    assert not list(target.glob("*.part")), "unfinished files"
    return sorted(p.relative_to(target).as_posix() for p in target.rglob("*.png") if p.is_file())


def test_equal_keys_of_a_part_get_separate_files(tmp_path):
    keys = ["7", "7", "7", "a/../b", "a/b", "a\nb", "a_b", "x", "x.png.part/y", "x.png/y", "X"]
    keys += ["decoded/part-000000.json/z", "y.png/q", "y", "n" * 200, "/".join(["\U0001f600" * 35] * 28)]
    parquet(tmp_path / "a.parquet", keys)
    assert len(list(decoding.read_rows(str(latents(tmp_path / "a.parquet", tmp_path / "out", fit="pad"))))) == len(keys)
    back = tmp_path / ("back" * 40)  # a path is up to 4096 bytes long
    names = decoded(tmp_path / "out", back)
    assert len({name.casefold() for name in names}) == len(keys)
    assert {"7.png", "part-000000/7.png", "part-000000/7~2.png", "x.png", "y.png/q.png"} < set(names)
    files = json.loads((back / "decoded" / "part-000000.json").read_text())["files"]
    sides = [Image.open(back / name).size[0] for name in files]
    assert sides == list(range(1, len(keys) + 1)), "`files` names the file of each row"


def latents(source: Path, target: Path, **options) -> Path:
    """Encode in this process, where keys may be equal."""
    options = Options(str(source), str(target), DEMO, **{"size": (32, 32), **FP32, **options})
    ae = open_model(options)
    job = open_job(options, ae.variant)
    encoder, shape = Encoder(options, ae), geometry(options, ae.variant)
    for part in job.parts():
        if part.name not in job.finished():
            ready = [prepare(item, shape, job.source) for item in sources.items(part, job.source)]
            skipped = [item for item in ready if isinstance(item, Unreadable)]
            rows = [row for item in ready if isinstance(item, PreparedImage) for row in encoder([item])]
            save_part(job, part, rows, skipped, 0.0)
    job.report(job.summary())
    return target


def test_equal_keys_of_parts_get_the_same_files_after_a_stop(tmp_path):
    for i, name in enumerate("abc"):
        tar(tmp_path / "in" / f"{name}.tar", {"0001.png": dot(i + 1), f"{name}.png": dot(10)})
    latents(tmp_path / "in", tmp_path / "out", fit="pad")
    wanted = decoded(tmp_path / "out", tmp_path / "back")
    assert [name for name in wanted if "0001" in name] == [
        "0001.png.png",
        "part-000001/0001.png.png",
        "part-000002/0001.png.png",
    ]
    before = {name: (tmp_path / "back" / name).read_bytes() for name in wanted}
    (tmp_path / "back" / "decoded" / "part-000001.json").unlink()
    for name in wanted:
        (tmp_path / "back" / name).write_bytes(b"") if "1/0" in name else None
    assert decoded(tmp_path / "out", tmp_path / "back") == wanted
    assert before == {name: (tmp_path / "back" / name).read_bytes() for name in wanted}
    (tmp_path / "back" / "decoded" / "part-000001.json").write_text("{}")
    with pytest.raises(DCAEError, match=r"part-000001\.json is damaged: .*Remove it"):
        decoded(tmp_path / "out", tmp_path / "back")


def test_many_names(monkeypatch):
    monkeypatch.setattr(naming, "PACK_AFTER", 1000)
    names = naming.FileNames("png")
    assigned = [name for i in range(3) for name in names.assign(f"part-{i:06d}", ["None"] * 3000)]
    assert len(set(assigned)) == 9000 and len(names.packed) > 8000, "stored as hashes"


def test_keys_that_formats_cannot_store(tmp_path):
    parquet(tmp_path / "in" / "a.parquet", ["", None, "k" * 2000, "k" * 2001])
    parquet(tmp_path / "in" / "b" / "n.parquet", None, 1)
    parquet(tmp_path / "in" / "c" / "n.parquet", None, 1)
    tar(tmp_path / "in" / "d.tar", {"caf\udce9.png": dot()})
    with open(os.fsencode(tmp_path / "in") + b"/caf\xe9.png", "wb") as file:
        file.write(dot())
    with open(os.fsencode(tmp_path / "in") + b"/bad\xe9.png", "wb") as file:
        file.write(b"no picture")
    for kind in ("parquet", "webdataset", "safetensors"):
        keys = [row.key for row, _ in decoding.read_rows(str(latents(tmp_path / "in", tmp_path / kind, kind=kind)))]
        short = sorted(key for key in keys if len(key) < 100)
        expected = ["a.parquet:0:0", "a.parquet:0:1", "b/n.parquet:0:0", "c/n.parquet:0:0", "caf%E9.png", "caf%E9.png"]
        assert short == expected
        assert len(set(keys) - set(short)) == 2 and skipped(tmp_path / kind).keys() == {"bad%E9.png"}
    assert (tmp_path / "parquet" / "skipped.jsonl").read_bytes().isascii()
    assert len(decoded(tmp_path / "parquet", tmp_path / "back")) == 8


def test_reasons_are_written_in_ascii(tmp_path):
    job = latents_job(tmp_path)
    job.report(Summary(skipped=[Unreadable("caf\udce9", "no \udce9")]))
    assert skipped(tmp_path / "out") == {"caf\udce9": "no \udce9"}


def latents_job(folder: Path):
    (folder / "in").mkdir()
    options = Options(str(folder / "in"), str(folder / "out"), DEMO, **FP32)
    return open_job(options, VARIANTS[DEMO])


def test_invalid_options(tmp_path, capsys):
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.png").write_bytes(dot())
    encode = ["batch", "encode", str(tmp_path / "in"), str(tmp_path / "out"), "--device", "cpu", "--workers", "1"]
    decode = ["batch", "decode", str(tmp_path / "out"), str(tmp_path / "back"), "--device", "cpu"]
    for command, words in (
        ([*encode, "--workers", "-1"], "workers is -1"),
        ([*encode, "--engine", "ray", "--actors", "0"], "actors 0"),
        ([*encode, "--engine", "ray", "--gpus", "-1"], "gpus -1"),
        ([*encode, "--budget", "much"], "'much' is not a budget"),
        ([*encode, "--metrics", str(tmp_path / "absent" / "m.jsonl")], "metrics can't be written"),
        ([*decode, "--batch", "-1"], "batch is -1"),
        ([*decode, "--batch", "0"], "batch is 0"),
        ([*decode, "--budget", "much"], "'much' is not a budget"),
    ):
        assert main(command) == 1
        output_text = capsys.readouterr().err
        assert words in output_text and "Traceback" not in output_text
    assert not (tmp_path / "out").exists() and not (tmp_path / "back").exists(), "before anything is done"


def test_blank_pages_read_back(tmp_path):
    z = torch.zeros(32, 45, 46, dtype=torch.float16)
    row = Row("k", z, z, (1440, 1472), (1440, 1472), (0.0, 0.0, 1472.0, 1440.0), "0" * 64)
    common = {"variant": DEMO, "dtype": "fp16", "scale": "raw", "scaling_factor": ""}
    shards.write(tmp_path / "a.parquet", "parquet", [row] * 512, common)
    assert sum(row.latents.shape == z.shape for row, _ in shards.read(Storage(tmp_path), "a.parquet")) == 512


def test_a_thin_picture_that_padding_makes_huge_is_skipped_unread(tmp_path, monkeypatch):
    monkeypatch.setattr("PIL.ImageOps.exif_transpose", lambda picture: pytest.fail("it was decoded"))
    for size in ((1, 1 << 17), (1 << 17, 1)):
        shape = Geometry("pad", 64, 64, 32, max_pixels=1 << 17)
        result = prepare(Item("thin.png", saved(Image.new("L", size))), shape, str(tmp_path))
        assert isinstance(result, Unreadable) and result.reason.startswith(f"huge: {size[0]}x{size[1]} is padded to")


def test_concurrent_writes_of_one_name_do_not_mix(tmp_path):
    storage, both = Storage(tmp_path), threading.Barrier(2)

    def make(path: Path, text: str) -> None:
        with path.open("w") as file:
            file.write(text[:1000])
            file.flush()
            both.wait(10)
            assert storage.names("") == ["a"]
            file.write(text[1000:])

    with ThreadPoolExecutor(2) as pool:
        list(pool.map(lambda text: storage.write("a/b.txt", lambda path: make(path, text)), ("x" * 2000, "y" * 2000)))
    assert len(set((tmp_path / "a" / "b.txt").read_text())) == 1 and storage.names("") == ["a"]
    assert len(list(tmp_path.iterdir())) == 1


def test_only_leftovers_of_killed_processes_are_removed(tmp_path):
    storage, killed = Storage(tmp_path), subprocess.Popen([sys.executable, "-c", ""])
    killed.wait()
    here = machine_id()
    leftovers = [f"{here}-{killed.pid}-abc.part", f"00000000-{os.getpid()}-old.part", "part-000000.parquet.part"]
    kept = [f"{here}-{os.getpid()}-abc.part", f"00000000-{killed.pid}-new.part", "mine.part"]
    for name in leftovers + kept:
        (tmp_path / name / "sub").mkdir(parents=True)
    for name in leftovers[1:] + kept[2:]:
        os.utime(tmp_path / name, (0, 0))
    storage.tidy()
    assert {path.name for path in tmp_path.iterdir()} == set(kept) and storage.names("") == []


def test_a_destination_in_its_source_is_excluded(tmp_path):
    parquet(tmp_path / "in" / "br[1]" / "a.parquet", ["a"])
    source, target = tmp_path / "in" / "br[1]", tmp_path / "in" / "br[1]" / "out"
    for _ in range(2):
        latents(source, target)
    assert rows(target).keys() == {"a"} and len(done(target)) == 1
    (tmp_path / "link").symlink_to(source)
    for other in (source / ".." / source.name, tmp_path / "link", f"file://{source}", f"{tmp_path}/in/**"):
        assert len(list(sources.parts(str(other), 10, exclude=Storage(target)))) == 1
    assert len(list(sources.parts(str(source), 10, exclude=Storage("memory://out")))) == 2
