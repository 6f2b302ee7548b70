"""Settings of torch that a caller may have made for the whole process, or for a block, change nothing here."""

import contextlib
from collections.abc import Iterator

import pytest
import torch

from dcae_core import DCAE, DEMO, VARIANTS, latents, taesana
from dcae_core.engine.devices import compute_dtype
from tests.core.helpers import least, photograph, taesana_files


@contextlib.contextmanager
def default_dtype(dtype: torch.dtype) -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


@contextlib.contextmanager
def deterministic() -> Iterator[None]:
    torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(False)


SETTINGS = {
    "default dtype float64": lambda: default_dtype(torch.float64),
    "default dtype bfloat16": lambda: default_dtype(torch.bfloat16),
    "a device": lambda: torch.device("meta"),
    "deterministic algorithms": deterministic,
    "inference mode": torch.inference_mode,
    "autocast": lambda: torch.autocast("cpu", torch.bfloat16),
    "autocast float16": lambda: torch.autocast("cpu", torch.float16),
}
STEPS = ("load", "encode", "decode")


def results(dtype: str, setting=contextlib.nullcontext, steps=STEPS) -> list[torch.Tensor]:
    """Latents and pictures of a whole and a streamed run. `setting` is in force during `steps`."""
    during = {step: setting if step in steps else contextlib.nullcontext for step in STEPS}
    x = photograph(96, 160)
    with during["load"]():
        ae = DCAE(DEMO, "cpu", dtype)  # from a file in fp16
    run_in = compute_dtype(ae.dtype, "cpu")
    budget = {way: least(ae.variant, way, *x.shape[2:], run_in) for way in ("encode", "decode")}
    with during["encode"]():
        made = [ae.encode(x), ae.encode(x, budget["encode"])]
    assert not ae.last_plan.whole
    with during["decode"]():
        made += [ae.decode(made[0].clone()), ae.decode(made[0].clone(), budget=budget["decode"])]
    return made


@pytest.fixture(scope="module")
def plain() -> dict[str, list[torch.Tensor]]:
    return {dtype: results(dtype) for dtype in ("fp32", "bf16", "fp16")}


CASES = [("fp32", step) for step in STEPS] + [(dtype, None) for dtype in ("fp32", "bf16", "fp16")]


@pytest.mark.parametrize(("dtype", "step"), CASES)
@pytest.mark.parametrize("setting", SETTINGS)
def test_nothing_changes(plain, setting, dtype, step):
    made = results(dtype, SETTINGS[setting], [step] if step else STEPS)
    for one, other in zip(made, plain[dtype], strict=True):
        assert one.dtype == other.dtype and one.device == other.device
        assert torch.equal(one, other)


@pytest.mark.parametrize("setting", SETTINGS)
def test_files_are_read_alike(tmp_path, setting):
    z, alpha = torch.randn(1, 32, 2, 3), torch.randint(256, (1, 64, 96), dtype=torch.uint8)
    latents.write(tmp_path / "z.safetensors", z, VARIANTS[DEMO], (64, 96), alpha=alpha)
    draft = taesana_files(tmp_path, "decoder") / "taesana_decoder.safetensors"
    wanted = taesana.load(draft, "decoder").state_dict()
    with SETTINGS[setting]():
        found, network = latents.read(tmp_path / "z.safetensors"), taesana.load(draft, "decoder").state_dict()
    assert torch.equal(found.raw, z) and torch.equal(found.alpha, alpha)
    for name, tensor in network.items():
        assert tensor.dtype == torch.float32 and torch.equal(tensor, wanted[name])
