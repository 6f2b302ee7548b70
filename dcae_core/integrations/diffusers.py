"""For diffusers: its AutoencoderDC, run by dcae_core.

pipe = stream(SanaPipeline.from_pretrained("Efficient-Large-Model/Sana_1600M_4Kpx_BF16_diffusers"), budget="2GiB")

or, for weights in any form that dcae_core reads,

vae = StreamedAutoencoderDC.from_pretrained("dc-ae-f32c32-sana-1.1", torch_dtype=torch.bfloat16, budget="2GiB")
"""

from __future__ import annotations

import functools
import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar, cast

import torch
from diffusers import AutoencoderDC
from torch import nn

from ..autoencoder import first_unless
from ..engine.devices import parse_device, parse_dtype
from ..engine.memory import Budget, parse_bytes
from ..errors import OptionError
from ..variants import Variant, known
from ..weights import hub, infer_variant, keys
from ..weights.checkpoint import Checkpoint
from .streaming import Streaming

__all__ = ["StreamedAutoencoderDC", "Streaming", "stream", "unstream"]

Progress = Callable[[int, int], None]
Given = TypeVar("Given")


def stream(
    vae_or_pipe: Given,
    budget: Budget | None = None,
    progress: Progress | None = None,
    *,
    recompute: bool | None = None,
) -> Given:
    """Make an AutoencoderDC, or the one of a pipeline, encode and decode in a memory budget, any size with the pixels
    of an untiled run; return what was given. It stays an AutoencoderDC: weights, config and methods are diffusers' own.

    budget, progress, recompute: as `Streaming` has them, which is then `vae.streaming` and can be changed (recompute
    None: as it was, at first False). `enable_tiling` blends nothing: the budget decides. With LoRA, other hooks inside,
    quantised weights, under torch.compile and (without recompute) with gradients it runs as without this, and says so
    once. Otherwise, unlike diffusers: autocast changes nothing, other dtypes are converted, sides that are not whole
    latent pixels are padded by repeating the edge, what is not finite in fp16 is computed again, and returned, in fp32,
    and what is not finite then is an error. Raises OptionError.
    """
    vae = _autoencoder(vae_or_pipe)
    parse_bytes(budget)
    if (streaming := _streaming(vae)) is not None:
        streaming.budget, streaming.progress = budget, progress
        streaming.recompute = streaming.recompute if recompute is None else recompute
    else:
        Streaming(vae, budget, progress, bool(recompute)).install()
    return vae_or_pipe


def unstream(vae_or_pipe: Given) -> Given:
    """Undo `stream`; return what was given."""
    if (streaming := _streaming(_autoencoder(vae_or_pipe))) is not None:
        streaming.remove()
    return vae_or_pipe


def _autoencoder(vae_or_pipe: object) -> AutoencoderDC:
    vae = vae_or_pipe if isinstance(vae_or_pipe, nn.Module) else getattr(vae_or_pipe, "vae", None)
    vae = getattr(vae, "_orig_mod", vae)  # of torch.compile
    if not isinstance(vae, AutoencoderDC):
        given = "" if vae is vae_or_pipe else f", whose vae is of type {type(vae).__name__}"
        raise OptionError(
            f"stream was given type {type(vae_or_pipe).__name__}{given}: needed is an AutoencoderDC of diffusers, or a "
            "pipeline that has one, such as SanaPipeline."
        )
    return vae


def _streaming(vae: nn.Module) -> Streaming | None:
    return vars(vae).get("streaming")


class StreamedAutoencoderDC(AutoencoderDC):
    """Makes an AutoencoderDC that is streamed from the start (see `stream`; with recompute), from diffusers' sources
    and ours. What it makes is of the class AutoencoderDC itself, so that pipelines and what is saved know it."""

    def __init__(self, *args: Any, **config: Any):
        super().__init__(*args, **config)
        object.__setattr__(self, "__class__", AutoencoderDC)
        stream(self, recompute=True)

    @classmethod
    def from_pretrained(  # pyright: ignore[reportIncompatibleMethodOverride] - diffusers also takes None
        cls,
        pretrained_model_name_or_path: str | os.PathLike[str],
        *,
        budget: Budget | None = None,
        progress: Progress | None = None,
        device: str | torch.device | None = None,
        scaling_factor: float | None = None,
        **options: Any,
    ) -> AutoencoderDC:
        """From a folder or file in either key layout, or by the name of a variant or of its repository, which is
        downloaded if it is not here, to `cache_dir` (None: $DCAE_HOME or ~/.cache/dcae). A folder that diffusers wrote,
        and any other repository, such as a pipeline's with `subfolder`, is loaded by diffusers (pickles weights_only).

        options: diffusers' own; of those for what is loaded by us, torch_dtype or dtype (None is fp32, "auto" the
        file's), variant (of the file, such as "fp16"), subfolder, local_files_only, cache_dir, device_map of one device
        and output_loading_info count. scaling_factor: instead of the config's; needed where none is published. Raises
        UnknownVariant, DownloadError, CheckpointError, OptionError, and diffusers' own errors.
        """
        parse_bytes(budget)
        model, name = pretrained_model_name_or_path, os.fspath(pretrained_model_name_or_path)
        report: dict[str, Any] = {}
        subfolder, variant = options.get("subfolder"), options.get("variant")
        revision, path = options.get("revision"), hub.is_path(model)
        repository = not path and "/" in name and (known(name) is None or subfolder or revision)
        here = Path(model) / (subfolder or "") if path else None
        if repository and not (revision or options.get("force_download")):
            here = hub.cached(name, subfolder or "")
        if (repository and here is None) or (here is not None and _is_diffusers_folder(here, variant, path)):
            found = {} if here is None else {"pretrained_model_name_or_path": here, "subfolder": None}
            vae = super().from_pretrained(**{"pretrained_model_name_or_path": model, **options, **found})
            vae, report = vae if isinstance(vae, tuple) else (vae, report)
            if scaling_factor is not None:
                vae.register_to_config(scaling_factor=vars(vae)["streaming"].variant.factor(scaling_factor))
        else:
            download = not options.get("local_files_only")
            file, named = (here, None) if here else hub.locate(model, options.get("cache_dir"), allow_download=download)
            vae = cls._from_checkpoint(Checkpoint(file, None, variant), named, _dtype(options), scaling_factor)
            device = device or _one_device(options.get("device_map"))
            report = {"missing_keys": [], "unexpected_keys": [], "mismatched_keys": [], "error_msgs": []}
        stream(vae, budget, progress, recompute=True)
        vae = _moved(vae, device)
        # As in diffusers, the annotation is that of a call without output_loading_info.
        return cast(AutoencoderDC, (vae, report)) if options.get("output_loading_info") else vae

    @classmethod
    def from_single_file(  # pyright: ignore[reportIncompatibleMethodOverride] - its names changed between versions
        cls,
        pretrained_model_link_or_path: str | os.PathLike[str],
        *,
        variant: str | Variant | None = None,
        config: Mapping[str, object] | str | None = None,
        budget: Budget | None = None,
        progress: Progress | None = None,
        device: str | torch.device | None = None,
        scaling_factor: float | None = None,
        **options: Any,
    ) -> AutoencoderDC:
        """From a file (or folder) here; `variant` and `config` as for DCAE.from_file, where the file does not tell.
        Asks no hub; of `options` torch_dtype or dtype counts. What is no path here, such as a link, is loaded by
        diffusers, with its options.

        Raises CheckpointError and OptionError.
        """
        parse_bytes(budget)
        path = pretrained_model_link_or_path
        if not hub.is_path(path) or isinstance(config, str) or "original_config" in options:
            options |= {} if config is None else {"config": config}
            vae = super().from_single_file(os.fspath(path), **options)
        else:
            vae = cls._from_checkpoint(Checkpoint(path, config), variant, _dtype(options), scaling_factor)
        stream(vae, budget, progress, recompute=True)
        return _moved(vae, device)

    @classmethod
    def _from_checkpoint(
        cls,
        checkpoint: Checkpoint,
        variant: str | Variant | None,
        dtype: torch.dtype | str | None,
        scaling_factor: float | None,
    ) -> AutoencoderDC:
        chosen, certain = first_unless(lambda: checkpoint.choose(variant), checkpoint.fits)
        state = {name: keys.widened(tensor) for name, tensor in checkpoint.state(chosen.architecture).items()}
        dtype = next(t.dtype for t in state.values()) if dtype == "auto" else dtype or torch.float32
        config = chosen.diffusers_config() | {"scaling_factor": 1.0 if not certain else chosen.factor(scaling_factor)}
        with torch.device("meta"):
            vae = cls(**{name: value for name, value in config.items() if not name.startswith("_")})
        streaming: Streaming = vars(vae)["streaming"]
        vae.load_state_dict(state, assign=True)
        nn.Module.to(vae.eval(), dtype)  # of AutoencoderDC, warns of no modules to keep in fp32
        if not certain:
            chosen = infer_variant.infer(streaming.encode, checkpoint.fits, str(checkpoint.path))
            vae.register_to_config(scaling_factor=chosen.factor(scaling_factor))
        streaming.variant = chosen
        return vae


# diffusers reads its signature, to find out what belongs to the config.
functools.update_wrapper(StreamedAutoencoderDC.__init__, AutoencoderDC.__init__)


def _moved(vae: AutoencoderDC, device: str | torch.device | None) -> AutoencoderDC:
    move: Any = vae.to  # its decorator hides its types
    return vae if device is None else move(parse_device(device))


def _dtype(options: Mapping[str, Any]) -> torch.dtype | str | None:
    """Return what `torch_dtype` or `dtype` says: a dtype, "auto" or None. Raises OptionError."""
    dtype = options.get("torch_dtype")
    dtype = options.get("dtype") if dtype is None else dtype
    named = getattr(torch, dtype, dtype) if isinstance(dtype, str) else dtype
    return named if named in (None, "auto") else parse_dtype(named)


def _one_device(device_map: Any) -> Any:
    """Return the device of a device_map that has one. Raises OptionError."""
    devices = set(device_map.values()) if isinstance(device_map, Mapping) else {device_map}
    if len(devices) > 1 or devices & {"auto", "balanced", "balanced_low_0", "sequential"}:
        raise OptionError(
            f"device_map {device_map!r} would spread the vae: give one device, such as device_map='cuda'."
        )
    return devices.pop()


def _is_diffusers_folder(folder: Path, variant: str | None, any_variant: bool) -> bool:
    """Whether to leave it to `AutoencoderDC.from_pretrained`. any_variant: also where that says that `variant` is to be
    given."""
    stem = "diffusion_pytorch_model"
    names = [f"{stem}.{variant}.*", f"{stem}-*.{variant}.*", f"{stem}.*.index.{variant}.json"]
    if variant is None:
        names = [f"{stem}.safetensors", f"{stem}.bin", f"{stem}.*.index.json"]
        names += [f"{stem}.*.safetensors"] if any_variant else []
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        return config["_class_name"] == "AutoencoderDC" and any(any(folder.glob(name)) for name in names)
    except (OSError, ValueError, LookupError, TypeError):
        return False
