"""What machines do to a run: memory and disks that fill up, Ctrl-C, threads, devices that go away."""

import gc
import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import psutil
import pytest
import torch
from PIL import Image

from dcae_core import DCAE, DEMO, VARIANTS, BudgetError, CheckpointError, ImageError, LatentError, checkpoint, images
from dcae_core import latents as latent_files
from dcae_core.cli import main
from dcae_core.engine import execute, memory
from dcae_core.engine.devices import has_failed
from dcae_core.files import ASSETS
from tests import datasets, faults

EXAMPLE = ASSETS / "example.jpg"


@pytest.fixture(scope="module")
def ae() -> DCAE:
    return DCAE(DEMO, "cpu", "fp32")


def picture(width: int, height: int) -> torch.Tensor:
    return images.from_host(images.read(EXAMPLE))[:, :, :height, :width]


@pytest.mark.skipif(sys.platform != "linux", reason="how much memory a process has is read from /proc")
@pytest.mark.skipif(torch.__version__ < "2.7", reason="convolutions of torch 2.6 may crash where they get no memory")
def test_real_memory_that_runs_out(tmp_path):
    """In a process whose memory the system limits to what it has and so many MiB more: 1024x1024 takes 180 whole, as is
    chosen where calls take long, and 27 in the thinnest strips. Then with no limit again. The last picture is too large
    to be read at all."""
    Image.new("L", (6000, 6000)).save(tmp_path / "large.bmp")
    script = """
import contextlib, dataclasses, io, json, logging, resource, sys
import torch
from dcae_core import DCAE, DCAEError, images
from dcae_core.cli import main
from dcae_core.engine.machine import CPU, Machine

Machine.here = classmethod(lambda cls: dataclasses.replace(CPU, call=1.0))

def within(mebibytes, work):
    with open("/proc/self/status") as file:
        held = next(int(line.split()[1]) << 10 for line in file if line.startswith("VmData"))
    hard = resource.getrlimit(resource.RLIMIT_DATA)[1]
    resource.setrlimit(resource.RLIMIT_DATA, (held + (mebibytes << 20), hard))
    try:
        return work()
    except DCAEError as error:
        return str(error)
    finally:
        resource.setrlimit(resource.RLIMIT_DATA, (hard, hard))

logging.basicConfig(stream=sys.stdout)
torch.set_num_threads(1)
ae = DCAE("dc-ae-f32c32-demo", "cpu", "fp32")
ae.encode(torch.zeros(1, 3, 64, 64))
x = torch.rand(1, 3, 1024, 1024)
whole = ae.encode(x)

def compared(z):
    print(ae.last_plan.strips, float((z - whole).abs().max() / whole.abs().max()))

compared(whole)
compared(within(100, lambda: ae.encode(x)))
large = torch.zeros(1, 3, 2048, 2048)
print(within(4, lambda: ae.encode(large)))
compared(ae.encode(x))
print(within(300, lambda: main(["encode", sys.argv[1], "-o", sys.argv[1] + ".safetensors"])))
"""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", script, tmp_path / "large.bmp"], env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    logged = [line for line in done.stdout.splitlines() if line.startswith("WARNING")]
    whole, tight, refused, after, code = (line for line in done.stdout.splitlines() if line not in logged)
    assert any("Out of memory in: encode 1024x1024 whole" in line for line in logged), logged
    assert whole == "1 0.0" and int(tight.split()[0]) > 1
    assert all(float(line.split()[1]) < 1e-5 for line in (tight, after))
    assert "Memory ran out" in refused and "Close other programs, or use a smaller picture." in refused
    assert code == "1"
    assert "dcae: out of memory: use a smaller picture" in done.stderr and "Traceback" not in done.stderr
    assert [file.name for file in tmp_path.iterdir()] == ["large.bmp"]


def test_libraries_that_say_out_of_memory_in_their_own_words():
    for words in (
        "could not create a primitive",
        "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling ...",
        "HIP out of memory",
    ):
        assert memory.is_out_of_memory(RuntimeError(words))
    for words in ("could not create a primitive descriptor for a matmul", "CUDA error: device-side assert triggered"):
        assert not memory.is_out_of_memory(RuntimeError(words))


def test_a_container_that_may_have_less_than_the_machine(tmp_path, monkeypatch):
    """Stand-ins for the files of cgroups, version 2 and 1: this machine's can't be set in a test."""
    everything = memory.free_bytes(torch.device("cpu"))
    reported = tmp_path / "cgroup"
    monkeypatch.setattr(memory, "CGROUPS", (reported, tmp_path))
    two = ("memory.max", "memory.current", "inactive_file")
    one = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
    for line, folder, names in (
        ("0::/mine", "mine", two),
        ("0::/", "", two),
        ("4:cpu,memory:/mine", "memory/mine", one),
        ("4:memory:/of/the/host", "memory", one),
    ):
        reported.write_text(f"1:devices:/\n{line}\n")
        place = tmp_path / folder
        place.mkdir(parents=True, exist_ok=True)
        (place / names[0]).write_text(f"{3 << 20}\n")
        (place / names[1]).write_text(f"{2 << 20}\n")
        (place / "memory.stat").write_text(f"cache 5\n{names[2]} {1 << 19}\n")
        assert memory.free_bytes(torch.device("cpu")) == 3 << 19, line
        (place / names[0]).write_text("max\n")
        assert memory.free_bytes(torch.device("cpu")) == pytest.approx(everything, rel=0.5), line


def test_a_gpu_is_not_planned_full_and_less_after_memory_ran_out(monkeypatch):
    """Pretended: there is no GPU here."""
    gpu, other, cpu = torch.device("cuda", 0), torch.device("cuda", 1), torch.device("cpu")
    monkeypatch.setattr(memory, "free_bytes", lambda device: 8 << 30)
    monkeypatch.setattr(memory, "_shares", {})
    usable = memory.usable_bytes(gpu)
    assert 7.2 * 2**30 < usable < 7.5 * 2**30 and memory.usable_bytes(cpu) == 8 << 30
    for device in (gpu, cpu):
        memory.shrink(device)
    assert memory.usable_bytes(gpu) == pytest.approx(0.8 * usable)
    assert memory.usable_bytes(other) == usable and memory.usable_bytes(cpu) == 8 << 30
    for _ in range(20):
        memory.shrink(gpu)
    assert memory.usable_bytes(gpu) > 1 << 30
    monkeypatch.setattr(memory, "free_bytes", lambda device: 1 << 20)
    assert memory.usable_bytes(gpu) == 1


WRITERS = {
    "picture.png": (ImageError, lambda path: images.write(path, torch.rand(400, 400, 3))),
    "picture.jpg": (ImageError, lambda path: images.write(path, torch.rand(900, 900, 3))),
    "latents.safetensors": (
        LatentError,
        lambda path: latent_files.write(path, torch.rand(1, 32, 64, 64), VARIANTS[DEMO], (2048, 2048)),
    ),
    "model.safetensors": (
        CheckpointError,
        lambda path: checkpoint.save(path, {"decoder.conv_in.weight": torch.rand(200_000)}, VARIANTS[DEMO]),
    ),
}


@pytest.mark.parametrize("name", WRITERS)
@pytest.mark.parametrize("kind", ["limit", "disk"])
def test_a_full_disk_leaves_the_old_file_and_nothing_else(tmp_path, name, kind):
    error, write = WRITERS[name]
    folder = tmp_path / "here"
    folder.mkdir()
    full = faults.files_of_at_most(100_000) if kind == "limit" else faults.small_disk(folder, 100_000)
    with full:
        with pytest.raises(error, match=f"{name} can't be written: .*(File too large|No space left)"):
            write(folder / name)
        assert not list(folder.iterdir())
        (folder / name).write_text("as it was")
        with pytest.raises(error):
            write(folder / name)
        assert [file.name for file in folder.iterdir()] == [name]
        assert (folder / name).read_text() == "as it was"


def test_ctrl_c_while_writing_leaves_nothing(tmp_path, monkeypatch):
    def interrupted(self, file, **options):
        Path(file).write_bytes(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr(Image.Image, "save", interrupted)
    with pytest.raises(KeyboardInterrupt):
        images.write(tmp_path / "picture.png", torch.rand(8, 8, 3))
    assert not list(tmp_path.iterdir())


def test_a_data_set_on_a_full_disk_is_gone_on_with(tmp_path, capsys):
    datasets.pieces(tmp_path / "in", 16, (60, 80))
    command = ["batch", "encode", str(tmp_path / "in"), str(tmp_path / "out"), "--size", "256", "--part-size", "16"]
    command += ["--workers", "1", "--device", "cpu", "--dtype", "fp32"]
    with faults.files_of_at_most(30_000):
        assert main(command) == 1
    output_text = capsys.readouterr().err
    assert "can't be written: [Errno 27] " in output_text and "Traceback" not in output_text
    assert not list((tmp_path / "out").rglob("*.part")) and not list((tmp_path / "out").glob("done/*"))
    assert main(command) == 0
    assert "16 pictures" in capsys.readouterr().out


def test_ctrl_c_between_two_pictures(tmp_path):
    """The command line, and the workers of a data set: one line, what was finished is whole, and nothing half."""
    Image.open(EXAMPLE).crop((0, 0, 64, 64)).save(tmp_path / "1.png")
    Image.open(EXAMPLE).resize((4000, 4000)).save(tmp_path / "2.jpg")
    datasets.pieces(tmp_path / "in", 60, (60, 80))
    options = ["--device", "cpu", "--dtype", "fp32"]
    pictures = ["encode", tmp_path / "1.png", tmp_path / "2.jpg", "-o", tmp_path / "out", *options]
    data = ["batch", "encode", tmp_path / "in", tmp_path / "set", "--size", "64", "--part-size", "2", *options]
    runs = [interrupted(pictures, tmp_path / "out" / "1.safetensors"), interrupted(data, tmp_path / "set" / "done")]
    for code, output_text in runs:
        assert code == 130 and "dcae: stopped" in output_text and "Traceback" not in output_text, output_text
    assert latent_files.read(tmp_path / "out" / "1.safetensors").size == (64, 64)
    assert [file.name for file in (tmp_path / "out").iterdir()] == ["1.safetensors"]
    assert not list(tmp_path.rglob("*.part"))


def interrupted(arguments: list, until: Path) -> tuple[int, str]:
    """Exit code and standard error of a run that is stopped, with all its processes, once a file is there."""
    command = [sys.executable, "-m", "dcae_core", *map(str, arguments)]
    run = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, start_new_session=True)
    deadline = time.monotonic() + 60
    while not until.exists() and run.poll() is None and time.monotonic() < deadline:
        time.sleep(0.02)
    os.killpg(run.pid, signal.SIGINT)
    return run.wait(60), run.stderr.read()


@pytest.mark.parametrize("dtype", ["fp32", "fp16"])
def test_after_a_cancelled_run_all_is_as_before(dtype):
    class Cancelled(Exception):
        pass

    def cancel(done: int, total: int) -> None:
        if done == 2:
            raise Cancelled

    ae = DCAE(DEMO, "cpu", dtype)
    x = picture(320, 256)
    z = ae.encode(x)
    with pytest.raises(BudgetError) as least:
        ae.plan("encode", 256, 320, budget=1)
    for _ in range(3):
        with pytest.raises(Cancelled):
            ae.encode(x, budget=least.value.needed, progress=cancel)
    assert ae.dtype == {"fp32": torch.float32, "fp16": torch.float16}[dtype]
    assert torch.equal(ae.encode(x), z)


def test_threads_load_and_run_at_once(ae):
    """Two load the same file while two run another model, each its own picture."""
    xs = [picture(320, 256), picture(256, 192)]
    wanted = [ae.decode(ae.encode(x)) for x in xs]
    found, failed = {}, []

    def work(i: int) -> None:
        try:
            mine = DCAE(DEMO, "cpu", "fp32") if i < 2 else ae
            found[i] = [mine.decode(mine.encode(xs[i % 2])) for _ in range(3)]
        except BaseException as error:
            failed.append(error)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failed
    for i in range(4):
        assert all(torch.allclose(y, wanted[i % 2], atol=1e-5) for y in found[i])


def test_loading_again_and_again_holds_no_more():
    """Eight times here; a hundred times, with what that took: benchmarks/faults.py."""
    process, seen = psutil.Process(), []
    for i in range(8):
        ae = DCAE(DEMO, "cpu", ("fp32", "bf16")[i % 2])
        ae.decode(ae.encode(picture(128, 128)))
        del ae
        gc.collect()
        weights = [one for one in gc.get_objects() if type(one) is torch.nn.Parameter and not one.is_meta]
        seen.append((len(weights), process.num_fds(), process.memory_info().rss))
        del weights
    assert {one[:2] for one in seen} == {seen[0][:2]}
    assert seen[-1][2] - seen[1][2] < 64 << 20  # the weights of six are 79 MiB


def test_a_device_that_goes_away(tmp_path, monkeypatch, capsys):
    """A stand-in: a layer that raises what torch raises when a GPU is lost."""
    output_text = (
        "CUDA error: unspecified launch failure\nCompile with `TORCH_USE_CUDA_DSA` to enable device-side assertions."
    )
    gone = getattr(torch, "AcceleratorError", RuntimeError)(output_text)
    assert has_failed(gone) and has_failed(RuntimeError(output_text)) and not has_failed(RuntimeError("a bug"))
    for i in (1, 2):
        Image.open(EXAMPLE).crop((0, 0, 64 * i, 64)).save(tmp_path / f"{i}.png")
    real = execute.run_plan

    def lost(coder, plan, *arguments):
        if plan.width > 64:
            raise gone
        return real(coder, plan, *arguments)

    monkeypatch.setattr(execute, "run_plan", lost)
    ae = DCAE(DEMO, "cpu", "fp32")
    with pytest.raises(type(gone)):
        ae.encode(picture(128, 64))
    assert ae.encode(picture(64, 64)).isfinite().all()  # it is not left locked
    assert main(["encode", str(tmp_path / "1.png"), str(tmp_path / "2.png"), "-o", str(tmp_path / "out")]) == 1
    reported = capsys.readouterr().err
    assert (
        "dcae: the device failed: CUDA error: unspecified launch failure. What was written before is whole." in reported
    )
    assert [file.name for file in (tmp_path / "out").iterdir()] == ["1.safetensors"]


def test_a_report_that_can_not_be_written(tmp_path, capsys):
    Image.open(EXAMPLE).crop((0, 0, 64, 64)).save(tmp_path / "1.png")
    command = ["compare", str(tmp_path / "1.png"), "--models", DEMO, "--repeats", "1", "--device", "cpu"]
    assert main([*command, "--json", str(tmp_path / "report.json")]) == 0
    before = (tmp_path / "report.json").read_bytes()
    with faults.files_of_at_most(50):
        assert main([*command, "--json", str(tmp_path / "report.json")]) == 1
    assert "File too large" in capsys.readouterr().err
    assert (tmp_path / "report.json").read_bytes() == before
    assert not list(tmp_path.glob("*.part"))
    assert main([*command, "--json", str(tmp_path / "report.json")]) == 0
    assert json.loads((tmp_path / "report.json").read_text())
