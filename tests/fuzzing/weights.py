"""Untrusted weights (files, folders, indexes of shards, configs, other things of these names) and files of latents."""

from __future__ import annotations

import contextlib
import copy
import functools
import io
import pickle
from pathlib import Path
from random import Random

import torch

from dcae_core import DCAE, DEMO, VARIANTS, hub, latents
from dcae_core.architecture import Architecture
from dcae_core.cli import main
from dcae_core.media.nonfinite import NonFiniteError
from dcae_core.media.sizes import Fit
from dcae_core.weights import keys
from dcae_core.weights.checkpoint import Checkpoint, is_dcae

from .examine import Target, attempt, expect, ran
from .mutate import bent, json_bytes, odd, odd_text, pack, scrambled, special, write_sparse

__all__ = ["CHECKPOINT", "LATENTS", "METADATA", "ODD_FACTORS", "ODD_SIZES", "decoder", "good"]

NAMES = ("x", "model", "diffusion_pytorch_model", "dc-ae-f32c32-mix-1.0")
SHARD = "diffusion_pytorch_model-{:05}-of-{:05}.safetensors"
INDEX = "diffusion_pytorch_model.safetensors.index.json"
SMALL = 64 << 20  # bytes of a file that is loaded, not only looked at

# Nothing of it is published.
CUSTOM = {"latent_channels": 4, "attention_head_dim": 8, "scaling_factor": 0.5}
CUSTOM |= {f"{side}_block_out_channels": [8, 16] for side in ("encoder", "decoder")}
CUSTOM |= {"encoder_block_types": ["ResBlock", "EfficientViTBlock"], "encoder_layers_per_block": [0, 1]}
CUSTOM |= {"decoder_block_types": ["EfficientViTBlock", "ResBlock"], "decoder_layers_per_block": [1, 1]}
CUSTOM |= {"encoder_qkv_multiscales": [[], [3]], "decoder_qkv_multiscales": [[5], []]}
CUSTOM |= {"decoder_norm_types": ["rms_norm", "batch_norm"], "decoder_act_fns": ["silu", "relu"]}


def make_checkpoint(chance: Random, folder: Path) -> Path:
    kind, path = chance.randrange(10), folder / f"{chance.choice(NAMES)}.safetensors"
    if kind == 0:
        special(chance, path)
    elif kind == 1:
        buffer, zipped = io.BytesIO(), chance.random() < 0.5
        torch.save({"state_dict": Bomb()}, buffer, _use_new_zipfile_serialization=zipped)
        bare = pickle.dumps(Bomb(), chance.randrange(pickle.HIGHEST_PROTOCOL + 1))
        path.write_bytes(chance.choice((buffer.getvalue(), bare)))
    elif kind == 2:
        path.write_bytes(scrambled(chance, hub.bundled().read_bytes(), chance.choice((8, 200, 20_000, None))))
    elif kind <= 5:
        write(chance, path, chance.choice((0, 1, 1, 2, 4)))
    else:
        path = repository(chance, folder)
    if chance.random() < 0.4:
        (path if path.is_dir() else folder).joinpath("config.json").write_bytes(config(chance))
    return folder if chance.random() < 0.3 else path


def write(chance: Random, path: Path, mutations: int, part: tuple[int, int] = (0, 1)) -> None:
    """A file with the header of a variant or of another network, and zeros for weights; `part` (i, n) is every n-th
    tensor from i on."""
    variant = chance.choice((DEMO, DEMO, DEMO, "custom", "custom", *VARIANTS))
    architecture = Architecture.from_config(CUSTOM) if variant == "custom" else VARIANTS[variant].architecture
    layout, dtype = chance.choice(keys.LAYOUTS), chance.choice(("F16", "F32", "BF16", "F8_E4M3"))
    prefix = chance.choice(("", "", "vae.", "first_stage_model.", "module._orig_mod."))
    shapes = list(keys.expected(architecture, layout).items())[part[0] :: part[1]]
    tensors = {prefix + k: ("I64" if k.endswith(keys.OPTIONAL) else dtype, list(shape)) for k, shape in shapes}
    metadata = chance.choice((None, {}, {"variant": variant, "scaling_factor": "0.4552"}, {"format": "pt"}))
    if metadata is not None and chance.random() < 0.3:
        metadata = metadata | {"config": config(chance).decode(errors="replace")}
    write_sparse(chance, path, *pack(chance, tensors, metadata, mutations))


def repository(chance: Random, folder: Path) -> Path:
    """A folder with shards and their index, or one of its shards."""
    inside = chance.choice((folder, folder / "vae"))
    inside.mkdir(exist_ok=True)
    count = chance.choice((1, 2, 3))
    names = [SHARD.format(i + 1, count) for i in range(count)]
    seed = chance.randrange(1 << 30)
    for i, name in enumerate(names):
        write(Random(seed), inside / name, 0, (i, count))  # the same choices for each
    if chance.random() < 0.2:
        victim = inside / chance.choice(names)
        victim.unlink()
        special(chance, victim)
    places = dict.fromkeys([f"encoder.{i}" for i in range(10)], names[0]) | dict(enumerate(names))
    index = {"metadata": {"total_size": 1}, "weight_map": {str(k): v for k, v in places.items()}}
    if chance.random() < 0.5:
        lures = ("../secret.safetensors", str(folder.parent / "secret.safetensors"), "/etc/passwd", ".", "")
        index["weight_map"][chance.choice(("encoder.0", "lure"))] = chance.choice((*lures, odd_text(chance)))
    if chance.random() < 0.5:
        index = bent(chance, index)
    (inside / INDEX).write_bytes(json_bytes(chance, index))
    return chance.choice((folder, inside / chance.choice(names)))


def config(chance: Random) -> bytes:
    named = {"_class_name": "AutoencoderDC", "model_name": "dc-ae-f32c32-mix-1.0"}
    published = [variant.diffusers_config() for variant in VARIANTS.values()]
    value = named | chance.choice((copy.deepcopy(CUSTOM), *published))
    for key in ("scaling_factor", "_name_or_path", "model_name", "variant", *chance.sample(list(CUSTOM), 1)):
        if chance.random() < 0.4:
            value[key] = odd(chance)
    return json_bytes(chance, bent(chance, value) if chance.random() < 0.5 else value)


class Bomb:
    def __reduce__(self):
        return ran, ("a pickle",)


def open_all(path: Path, chance: Random) -> None:
    is_dcae(path)
    cli(path, "info", str(path))
    found = attempt(path, Checkpoint, path)
    if found is None:
        return
    expect(found.layout in keys.LAYOUTS and found.bytes >= 0, f"{found.layout}, {found.bytes}")
    chosen = attempt(path, found.choose) or next(iter(found.fits), None)
    if chosen is None or found.bytes > SMALL:
        return
    ae = attempt(path, DCAE.from_file, path, chosen, "cpu", chance.choice(("fp32", "bf16")))
    if ae is not None:
        finite = all(t.isfinite().all() for t in ae.model.state_dict().values())
        expect(finite, "weights that are not finite were loaded")
        target = path.with_name("converted") if path.is_file() else path / "converted"
        which = ("--variant", chosen.name) if chosen.name in VARIANTS else ()
        cli(path, "convert", str(path), str(target), "--to", chance.choice(keys.LAYOUTS), *which)
        expect(attempt(target, Checkpoint, target), "what was converted is refused")


def cli(path: Path, *arguments: str) -> int:
    """Run a command, which must end with 0, or with 1 and one line."""
    stderr = io.StringIO()
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(stderr):
        code = main(list(arguments))
    last = stderr.getvalue().removesuffix("\n").split("dcae: ")
    proper = code == 0 or (code == 1 and len(last) == 2 and last[1].isprintable())
    expect(proper, f"{arguments[0]} ended with {code} and printed {stderr.getvalue()[:500]!r}")
    return code


CHECKPOINT = Target(make_checkpoint, open_all, megabytes=400.0)


METADATA = {"format": "dcae-latents-1", "variant": DEMO, "height": "50", "width": "60", "scale": "raw"}
METADATA |= {"scaling_factor": "1.322"}
ODD_FACTORS = ("nan", "inf", "-inf", "0", "-1", "1e-300", "1e300", "", "one", "1.322", "0x1p3", "1_0")
ODD_SIZES = ("0", "-1", "50", "64", "1", "1e2", "", "9" * 5000, "99999999999999999999", "\u0661", "50.0", " 50 ")
LIKELY = {"height": ODD_SIZES, "width": ODD_SIZES, "scaling_factor": ODD_FACTORS, "scale": ("raw", "scaled", "")}
LIKELY |= {"variant": (*VARIANTS, "sdxl")}
LATENT_DTYPES = ("F32", "F32", "F32", "F16", "BF16", "I64", "F8_E4M3")
SHAPES = ([1, 32, 1 << 13, 1 << 12], [1 << 40, 32, 2, 0], [0], [], [32, 2, 2], [1, 32, 1, 2, 2])


def make_latents(chance: Random, folder: Path) -> Path:
    path = folder / chance.choice(("a.safetensors", "ComfyUI_00001_.latent"))
    if chance.random() < 0.08:
        special(chance, path)
        return path
    shape = [chance.choice((1, 1, 2)), chance.choice((32, 32, 32, 128, 4)), 2, 2]
    if chance.random() < 0.1:
        shape = chance.choice(SHAPES)
    tensors = {chance.choice(("latents", "latents", "latent_tensor")): (chance.choice(LATENT_DTYPES), shape)}
    if chance.random() < 0.2:
        tensors["alpha"] = chance.choice(("U8", "U8", "F32")), chance.choice(([1, 50, 60], [2, 50, 60], [1, 1 << 40]))
    metadata = odd_metadata(chance) if chance.random() < 0.8 else None
    front, size = pack(chance, tensors, metadata, chance.choice((0, 0, 1, 2)))
    write_sparse(chance, path, front, size)
    if chance.random() < 0.1:
        path.write_bytes(scrambled(chance, front + bytes(min(size, 4096))))
    return path


def odd_metadata(chance: Random) -> dict[str, str]:
    """Metadata with some values that no program writes."""
    metadata = dict(METADATA)
    if chance.random() < 0.2:
        metadata["milliseconds"] = chance.choice(("100", "40,40", "", "-1", "9" * 5000, "1.5"))
    for _ in range(chance.choice((0, 1, 1, 2))):
        key = chance.choice(list(METADATA))
        metadata[key] = chance.choice(LIKELY.get(key, ("",))) if chance.random() < 0.8 else odd_text(chance)
        if chance.random() < 0.2:
            del metadata[key]
    return metadata


def open_latents(path: Path, chance: Random) -> None:
    found = attempt(path, latents.read, path)
    if found is None:
        decoded = cli(path, "decode", str(path), "--device", "cpu", "--model", DEMO) == 0
        return expect(not decoded, "the command line decodes what the library refuses")
    good(found.raw, found.size, found.variant)
    if found.alpha is not None:
        expect(list(found.alpha.shape) == [len(found.raw), *found.size], f"alpha of shape {found.alpha.shape}")
    decodable = found.variant in (None, VARIANTS[DEMO]) and found.raw.shape[1] == 32
    if decodable and found.raw.numel() <= 256 and chance.randrange(4) == 3:
        with contextlib.suppress(NonFiniteError):  # latents as large as numbers can be
            picture = decoder().decode(found.raw, found.variant and found.size)
            expect(picture.isfinite().all(), "the picture is not finite")


@functools.cache
def decoder() -> DCAE:
    """The demo model, after a first run: what torch imports then counts for no case."""
    ae = DCAE(DEMO, "cpu", "fp32")
    ae.decode(torch.zeros(1, 32, 1, 1))
    return ae


def good(raw: torch.Tensor, size: tuple[int, int] | None, variant) -> None:
    """Raises Broken if these are no latents that can be decoded."""
    found = f"latents {raw.dtype} of shape {list(raw.shape)}, of {variant}, of a picture of {size}"
    expect(raw.ndim == 4 and raw.numel() and raw.dtype == torch.float32 and raw.isfinite().all(), found)
    expect(variant is None or variant.accepts(raw.shape[1]), found)
    expect(size is None or min(size) >= 1, found)
    if size is not None and variant is not None:
        expect(Fit(*size, variant.spatial_ratio).latent == tuple(raw.shape[2:]), found)


LATENTS = Target(make_latents, open_latents, megabytes=200.0)
