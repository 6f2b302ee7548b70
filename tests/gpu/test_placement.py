"""The path of a run on a GPU, without one: fake tensors, which know device, dtype and shape of everything and refuse to
mix devices. With a torch that is built for CUDA (`nox -s cuda`) their device is "cuda"; any other has a device of
torch's own for tests stand in for it.

Each run must wait for the device once at most, at its end: a wait for each strip would leave the GPU idle.
"""

import copy
import itertools
from functools import partial

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils import _pytree, backend_registration
from torch.utils._python_dispatch import TorchDispatchMode

from dcae_core import VARIANTS, plan
from dcae_core.engine import execute
from dcae_core.engine.ops import fused

NAMES = (
    "dc-ae-f32c32-in-1.0",
    "dc-ae-f64c128-in-1.0",
    "dc-ae-f128c512-in-1.0",
    "dc-ae-f32c32-sana-1.1",
    "dc-ae-lite-f32c32-sana-1.1",
    "dc-ae-f32c128-1.5",
)
FINITE_ON_THE_HOST = {"aten::sum", "aten::abs", "aten::ne", "aten::eq", "aten::mul"}
DTYPES = (torch.bfloat16, torch.float16, torch.float32)


@pytest.fixture(autouse=True)
def without_trials(monkeypatch):
    monkeypatch.setattr(fused, "load_kernels", lambda *_: None)
    monkeypatch.setattr(fused, "cudnn_relu", lambda *_: False)  # it wants a real card


@pytest.fixture(scope="module")
def device() -> torch.device:
    if torch.backends.cuda.is_built():
        return torch.device("cuda", 0)
    if not hasattr(backend_registration, "_setup_privateuseone_for_python_backend"):
        pytest.skip("this torch has neither CUDA nor a device for tests")
    if torch._C._get_privateuse1_backend_name() != "gpu":
        backend_registration._setup_privateuseone_for_python_backend("gpu")
        torch.gpu.get_amp_supported_dtype = lambda: list(DTYPES)
    return torch.device("gpu", 0)


class Watch(TorchDispatchMode):
    """Counts what waits for the device, and what is computed anywhere else."""

    def __init__(self, device: torch.device):
        super().__init__()
        self.device, self.waits, self.elsewhere, self.launches = device, 0, [], 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func._schema.name
        if name == "aten::_local_scalar_dense":
            self.waits += args[0].device == self.device
            return True
        out = func(*args, **(kwargs or {}))
        devices = {t.device for t in _pytree.tree_leaves(out) if isinstance(t, torch.Tensor)}
        moves = name in ("aten::copy_", "aten::_to_copy", "aten::empty.memory_format", "aten::empty")
        if not func.is_view and not moves and not name.startswith("prim::"):
            self.launches += devices == {self.device}
            self.elsewhere += [name] if devices - {self.device} else []
        return out


def fake_coder(name: str, direction: str, dtype: torch.dtype, device: torch.device):
    """An encoder or decoder, made in a FakeTensorMode."""
    coder = copy.deepcopy(plan._meta_coder(VARIANTS[name].architecture, direction))
    with FakeTensorMode() as mode:
        for module in coder.modules():
            for kind in (module._parameters, module._buffers):
                for key, weight in kind.items():
                    if weight is not None:
                        fake = torch.empty_strided(weight.shape, weight.stride(), dtype=dtype, device=device)
                        kind[key] = torch.nn.Parameter(fake, False) if kind is module._parameters else fake
    coder.to = lambda dtype: coder  # converts nothing here, and can't swap fake weights
    return coder, mode


def watch(name, direction, dtype, device, whole, on_device=(False, False), as_uint8=False) -> Watch:
    """Return what a run was seen to do. on_device: whether input and output are."""
    architecture = VARIANTS[name].architecture
    side = 4 * architecture.spatial_ratio
    make = partial(plan.make, architecture, direction, side, side, dtype=dtype, device=device.type)
    made = make() if whole else make(budget=make(whole=False).peak_bytes // 2, whole=False, strict=False)
    assert made.whole if whole else made.strips > 1
    coder, mode = fake_coder(name, direction, dtype, device)
    given, output = (device if there else torch.device("cpu") for there in on_device)
    sizes = [(3, side, side), (architecture.latent_channels, 4, 4)]
    shape, result = sizes if direction == "encode" else sizes[::-1]
    kinds = (torch.uint8, dtype) if direction == "encode" else (torch.float32, torch.uint8)
    kinds = kinds if as_uint8 else (torch.float32, dtype)
    with mode, torch.no_grad():
        x = torch.empty(1, *shape, dtype=kinds[0], device=given)
        with Watch(device) as seen:
            y, _ = execute.run(coder, lambda: made, x, None, output, kinds[1] == torch.uint8)
    assert (y.device, y.dtype, y.shape) == (output, kinds[1], (1, *result))
    assert seen.waits == (output == device or kinds[1] == torch.uint8)
    return seen


@pytest.mark.parametrize("whole", [True, False])
@pytest.mark.parametrize("direction", plan.DIRECTIONS)
@pytest.mark.parametrize("name", NAMES)
def test_every_network(name, direction, whole, device):
    for dtype in DTYPES if whole else DTYPES[:1]:
        seen = watch(name, direction, dtype, device, whole, (True, True))
        assert not seen.elsewhere and seen.launches > 100


@pytest.mark.parametrize("on_device", list(itertools.product([False, True], repeat=2)))
@pytest.mark.parametrize("whole", [True, False])
@pytest.mark.parametrize("direction", plan.DIRECTIONS)
def test_every_input_and_output(direction, whole, on_device, device):
    for as_uint8 in (False, True):
        seen = watch("dc-ae-lite-f32c32-sana-1.1", direction, torch.bfloat16, device, whole, on_device, as_uint8)
        assert set(seen.elsewhere) <= (set() if on_device[1] else FINITE_ON_THE_HOST)
