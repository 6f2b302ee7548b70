"""When a coder of an AutoencoderDC must run diffusers' own forward: what the engine would leave out or do otherwise."""

# What torch has no public name for.
# pyright: reportPrivateUsage=false

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple, TypeGuard

import torch
from torch import Tensor, nn
from torch.nn.modules import module as torch_module

__all__ = [
    "Configuration",
    "Offload",
    "configuration",
    "offloads",
    "why_hooks",
    "why_input",
    "why_modules",
    "why_weights",
]

Configuration = list[tuple[type, list[str], dict[str, object], type]]
# torch 2.6 has no function that asks these.
GLOBAL_HOOKS = (
    "_global_forward_hooks",
    "_global_forward_pre_hooks",
    "_global_backward_hooks",
    "_global_backward_pre_hooks",
)
DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)


def configuration(coder: nn.Module) -> Configuration:
    """Return what its modules are: equal for coders that compute the same from the same weights. Made at every run."""
    return [(type(m), _weights(m), _settings(m), type(getattr(m, "processor", None))) for m in coder.modules()]


def _weights(module: nn.Module) -> list[str]:
    return [name for name, weight in module._parameters.items() if weight is not None]


def _settings(module: nn.Module) -> dict[str, object]:
    """Return its public attributes that are no modules and no tensors: `eps`, `shortcut` and the like."""
    return {
        name: value
        for name, value in vars(module).items()
        if not name.startswith("_") and name != "training" and isinstance(value, (bool, int, float, str, tuple))
    }


def _patched(kind: type[nn.Module]) -> str | None:
    """Return which method that computes is not of the package of its class."""
    for method in ("forward", "_conv_forward"):
        owner = next((c for c in kind.__mro__ if method in vars(c)), None)
        if owner is not None and vars(owner)[method].__module__ != owner.__module__:
            return method
    return None


def why_input(x: object) -> str | None:
    """Return why `x` can't go through the engine, None if it can."""
    if not isinstance(x, Tensor) or type(x) not in (Tensor, nn.Parameter):
        return f"the input is of type {type(x).__name__}"
    interpreters: Any = torch._C
    if x.is_meta or interpreters._functorch.peek_interpreter_stack() is not None:
        return "the input has no numbers of its own"
    if torch.autograd.forward_ad._current_level >= 0:
        return "derivatives are computed forwards"
    return None


def why_modules(coder: nn.Module, expected: Configuration) -> str | None:
    """Return which module is not as the config says: LoRA, quantised and compiled ones, other paddings."""
    found = configuration(coder)
    for (name, module), one, other in zip(coder.named_modules(), found, expected, strict=False):
        if one != other:
            changed = [f"{key}={value}" for key, value in one[2].items() if other[2].get(key) != value]
            what = f"{type(module).__name__}({module.extra_repr()})"
            return f"{name or 'it'} is {what}, {', '.join(changed) or 'another module'}, and not as its config says"
        if "_conv_forward" in vars(module):  # `forward` is for `why_hooks`
            return f"{name or 'it'} has _conv_forward of somebody else"
    for kind in {type(module) for module in coder.modules()}:
        if (patched := _patched(kind)) is not None:
            return f"{kind.__name__} has {patched} of somebody else"
    if len(found) != len(expected):
        return "it has other modules than its config says"
    if any(isinstance(m, nn.BatchNorm2d) and m.training for m in coder.modules()):
        return "its batch norms are in training mode"
    return None


class Offload(NamedTuple):
    """Weights that a hook keeps elsewhere until a module runs."""

    load: Callable[[], object]
    unload: Callable[[], object]
    device: torch.device | str | int  # where they come to


def offloads(coder: nn.Module) -> list[Offload]:
    """Return those of accelerate's sequential offload and diffusers' group offload."""
    found: list[Offload] = []
    groups: dict[int, Any] = {}
    for module in coder.modules():
        hook = module.__dict__.get("_hf_hook")
        if _aligns(hook) and hook.offload:
            unload = partial(hook.post_forward, module, None)
            found.append(Offload(partial(hook.pre_forward, module), unload, hook.execution_device))
        for hook in _registered(module).values():
            if hasattr(hook, "group"):
                groups[id(hook.group)] = hook.group
    return found + [Offload(g.onload_, g.offload_, g.onload_device) for g in groups.values()]


def why_hooks(coder: nn.Module) -> str | None:
    """Return which hook inside would not run. Those of `coder` itself do, and offloading is carried out."""
    if any(getattr(torch_module, name) for name in GLOBAL_HOOKS):
        return "there are global module hooks"
    for name, module in coder.named_modules():
        registered = _registered(module)
        if any(key != "group_offloading" for key in registered) or any(_streams(h) for h in registered.values()):
            return f"{name or 'it'} has a hook of diffusers, {next(iter(registered))}"
        if module is coder or registered:
            continue
        if any((module._forward_hooks, module._forward_pre_hooks, module._backward_hooks, module._backward_pre_hooks)):
            return f"{name} has hooks"
        hook, forward = module.__dict__.get("_hf_hook"), module.__dict__.get("forward")
        if hook is not None and not _aligns(hook):
            return f"{name} has {type(hook).__name__}"
        if hook is None and forward is not None and getattr(forward, "__func__", None) is not type(module).forward:
            return f"{name} has a forward of its own"
    return None


def why_weights(coder: nn.Module) -> str | None:
    """Return what the engine can't do with its weights. Those that are kept elsewhere come to one device."""
    weights = [t for t in (*coder.parameters(), *coder.buffers()) if t.is_floating_point()]
    for weight in weights:
        if type(weight) not in (nn.Parameter, Tensor):
            return f"a weight is of type {type(weight).__name__}"
    here = None if offloads(coder) else "here"
    kinds = {(w.dtype, here and w.device) for w in weights}
    if len(kinds) > 1:
        return f"its weights are {' and '.join(sorted(f'{dtype} on {device}' for dtype, device in kinds))}"
    dtype, device = kinds.pop()
    if dtype not in DTYPES or (device and device.type == "meta"):
        return f"its weights are {dtype} on {device}"
    return None


def _aligns(hook: object) -> TypeGuard[Any]:
    return type(hook).__name__ == "AlignDevicesHook"  # accelerate need not be here


def _registered(module: nn.Module) -> dict[str, Any]:
    """The hooks of diffusers on `module`, by name."""
    return getattr(module.__dict__.get("_diffusers_hook"), "hooks", {})


def _streams(hook: object) -> bool:
    """Whether weights come while others are used."""
    return getattr(getattr(hook, "group", None), "stream", None) is not None
