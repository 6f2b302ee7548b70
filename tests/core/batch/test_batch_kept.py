"""Data sets: what comes with pictures (captions, classes, columns) goes with their latents."""

import io
import json
import os
import sys
import tarfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from dcae_core import DCAEError
from dcae_core.batch import kept
from dcae_core.batch.kept import Kept
from dcae_core.batch.sources import Part
from dcae_core.cli import main
from tests.datasets import encoded, tar


def picture(level: int = 90, kind: str = "PNG") -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (40, 40), (level, 100, 200)).save(buffer, kind)
    return buffer.getvalue()


def npy(*numbers: float) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, np.array(numbers, np.float32))
    return buffer.getvalue()


def members(path: Path) -> dict[str, bytes]:
    with tarfile.open(path) as archive:
        return {member.name: archive.extractfile(member).read() for member in archive}


def samples(count: int = 6) -> dict[str, bytes]:
    """Of a WebDataset: members before and after the picture, one broken picture, one sample without more."""
    made = {}
    for i in range(count):
        made |= {f"a/{i:03d}.cls": b"%d" % i, f"a/{i:03d}.jpg": b"broken" if i == 2 else picture(i, "JPEG")}
        made |= {
            f"a/{i:03d}.json": b'{"n": %d}' % i,
            f"a/{i:03d}.npy": npy(i),
            f"a/{i:03d}.txt": f"caf\xe9 {i}".encode(),
        }
    return {**made, "readme": b"none of a sample", "b/alone.png": picture()}


def test_a_webdataset_keeps_its_members_and_webdataset_reads_them(tmp_path):
    tar(tmp_path / "in" / "s.tar", samples())
    encoded(tmp_path / "in", tmp_path / "out", kind="webdataset", keep=True)
    written = members(tmp_path / "out" / "part-000000.tar")
    assert written["a--003_jpg.txt"] == "caf\xe9 3".encode() and written["a--003_jpg.cls"] == b"3"
    assert written["a--003_jpg.kept.json"] == b'{"n": 3}', "ours is the other one"
    assert json.loads(written["a--003_jpg.json"])["key"] == "a/003.jpg"
    assert not any("002" in name or "readme" in name for name in written)
    assert {name for name in written if name.startswith("b--")} == {"b--alone_png.safetensors", "b--alone_png.json"}
    record = json.loads((tmp_path / "out" / "done" / "part-000000.json").read_text())
    assert record["notes"] == {"its json is kept as kept.json, since the latents have one": 5}
    webdataset = pytest.importorskip("webdataset", reason="webdataset is not installed: its reader read nothing")
    read = webdataset.WebDataset(str(tmp_path / "out" / "part-000000.tar"), shardshuffle=False).decode()
    by_key = {sample["__key__"]: sample for sample in read}
    assert len(by_key) == 6
    sample = by_key["a--004_jpg"]
    assert (sample["txt"], sample["cls"], sample["kept.json"]) == ("caf\xe9 4", 4, {"n": 4})
    assert sample["npy"].tolist() == [4] and sample["json"]["key"] == "a/004.jpg"
    from safetensors.torch import load

    assert load(sample["safetensors"])["latents"].shape == (1, 32, 2, 2)


def test_a_webdataset_keeps_its_members_as_columns_and_as_files(tmp_path):
    tar(tmp_path / "in" / "s.tar", samples())
    encoded(tmp_path / "in", tmp_path / "parquet", keep=True)
    rows = {row["key"]: row for row in pq.read_table(tmp_path / "parquet" / "part-000000.parquet").to_pylist()}
    row = rows["a/003.jpg"]
    assert (row["txt"], row["cls"], row["json"], row["npy"]) == ("caf\xe9 3", "3", '{"n": 3}', npy(3))
    assert rows["b/alone.png"]["txt"] is None
    encoded(tmp_path / "in", tmp_path / "files", kind="safetensors", keep=True)
    folder = tmp_path / "files" / "part-000000"
    assert (folder / "a--003_jpg.json").read_text() == '{"n": 3}' and (folder / "a--003_jpg.safetensors").exists()
    assert len(list(folder.iterdir())) == 6 + 5 * 4


def table(path: Path, count: int = 20) -> pa.Table:
    columns = {
        "image": [{"bytes": picture(i) if i != 7 else b"broken", "path": None} for i in range(count)],
        "id": list(range(count)),
        "caption": [None if i == 3 else f"caf\xe9 {i}" for i in range(count)],
        "size": [i * 10 for i in range(count)],
        "embedding": pa.array([[i, 0.5] for i in range(count)], pa.list_(pa.float32())),
        "time": pa.array(range(count), pa.timestamp("ns")),
        "split": pa.array(["train", "test"] * (count // 2)).dictionary_encode(),
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(made := pa.table(columns), path, row_group_size=12)
    return made


def test_parquet_keeps_its_columns_in_their_types(tmp_path):
    source = table(tmp_path / "in" / "t.parquet")
    encoded(tmp_path / "in", tmp_path / "out", keep=True, fit="bucket")
    parts = [pq.read_table(path) for path in sorted((tmp_path / "out").glob("part-*.parquet"))]
    out = pa.concat_tables(parts)
    assert out["id"].to_pylist() == [i for i in range(20) if i != 7]
    wanted = source.filter(pa.array([i != 7 for i in range(20)]))
    for name in ("id", "caption", "embedding", "time"):
        assert out[name].type == source[name].type and out[name].equals(wanted[name])
    assert out["kept_size"].to_pylist() == wanted["size"].to_pylist() and out["split"].to_pylist()[:2] == [
        "train",
        "test",
    ]
    assert out["size"].to_pylist()[0] == [64, 64] and "image" not in out.column_names


def test_parquet_keeps_its_columns_as_members(tmp_path):
    table(tmp_path / "in" / "t.parquet")
    encoded(tmp_path / "in", tmp_path / "out", kind="webdataset", keep=True)
    written = members(tmp_path / "out" / "part-000000.tar")
    assert written["4.caption"] == "caf\xe9 4".encode() and "3.caption" not in written
    assert json.loads(written["4.embedding.json"]) == [4, 0.5] and written["4.size.json"] == b"40"


def folder(path: Path) -> Path:
    path.mkdir()
    for i in range(3):
        (path / f"p{i}.jpg").write_bytes(picture(i, "JPEG"))
        (path / f"p{i}.txt").write_text(f"caption {i}")
    (path / "p1.json").write_text("{}")
    (path / "p0.md").write_text("not looked for")
    return path


@pytest.mark.parametrize("remote", [False, True])
def test_files_beside_a_picture_are_kept(tmp_path, remote):
    source = str(folder(tmp_path / "in"))
    if remote:
        import fsspec

        memory = fsspec.filesystem("memory")
        for path in Path(source).iterdir():
            memory.pipe_file(f"/kept-in/{path.name}", path.read_bytes())
        part = Part(0, "files", tuple(f"/kept-in/p{i}.jpg" for i in range(3)), ("a", "b", "c"))
        found = list(Kept(part, "memory://kept-in", [0, 1, 2]).members(()))
        assert found == [{"txt": b"caption 0"}, {"txt": b"caption 1", "json": b"{}"}, {"txt": b"caption 2"}]
        return
    encoded(source, tmp_path / "out", kind="safetensors", keep=True)
    names = {path.name for path in (tmp_path / "out" / "part-000000").iterdir()}
    latents = {f"p{i}_jpg.safetensors" for i in range(3)}
    assert names == latents | {"p0_jpg.txt", "p1_jpg.txt", "p1_jpg.json", "p2_jpg.txt"}
    assert (tmp_path / "out" / "part-000000" / "p1_jpg.txt").read_text() == "caption 1"


def test_a_link_to_elsewhere_is_not_kept(tmp_path):
    """A stranger's data set could name any file of this machine."""
    source = folder(tmp_path / "in")
    (tmp_path / "secret").write_text("secret")
    (source / "p0.txt").unlink()
    (source / "p0.txt").symlink_to(tmp_path / "secret")
    (source / "p2.txt").unlink()
    (source / "p2.txt").symlink_to("p1.txt")
    encoded(source, tmp_path / "out", keep=True)
    assert pq.read_table(tmp_path / "out" / "part-000000.parquet")["txt"].to_pylist() == [
        None,
        "caption 1",
        "caption 1",
    ]
    record = json.loads((tmp_path / "out" / "done" / "part-000000.json").read_text())
    assert record["notes"] == {kept.OUTSIDE: 1}


@pytest.mark.parametrize("kind", ["parquet", "webdataset"])
def test_a_part_that_is_done_again_is_equal_to_the_byte(tmp_path, kind):
    tar(tmp_path / "in" / "s.tar", samples())
    encoded(tmp_path / "in", tmp_path / "out", kind=kind, keep=True)
    (path,) = (tmp_path / "out").glob("part-000000.*")
    before = path.read_bytes()
    path.unlink()
    (tmp_path / "out" / "done" / "part-000000.json").unlink()
    encoded(tmp_path / "in", tmp_path / "out", kind=kind, keep=True)
    assert path.read_bytes() == before
    with pytest.raises(DCAEError, match="keep: True, now not set"):
        encoded(tmp_path / "in", tmp_path / "out", kind=kind)


def test_limits(tmp_path, monkeypatch):
    monkeypatch.setattr(kept, "MAX_VALUE_BYTES", 100)
    monkeypatch.setattr(kept, "MAX_SAMPLE_BYTES", 150)
    monkeypatch.setattr(kept, "MAX_SAMPLE_MEMBERS", 3)
    path = tar(
        tmp_path / "a.tar", {"1.png": b"", "1.txt": bytes(101), "1.a": bytes(80), "1.b": bytes(80), "2.png": b""}
    )
    part = Part(0, "tar", (str(path),))
    found = Kept(part, str(path), [0, 1])
    assert list(found.members(())) == [{"a": bytes(80)}, {}] and found.notes == {kept.TOO_LARGE: 2}
    many = {f"1.{'e' * 300}{i}": b"" for i in range(5)}
    found = Kept(Part(0, "tar", (str(tar(tmp_path / "b.tar", {"1.png": b"", **many})),)), str(tmp_path / "b.tar"), [0])
    (names,) = found.members(())
    assert len(names) == 3 and all(len(name) < 100 for name in names) and found.notes == {kept.TOO_LARGE: 2}
    monkeypatch.setattr(kept, "MAX_COLUMN_BYTES", 100)
    found = Kept(part, str(path), [0, 1])
    assert found.columns(())["a"].to_pylist() == [bytes(80), None]
    table(tmp_path / "t.parquet")
    found = Kept(Part(0, "parquet", (str(tmp_path / "t.parquet"),)), str(tmp_path / "t.parquet"), [0, 3, 4, 5])
    assert found.columns(())["id"].to_pylist()[0] == 0 and found.notes[kept.TOO_LARGE] > 0


def test_a_damaged_source_keeps_what_comes_before_the_damage(tmp_path):
    path = tar(tmp_path / "in" / "a.tar", samples(40))
    path.write_bytes(path.read_bytes()[:90_000])
    encoded_rows = encoded(tmp_path / "in", tmp_path / "out", keep=True)
    texts = pq.read_table(tmp_path / "out" / "part-000000.parquet")["txt"].to_pylist()
    assert len(texts) == len(encoded_rows) > 10 and all(texts[:-1])
    assert main(["batch", "decode", str(tmp_path / "out"), str(tmp_path / "back"), "--device", "cpu"]) == 0


def test_untrusted_names_stay_in_the_folder(tmp_path):
    names = ["1...", "1.\\..\\x", "1.a\nb", "1.safetensors", "1.x.safetensors", "1.PART"]
    names += ["../1.txt", "1./../../escaped"]
    tar(tmp_path / "in" / "a.tar", {"1.png": picture(), **dict.fromkeys(names, b"x")})
    for kind in ("safetensors", "webdataset", "parquet"):
        assert encoded(tmp_path / "in", tmp_path / kind, kind=kind, keep=True).keys() == {"1.png"}, "rows are ours"
    written = {path.name for path in (tmp_path / "safetensors" / "part-000000").iterdir()}
    assert "1_png.kept.safetensors" in written and all(name.startswith("1_png.") for name in written)
    assert not [path for path in tmp_path.rglob("*") if "escaped" in path.name]
    assert sys.platform == "win32" or not os.path.exists(tmp_path.parent / "escaped")


@pytest.mark.parametrize("kind", ["parquet", "webdataset", "safetensors"])
def test_decoded_pictures_have_beside_them_what_was_kept(tmp_path, kind, capsys):
    tar(tmp_path / "in" / "s.tar", samples())
    encoded(tmp_path / "in", tmp_path / "out", kind=kind, keep=True)
    back = ["batch", "decode", str(tmp_path / "out"), str(tmp_path / "back"), "--device", "cpu"]
    assert main([*back, "--keep"]) == 0 and main([*back, "--keep"]) == 0
    json_name = "kept.json" if kind == "webdataset" else "json"
    folder = tmp_path / "back" / "a"
    for i in (0, 1, 3, 4, 5):
        assert (folder / f"{i:03d}.jpg.txt").read_text(encoding="utf-8") == f"caf\xe9 {i}"
        assert (folder / f"{i:03d}.jpg.npy").read_bytes() == npy(i)
        assert json.loads((folder / f"{i:03d}.jpg.{json_name}").read_text()) == {"n": i}
    assert len(list(folder.iterdir())) == 5 * 5 and len(list((tmp_path / "back" / "b").iterdir())) == 1
    capsys.readouterr()
    assert main(back) == 1 and "was made with --keep: name another folder" in capsys.readouterr().err


def test_columns_that_would_clash_are_renamed(tmp_path):
    columns = {"image": [picture()], "size": ["a"], "kept_size": [1]}
    columns |= {"bad": pa.array([b"\xff"]), "png": [b"not the picture"]}
    (tmp_path / "in").mkdir()
    made = pa.table(columns)
    made = made.set_column(3, "bad", made["bad"].combine_chunks().view(pa.string()))  # no UTF-8
    pq.write_table(made, tmp_path / "in" / "t.parquet")
    encoded(tmp_path / "in", tmp_path / "out", keep=True)
    read = pq.read_table(tmp_path / "out" / "part-000000.parquet")
    assert read["kept_size"].to_pylist() == [1] and read["kept_kept_size"].to_pylist() == ["a"]
    encoded(tmp_path / "in", tmp_path / "tars", keep=True, kind="webdataset")
    names = {name.partition(".")[2] for name in members(tmp_path / "tars" / "part-000000.tar")}
    assert names == {"safetensors", "json", "size.txt", "kept_size.json", "png"}
    record = json.loads((tmp_path / "tars" / "done" / "part-000000.json").read_text())
    assert record["notes"] == {kept.UNREADABLE: 1}
    back = ["batch", "decode", str(tmp_path / "out"), str(tmp_path / "back"), "--device", "cpu", "--keep"]
    assert main(back) == 0
    assert (tmp_path / "back" / "t.parquet:0:0.png").read_bytes()[:4] == b"\x89PNG"
    assert (tmp_path / "back" / "t.parquet:0:0.png.kept").read_bytes() == b"not the picture"
