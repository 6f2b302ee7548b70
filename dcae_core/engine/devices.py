"""Parse and choose devices and dtypes; recognise a device that failed. Memory is in `memory`."""

from __future__ import annotations

import re

import torch

from ..errors import OptionError

__all__ = ["best_device", "best_dtype", "compute_dtype", "has_failed", "parse_device", "parse_dtype"]

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def parse_dtype(name: str | torch.dtype | None) -> torch.dtype | None:
    """Return the dtype of a short name ("fp32", "bf16", "fp16"); None for None and "auto", which leave the choice."""
    if name is None or name == "auto" or isinstance(name, torch.dtype):
        return None if name == "auto" else name
    if name not in DTYPES:
        raise OptionError(f"dtype {name!r} is not known: use one of auto, {', '.join(DTYPES)}, or a torch.dtype.")
    return DTYPES[name]


def parse_device(device: str | torch.device | None) -> torch.device:
    """Return a device that can be used; for None the best there is. Raises OptionError."""
    if device is None:
        return best_device()
    try:
        device = torch.device(device)
        torch.empty(0, device=device)
        return device
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = next(iter(str(error).strip().splitlines()), "no details")
        raise OptionError(f"Device {device} can't be used here: {reason.rstrip('.')}. Use {best_device()}.") from error


def best_device() -> torch.device:
    """Return the accelerator that torch sees, else the CPU."""
    found = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    return torch.device("cpu") if found is None else found


def best_dtype(device: torch.device) -> torch.dtype:
    """Return bf16 where it is fast, fp16 on CUDA cards that are fast in fp16 only (Volta and Turing without the GTX 16
    series, whose fp16 is known to be faulty), else fp32.

    bf16 has the range of fp32, so nothing overflows. On CPUs it is fast only with AMX or AVX512-BF16 instructions (3 to
    4 times fp32 there, slower than fp32 elsewhere). In fp16 the attention's sums and the norms are made in fp32, which
    is where published variants are known to overflow; a result that is not finite all the same is computed again in
    fp32.
    """
    if device.type == "cpu":
        return torch.bfloat16 if _cpu_has_fast_bf16() else torch.float32
    if device.type == "cuda":
        if torch.version.hip or torch.cuda.get_device_capability(device) >= (8, 0):
            with torch.cuda.device(device):
                fast = torch.cuda.is_bf16_supported(including_emulation=False)
            return torch.bfloat16 if fast else torch.float32
        tensor_cores = torch.cuda.get_device_capability(device) >= (7, 0)
        return torch.float16 if tensor_cores and "GTX 16" not in torch.cuda.get_device_name(device) else torch.float32
    return torch.bfloat16 if device.type == "xpu" else torch.float32


def compute_dtype(dtype: torch.dtype, device: str) -> torch.dtype:
    """Return the dtype in which weights of `dtype` run on a device of this type: fp32 for fp16 on CPUs without fp16
    arithmetic, where fp32 is 5 to 20 times as fast, else `dtype`."""
    emulated = dtype == torch.float16 and device == "cpu" and not _cpu_has_fp16()
    return torch.float32 if emulated else dtype


def has_failed(error: BaseException) -> bool:
    """Whether `error` reports that a device is gone, hangs or was reset. This process can't use it any more."""
    kind = getattr(torch, "AcceleratorError", None)  # since torch 2.8
    known = re.search(r"\b(CUDA|HIP|XPU|MPS|device) (driver )?error\b|DEVICE_LOST", str(error))
    return (kind is not None and isinstance(error, kind)) or (isinstance(error, RuntimeError) and known is not None)


def _cpu_has_fp16() -> bool:
    probe = getattr(torch.ops.mkldnn, "_is_mkldnn_fp16_supported", lambda: False)
    return torch.backends.mkldnn.is_available() and probe()


def _cpu_has_fast_bf16() -> bool:
    probes = ("_is_amx_tile_supported", "_is_avx512_bf16_supported")
    return any(getattr(torch.cpu, probe, lambda: False)() for probe in probes)
