"""Settings of torch that a caller may have made for the whole process, or for a block, change nothing here."""

import contextlib
from collections.abc import Iterator

import pytest
import torch

from dcae_core import DCAE, DEMO
from tests.core.helpers import least, photograph


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
}


def results(dtype: str) -> list[torch.Tensor]:
    with torch.device("cpu"):
        x = photograph(96, 160)
    ae = DCAE(DEMO, "cpu", dtype)
    z = ae.encode(x)
    budget = {way: least(ae.variant, way, *x.shape[2:], ae.dtype) for way in ("encode", "decode")}
    made = [z, ae.encode(x, budget["encode"])]
    assert not ae.last_plan.whole
    return [*made, ae.decode(z), ae.decode(z, budget=budget["decode"])]


@pytest.fixture(scope="module", params=["fp32", "bf16"])
def plain(request) -> tuple[str, list[torch.Tensor]]:
    return request.param, results(request.param)


@pytest.mark.parametrize("setting", SETTINGS)
def test_nothing_changes(plain, setting):
    dtype, expected = plain
    with SETTINGS[setting]():
        made = results(dtype)
    for one, other in zip(made, expected, strict=True):
        assert one.dtype == other.dtype and one.device == other.device
        assert torch.equal(one, other)
