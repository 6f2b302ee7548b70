"""Winograd convolutions are torch's, with less rounding, in the memory they announce."""

import pytest
import torch
from torch.nn import functional as F

from dcae_core.engine.live_bytes import LiveBytes
from dcae_core.engine.ops import winograd
from dcae_core.engine.target import Target
from tests.core.helpers import relative_error

FP32 = Target(torch.float32)


@pytest.mark.parametrize("pad", [0, 1])
@pytest.mark.parametrize(
    ("batch", "inputs", "outputs", "rows", "width"),
    [(1, 64, 64, 2, 2), (2, 64, 96, 3, 6), (1, 128, 64, 33, 30), (1, 64, 128, 4, 700), (2, 512, 512, 40, 30)],
)
def test_like_torchs(batch, inputs, outputs, rows, width, pad):
    torch.manual_seed(0)
    x = torch.randn(batch, inputs, rows + 2 - 2 * pad, width).contiguous(memory_format=torch.channels_last)
    weight, bias = torch.randn(outputs, inputs, 3, 3) * (9 * inputs) ** -0.5, torch.randn(outputs)
    exact = F.conv2d(x.double(), weight.double(), bias.double(), padding=(pad, 1))
    ours, theirs = winograd.conv(x, weight, bias, pad), F.conv2d(x, weight, bias, padding=(pad, 1))
    assert relative_error(ours.double(), exact) <= max(5e-7, relative_error(theirs.double(), exact))
    assert relative_error(winograd.conv(x, weight, None, pad), theirs - bias[:, None, None]) <= 2e-6


@pytest.mark.parametrize(
    ("inputs", "outputs", "rows", "width"),
    [(512, 512, 64, 256), (64, 256, 9, 1000), (128, 64, 8, 4096), (256, 512, 500, 10)],
)
def test_scratch_is_what_is_counted(inputs, outputs, rows, width):
    x = torch.empty(1, inputs, rows + 2, width, device="meta").contiguous(memory_format=torch.channels_last)
    weight, bias = torch.empty(outputs, inputs, 3, 3, device="meta"), torch.empty(outputs, device="meta")
    with LiveBytes([x, weight, bias]) as count:
        y = winograd.conv(x, weight, bias, 0)
    announced = winograd.scratch(weight, rows, width) + y.nbytes
    assert 0.85 * announced <= count.peak <= announced


def test_it_pays_where_there_is_enough_to_do():
    wide, narrow = torch.empty(256, 256, 3, 3, device="meta"), torch.empty(3, 128, 3, 3, device="meta")
    assert winograd.pays(wide, 32, 64, FP32)
    assert not winograd.pays(wide, 31, 64, FP32)
    assert not winograd.pays(wide, 100, 101, FP32)
    assert not winograd.pays(narrow, 512, 512, FP32)
    with winograd.disabled():
        assert not winograd.pays(wide, 32, 64, FP32)
    for elsewhere in (Target(torch.bfloat16), Target(torch.float32, "cuda")):
        assert not winograd.pays(wide, 32, 64, elsewhere)
    assert winograd.pays(wide, 32, 64, FP32)
