"""Streaming gives the numbers of a whole run, in the memory that the plan said."""

import dataclasses
import gc
import random
from functools import partial

import pytest
import torch

from dcae_core import DCAE, DEMO, VARIANTS, BudgetError, images, plan
from dcae_core.compare.metrics import psnr
from dcae_core.engine import execute, memory, sweeps
from dcae_core.engine.live_bytes import LiveBytes
from dcae_core.engine.machine import CPU
from dcae_core.engine.ops import fused, winograd
from dcae_core.errors import OptionError
from tests.core.helpers import counted, least, photograph, relative_error, square, streamed


@pytest.fixture(scope="module")
def ae() -> DCAE:
    return DCAE(DEMO, device="cpu", dtype="fp32")


SIZES = [(32, 32), (32, 640), (640, 32), (96, 160), (544, 96)]  # one latent row, panoramas, half strips at the end


@pytest.mark.parametrize(("height", "width"), SIZES)
@pytest.mark.parametrize("share", [1.0, 1.3, 2.0])
def test_any_size_in_any_budget(ae, height, width, share):
    x = photograph(height, width)
    with torch.no_grad():
        z = ae.model.encoder(x)
        y = ae.model.decoder(z)
    for direction, given, wanted in (("encode", x, z), ("decode", z, y)):
        budget = int(least(ae.variant, direction, height, width) * share)
        made = ae.plan(direction, height, width, budget=budget)
        assert made.peak_bytes <= budget
        got = ae.encode(given, budget=budget) if direction == "encode" else ae.decode(given, budget=budget)
        assert relative_error(got, wanted) <= 1e-5, made


def test_padding_batches_and_the_output_elsewhere(ae):
    x = torch.cat([photograph(70, 101, left) for left in (0, 200, 400)])
    z = ae.encode(x)
    budget = least(ae.variant, "encode", 70, 101, batch=3)
    assert not ae.plan("encode", 70, 101, 3, budget).whole
    assert relative_error(ae.encode(x, budget=budget), z) <= 1e-5
    y = ae.decode(z, (70, 101))
    budget = least(ae.variant, "decode", 70, 101, batch=3)
    assert relative_error(ae.decode(z, (70, 101), budget, output_device="cpu"), y) <= 1e-5


def test_a_photograph_in_bf16_keeps_its_pixels():
    """Small, since CPUs without bf16 instructions are slow at it; benchmarks/streaming.py does larger ones."""
    narrow = DCAE(DEMO, device="cpu", dtype="bf16")
    x = images.from_host(square("astronaut"))[:, :, 100:196, 200:296].bfloat16()
    z = narrow.encode(x)
    y = narrow.decode(z)
    encoded, decoded = streamed(narrow, "encode", x), streamed(narrow, "decode", z)
    assert relative_error(encoded.float(), z.float()) <= 5e-3
    assert relative_error(decoded.float(), y.float()) <= 5e-3
    assert psnr(images.to_host(decoded), images.to_host(y)) >= 55


@pytest.mark.parametrize("seed", range(30))
def test_the_plan_says_what_is_counted(seed):
    chance = random.Random(seed)
    variant = chance.choice(list(VARIANTS.values()))
    ae = DCAE.empty(variant, device="meta", dtype=chance.choice(["fp32", "bf16", "fp16"]))
    direction, f = chance.choice(plan.DIRECTIONS), variant.spatial_ratio
    height, width = f * chance.randint(1, 900 // f), f * chance.randint(1, 1600 // f)
    fewer = {"channels": chance.choice([None, *variant.adaptive])}
    low = least(variant, direction, height, width, ae.dtype, **fewer)
    high = plan.make(variant.architecture, direction, height, width, 1, None, ae.dtype, **fewer).peak_bytes
    budget = int(low * max(1, 1.1 * high / low) ** chance.random())
    made = plan.make(variant.architecture, direction, height, width, 1, budget, ae.dtype, **fewer)
    count = counted(ae, made)
    assert count <= made.peak_bytes <= budget, made
    assert count >= 0.85 * made.peak_bytes, made


@pytest.mark.parametrize("direction", plan.DIRECTIONS)
@pytest.mark.parametrize("name", ["dc-ae-f32c32-mix-1.0", "dc-ae-f32c32-sana-1.0"])
def test_a_gpu_is_not_planned_what_only_a_cpu_needs(name, direction, monkeypatch):
    """In fp32 a CPU's convolutions work in buffers of their own. What a GPU holds is counted without them."""
    ae = DCAE.empty(name, device="meta", dtype="fp32")
    run = (ae.variant.architecture, direction, 512, 1024, 1)
    for options in ({}, {"budget": 1, "strict": False}):
        cpu, gpu = (plan.make(*run, dtype=ae.dtype, device=device, **options) for device in ("cpu", "cuda"))
        assert gpu.peak_bytes < cpu.peak_bytes
        assert 0.85 * cpu.peak_bytes <= counted(ae, cpu) <= cpu.peak_bytes
        with winograd.disabled(), monkeypatch.context() as patch:
            patch.setattr(fused, "PIECE", 1 << 60)
            assert 0.85 * gpu.peak_bytes <= counted(ae, gpu) <= gpu.peak_bytes


LARGE_CACHE = dataclasses.replace(CPU, near=CPU.far, clear=1e18)  # on which whole runs take least time


@pytest.mark.parametrize("batch", [1, 3])
def test_whole_runs_are_counted_too(batch):
    for name in ("dc-ae-f32c32-mix-1.0", "dc-ae-f32c32-sana-1.0", "dc-ae-lite-f32c32-sana-1.1", "dc-ae-f32c128-1.5"):
        ae = DCAE.empty(name, device="meta", dtype="bf16")
        for direction in plan.DIRECTIONS:
            made = plan.make(ae.variant.architecture, direction, 320, 256, batch, None, ae.dtype, machine=LARGE_CACHE)
            assert made.whole
            assert made.together == batch
            assert 0.85 * made.peak_bytes <= counted(ae, made) <= made.peak_bytes


@pytest.mark.parametrize("batch", [5, 64])
def test_whole_runs_in_several_parts_hold_their_output_once(batch):
    ae = DCAE.empty(DEMO, device="meta", dtype="bf16")
    run, options = (ae.variant.architecture, "decode", 64, 64), {"dtype": ae.dtype, "machine": LARGE_CACHE}
    two, all_of_them = (plan.make(*run, n, **options).peak_bytes for n in (2, batch))
    budget = all_of_them // batch * (batch - 2) + two // 4
    made = plan.make(*run, batch, budget, **options)
    assert made.whole
    assert 1 <= made.together < batch
    assert 0.85 * made.peak_bytes <= counted(ae, made) <= made.peak_bytes <= budget


def test_autocast_changes_nothing(ae):
    x = photograph(96, 64)
    z = ae.encode(x)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(ae.encode(x), z)
        small = ae.encode(x, budget=least(ae.variant, "encode", 96, 64))
    assert relative_error(small, z) <= 1e-5


FIGURES = [  # variant, direction, side, GiB of activations in bf16
    ("dc-ae-f32c32-mix-1.0", "decode", 4096, 0.7),
    ("dc-ae-f32c32-mix-1.0", "encode", 4096, 0.7),
    ("dc-ae-f32c32-sana-1.0", "decode", 4096, 1.0),
    ("dc-ae-f32c32-sana-1.0", "encode", 4096, 1.0),
    ("dc-ae-f32c32-mix-1.0", "decode", 8192, 2.5),
    ("dc-ae-f32c32-mix-1.0", "decode", 16384, 9.0),
]


@pytest.mark.parametrize(("name", "direction", "side", "gib"), FIGURES)
def test_promised_budgets(name, direction, side, gib):
    made = plan.make(VARIANTS[name].architecture, direction, side, side, 1, int(gib * 2**30), torch.bfloat16)
    assert not made.whole
    assert made.peak_bytes <= gib * 2**30


def test_the_plan_is_a_sentence_and_always_the_same():
    made = [DCAE.empty("dc-ae-f32c32-mix-1.0", device="meta", dtype="bf16") for _ in range(2)]
    first, second = (ae.plan("decode", 4096, 4096, budget="2GiB") for ae in made)
    assert first == second
    assert str(first) == (
        f"decode 4096x4096 in {first.strips} strips with dc-ae-f32c32-mix-1.0: "
        f"peak {first.peak_bytes / 2**30:.2f} GiB, and {first.weight_bytes / 2**30:.2f} GiB of weights"
    )
    with pytest.raises(AttributeError):
        first.batch = 2


def test_too_small_a_budget_names_the_one_that_works(ae):
    with pytest.raises(BudgetError, match=r"needs at least [0-9.]+ GiB beside the weights") as error:
        ae.plan("decode", 4096, 4096, budget="1MB")
    assert ae.plan("decode", 4096, 4096, budget=error.value.needed).peak_bytes <= error.value.needed


@pytest.mark.parametrize(
    ("text", "count"),
    [("4GiB", 4 << 30), ("800 MB", 800_000_000), ("1.5g", 1_500_000_000), (7, 7), ("512mib", 512 << 20)],
)
def test_budgets_as_people_write_them(text, count):
    assert memory.parse_bytes(text) == count


@pytest.mark.parametrize("text", ["much", "4 apples", "-1", 0, "0", ""])
def test_budgets_that_make_no_sense(text):
    with pytest.raises(OptionError):
        memory.parse_bytes(text)


def test_progress_is_told_and_may_stop_the_run(ae):
    class Stop(Exception):
        pass

    x = torch.rand(2, 3, 256, 64) * 2 - 1
    budget = least(ae.variant, "encode", 256, 64, batch=2)
    assert not ae.plan("encode", 256, 64, 2, budget).whole
    seen = []
    ae.encode(x, budget=budget, progress=lambda done, total: seen.append((done, total)))
    total = seen[0][1]
    assert seen == [(i + 1, total) for i in range(total)]

    def stop(done: int, total: int) -> None:
        if done == 5:
            raise Stop

    stopped = False
    with LiveBytes([x, *ae.model.parameters(), *ae.model.buffers()]) as count:
        try:
            ae.encode(x, budget=budget, progress=stop)
        except Stop:
            stopped = True
    gc.collect()
    assert stopped
    assert count.peak > 0
    assert count.now == 0  # nothing is left allocated


@pytest.mark.parametrize("error", [MemoryError("mine"), torch.OutOfMemoryError("mine"), RuntimeError("out of memory")])
def test_what_progress_raises_is_not_tried_again(ae, error):
    calls = []

    def progress(done: int, total: int) -> None:
        calls.append(done)
        raise error

    with pytest.raises(type(error)) as raised:
        ae.encode(torch.zeros(1, 3, 64, 64), progress=progress)
    assert raised.value is error and len(calls) == 1


def test_out_of_memory_is_met_with_a_smaller_plan(ae, monkeypatch, caplog):
    x = photograph(640, 512)
    z = ae.encode(x)
    real, budgets = sweeps.run, []

    def tight(coder, source, out, rows, on_strip, finite):
        budgets.append(rows)
        if len(budgets) < 2:
            raise torch.OutOfMemoryError("CUDA out of memory (pretended)")
        real(coder, source, out, rows, on_strip, finite)

    monkeypatch.setattr(sweeps, "run", tight)
    monkeypatch.setattr(execute, "_whole", lambda *args: pytest.fail("not whole"))
    budget = least(ae.variant, "encode", 640, 512) * 3
    assert not ae.plan("encode", 640, 512, budget=budget).whole
    assert relative_error(ae.encode(x, budget=budget), z) <= 1e-5
    assert budgets[1] < budgets[0]
    assert "Trying again with less" in caplog.text

    monkeypatch.setattr(sweeps, "run", lambda *args: (_ for _ in ()).throw(MemoryError("pretended")))
    with pytest.raises(BudgetError, match=r"Memory ran out [0-9] times on cpu"):
        ae.encode(x, budget=budget)


def test_other_errors_are_not_taken_for_out_of_memory(ae, monkeypatch):
    monkeypatch.setattr(sweeps, "run", lambda *args: (_ for _ in ()).throw(RuntimeError("a bug")))
    with pytest.raises(RuntimeError, match="a bug"):
        ae.encode(torch.zeros(1, 3, 512, 512), budget=least(ae.variant, "encode", 512, 512))


def test_a_budget_that_was_meant_in_gib():
    for budget in (2, "2"):
        with pytest.raises(
            BudgetError, match=r"but the budget is 2 bytes \(a number is bytes: did you mean '2GiB'\?\)"
        ):
            DCAE(DEMO, "cpu").plan("encode", 512, 512, budget=budget)
    with pytest.raises(BudgetError, match=r"but the budget is 2000 bytes\. Give it"):
        DCAE(DEMO, "cpu").plan("encode", 512, 512, budget=2000)


def test_a_gpu_runs_maps_of_2_31_elements_in_strips():
    """cuDNN is slow with them. sana's encoder has 128 channels at the size of the picture."""
    make = partial(plan.make, VARIANTS["dc-ae-f32c32-sana-1.1"].architecture, "encode", device="cuda")
    assert make(4096, 2048).whole and not make(4096, 4096).whole
    assert make(4096, 4096, whole=True).whole
    assert make(2048, 2048, batch=8).together == 3
