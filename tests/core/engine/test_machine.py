"""The quickest plan, by the description of a machine."""

import dataclasses
import json
import subprocess
import sys

import pytest
import torch

from dcae_core import VARIANTS, plan
from dcae_core.cli import main
from dcae_core.engine import devices
from dcae_core.engine.machine import CPU, GPUS, Machine
from dcae_core.engine.plan import Strips
from dcae_core.errors import BudgetError, OptionError

MEASURED = dataclasses.replace(CPU, measured=True)
NAMES = ("dc-ae-f32c32-mix-1.0", "dc-ae-f32c32-sana-1.1", "dc-ae-lite-f32c32-sana-1.1", "dc-ae-f64c128-mix-1.0")


def made(name: str, direction: str, side: int, machine: Machine = MEASURED, budget: int | None = None, **options):
    run = (VARIANTS[name].architecture, direction, side, side, 1, budget, torch.bfloat16)
    return plan.make(*run, machine=machine, **options)


@pytest.mark.parametrize("direction", plan.DIRECTIONS)
@pytest.mark.parametrize("name", NAMES)
def test_no_other_strips_are_predicted_to_be_quicker(name, direction):
    for side, budget in ((512, None), (2048, None), (2048, 1 << 30)):
        one = made(name, direction, side, budget=budget, whole=False)
        size, total = (side, side) if direction == "encode" else one.latent_size, 0.0
        for sweep, chosen in zip(plan._sweeps(one.architecture, direction, one.channels), one.rows, strict=True):
            strips = Strips(sweep, size, 0, one.target)
            heights = {min(n * sweep.unit, size[0]) for n in range(1, -(-size[0] // sweep.unit) + 1)}
            room = [h for h in heights if budget is None or strips.bytes(h) <= strips.bytes(chosen)]
            least = min(strips.seconds(h, CPU) for h in room)
            assert strips.seconds(chosen, CPU) <= 1.03 * least, (side, chosen)
            total += strips.seconds(chosen, CPU)
            size = sweep.size_after(*size)
        assert one.seconds == pytest.approx(total)
        either = made(name, direction, side, budget=budget)
        assert either.seconds <= one.seconds and either.peak_bytes <= (budget or either.peak_bytes)


def test_what_a_machine_is_bad_at_is_avoided():
    slow_to_clear = dataclasses.replace(CPU, clear=1e6)
    slow_with_weights = dataclasses.replace(CPU, weights=1e6)
    for name in NAMES:
        for direction in plan.DIRECTIONS:
            few, many = (made(name, direction, 1024, machine) for machine in (slow_with_weights, slow_to_clear))
            assert few.strips == 1 < many.strips
            assert many.peak_bytes < few.peak_bytes


def test_whole_or_strips_can_be_asked_for():
    fast_in_strips = dataclasses.replace(CPU, clear=1e6)
    assert made(NAMES[0], "decode", 1024, fast_in_strips, whole=True).whole
    assert not made(NAMES[0], "decode", 64, whole=False).whole
    with pytest.raises(BudgetError, match="needs at least"):
        made(NAMES[0], "decode", 1024, budget=1 << 20, whole=True)


def test_as_many_pictures_at_once_as_take_least_time():
    """Whole maps of many pictures leave the cache; each run by itself calls every layer again."""
    for slow, expected in (({"call": 1.0}, 16), ({"near": 1e18, "far": 1e6}, 1)):
        machine = dataclasses.replace(CPU, **slow)
        one = plan.make(VARIANTS[NAMES[0]].architecture, "encode", 256, 256, 16, machine=machine, whole=True)
        assert one.whole and one.together == expected


def test_rates_grow_with_the_threads():
    """What a call takes does not: with many threads, fewer strips."""
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(2 * threads)
        more = Machine.here()
    finally:
        torch.set_num_threads(threads)
    here = Machine.here()
    assert more.bf16 == 2 * here.bf16 and more.weights == 2 * here.weights and more.call == here.call
    assert not here.measured


def test_on_a_gpu_the_description_of_a_cpu_changes_nothing():
    """Strips are for memory there, until someone has measured."""
    one = made(NAMES[0], "decode", 1024, dataclasses.replace(CPU, clear=1e6), device="cuda")
    assert one.whole and one.seconds is None


def test_a_first_plan_imports_no_compiler():
    """torch's takes a second. torch 2.6 needs a part of it for any layer on meta."""
    code = (
        "import sys, torch\n"
        "with torch.device('meta'): torch.nn.Conv2d(1, 1, 1)\n"
        "before = set(sys.modules)\n"
        "from dcae_core import VARIANTS, plan\n"
        "for v in VARIANTS.values():\n"
        "    [plan.make(v.architecture, d, 1024, 1024, budget=b) for d in plan.DIRECTIONS for b in (None, 1 << 40)]\n"
        "print([m for m in ('torch._dynamo', 'torch._inductor', 'sympy') if m in sys.modules.keys() - before])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.strip() == "[]", done.stderr


def test_a_description_in_a_file(tmp_path, capsys):
    file = tmp_path / "machine.json"
    CPU.save(file)
    assert Machine.load(file) == CPU
    arguments = ["plan", "--size", "1024", "--budget", "4GiB", "--machine", str(file)]
    assert main(arguments) == 0
    table = capsys.readouterr().out.splitlines()
    assert table[0].endswith(f"; for {CPU.name}")
    assert [len(line.split()) for line in table[2:]] == [5, 5], "no seconds where they mean nothing"
    MEASURED.save(file)
    assert main(arguments) == 0
    shown = [float(line.split()[-1]) for line in capsys.readouterr().out.splitlines()[2:]]
    for direction, seconds in zip(plan.DIRECTIONS, shown, strict=True):
        predicted = made("dc-ae-f32c32-mix-1.0", direction, 1024, budget=4 << 30).seconds
        assert seconds == pytest.approx(predicted, abs=0.005)


def test_a_table_says_where_fp16_is_not_what_runs(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(devices, "_cpu_has_fp16", lambda: False)
    CPU.save(tmp_path / "machine.json")
    assert main(["plan", "--size", "512", "--dtype", "fp16", "--machine", str(tmp_path / "machine.json")]) == 0
    assert "; float16 runs in float32 on this CPU; for " in capsys.readouterr().out


@pytest.mark.parametrize(
    "text", ["", "[]", "{}", json.dumps({**dataclasses.asdict(CPU), "far": 0}), '{"name": "x", "tea": 1}']
)
def test_what_is_not_a_description(tmp_path, text, capsys):
    file = tmp_path / "machine.json"
    file.write_text(text)
    with pytest.raises(OptionError, match="does not describe a machine"):
        Machine.load(file)
    assert main(["plan", "--machine", str(file)]) == 1
    assert "benchmarks/machine.py" in capsys.readouterr().err


def test_predictions_for_gpus_are_called_that(capsys):
    variant = VARIANTS[NAMES[1]]
    seconds = [plan.make(variant.architecture, "decode", 1024, 1024, device="cuda").predict(g) for g in GPUS.values()]
    assert seconds == sorted(seconds) and 0.005 < seconds[0] < 0.1 and 1 < seconds[-1] < 10
    assert main(["plan", "--variant", variant.name, "--size", "1024", "--budget", "2GiB", "--machine", "rtx 3060"]) == 0
    title, _, *rows = capsys.readouterr().out.splitlines()
    assert title.endswith("for RTX 3060, by its data sheet: nothing was measured")
    assert len(rows) == 2 and all(0.1 < float(row.split()[-1]) < 2 for row in rows)
    assert main(["plan", "--machine", "no such card"]) == 1
    assert "RTX 4090" in capsys.readouterr().err.upper()
