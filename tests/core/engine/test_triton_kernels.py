"""The Triton kernels against their plain torch twins, in Triton's interpreter: a GPU's arithmetic without one.

It runs in a process of its own, since Triton reads TRITON_INTERPRET when it is imported. The interpreter cuts bf16 off
where GPUs round it, hence the bound for that.
"""

import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from dcae_core.engine.ops import fused

triton = pytest.importorskip("triton", reason="Triton has no package for this system")

SCRIPT = """
import torch
from torch import nn
from triton.runtime import interpreter
from dcae_core import model
from dcae_core.engine.ops import fused
from dcae_core.engine.ops import triton_kernels as kernels

torch.manual_seed(0)
plain_dot = interpreter.InterpreterBuilder.create_dot

def widened(handle):
    if handle.dtype.scalar != interpreter.tl.bfloat16:
        return handle
    return interpreter.TensorHandle((handle.data.astype("uint32") << 16).view("float32"), interpreter.tl.float32)

def dot(builder, a, b, *more):
    return plain_dot(builder, widened(a), widened(b), *more)

interpreter.InterpreterBuilder.create_dot = dot  # its own multiplies the bits of bf16 as integers

def random(*shape):
    return (torch.randn(shape) * 2).to(DTYPE).contiguous(memory_format=torch.channels_last)

def close(got, wanted):
    # a last bit may turn over where sums are taken in another order
    assert got.shape == wanted.shape and got.dtype == wanted.dtype
    error = ((got.float() - wanted.float()).norm() / wanted.float().norm()).item()
    assert error <= BOUND, error

for batch, channels, height, width in ((1, 64, 3, 5), (2, 96, 4, 17), (1, 1024, 1, 1)):
    norm = model.RMSNorm(channels).to(DTYPE).requires_grad_(False)
    norm.weight.uniform_(0.5, 2)
    norm.bias.uniform_(-1, 1)
    x, y = random(batch, channels, height, width), random(batch, channels, height, width)
    close(kernels.add_norm(norm, y, x, torch.empty_like(x)), fused.add_norm(norm, y.clone(), x, torch.empty_like(x)))
    for act in kernels.ACTS[1:]:
        blank = torch.empty_like(x)
        close(kernels.add_norm(norm, x, None, torch.empty_like(x), act), fused.act_norm(norm, act, x, blank))
        wanted = fused.ACTIVATIONS[act](x + norm.bias[:, None, None], torch.empty_like(x))
        close(kernels.add_bias(x, norm.bias, None, blank, act), wanted)
    wanted = fused.add_norm(nn.Identity(), y.clone(), x, torch.empty_like(x), norm.bias)
    close(kernels.add_bias(y, norm.bias, x, torch.empty_like(x)), wanted)
    conv = nn.Conv2d(2 * channels, 2 * channels, 3, groups=2 * channels).to(DTYPE).requires_grad_(False)
    for pad in (0, 1):
        window = random(batch, 2 * channels, height + 2 - 2 * pad, width)
        close(kernels.depth_gate(conv, window, pad), fused.depth_gate(conv, window, pad))
for batch, heads, height, width in ((1, 1, 3, 5), (2, 2, 13, 84)):
    d = kernels.HEAD_DIM
    qkv, out = random(batch, 3 * heads * d, height, width), random(batch, 2 * heads * d, height, width)
    q, k, v = qkv.chunk(3, dim=1)
    sums, parts = fused.sum_up(k, v, d), out.chunk(2, dim=1)
    torch.testing.assert_close(kernels.sum_up(k, v, d), sums, rtol=1e-5, atol=1e-5 * sums.abs().max().item())
    before = parts[1].clone()
    fused.attend(q, sums, parts[1])
    wanted = parts[1].clone()
    parts[1].zero_()
    close(kernels.attend(q, sums, parts[1]), wanted)
    assert not torch.equal(before, wanted)
hot = random(1, 64, 2, 3)
hot[0, 0, 0, 0] = float("inf")
for act in ("relu", "silu"):  # overflow stays visible
    assert not kernels.add_norm(model.RMSNorm(64).to(DTYPE), hot, None, torch.empty_like(hot), act).isfinite().all()
fused.try_out(kernels, torch.device("cpu"), DTYPE)
print("all close")
"""


@pytest.mark.parametrize(("dtype", "bound"), [("float32", 1e-6), ("float16", 1e-3), ("bfloat16", 2e-2)])
def test_kernels_do_what_their_twins_do(dtype, bound):
    script = SCRIPT.replace("DTYPE", f"torch.{dtype}").replace("BOUND", str(bound))
    ran = subprocess.run(
        [sys.executable, "-c", script],
        env={**os.environ, "TRITON_INTERPRET": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    if triton.__version__ < "3.3" and "only 0-dimensional arrays can be converted" in ran.stderr:
        pytest.skip(f"the interpreter of Triton {triton.__version__} needs a numpy older than {np.__version__}")
    assert "all close" in ran.stdout, ran.stderr[-2000:]


@pytest.mark.parametrize("error", [RuntimeError("Failed to find C compiler.\nSet CC."), AttributeError("no rsqrt")])
def test_kernels_that_can_not_be_had(monkeypatch, caplog, error):
    """torch does without, and one line says so; out of memory says nothing about them."""

    def fail(*_):
        raise error

    monkeypatch.setattr(fused, "try_out", fail)
    fused.load_kernels.cache_clear()
    for _ in range(2):
        assert fused.load_kernels(torch.device("cpu"), torch.float32) is None
    assert [r.getMessage() for r in caplog.records] == [
        f"Triton kernels are not used on cpu in torch.float32, torch is: {str(error).splitlines()[0]}"
    ]
    fused.load_kernels.cache_clear()
    monkeypatch.setattr(fused, "try_out", lambda *_: (_ for _ in ()).throw(torch.OutOfMemoryError("full")))
    with pytest.raises(torch.OutOfMemoryError):
        fused.load_kernels(torch.device("cpu"), torch.float32)


@pytest.mark.parametrize("keeps", [True, False])
def test_cudnn_s_relu_must_keep_nan(monkeypatch, keeps):
    """Else numbers that are not finite would be lost on the way. Stands in for cuDNN."""

    def both(x, weight, bias, stride, padding, dilation, groups):
        y = F.conv2d(x, weight, bias, stride, padding, dilation, groups).relu()
        return y if keeps else y.nan_to_num()

    monkeypatch.setattr(torch, "cudnn_convolution_relu", both)
    fused.cudnn_relu.cache_clear()
    assert fused.cudnn_relu(torch.device("cpu"), torch.float32) is keeps
    fused.cudnn_relu.cache_clear()
