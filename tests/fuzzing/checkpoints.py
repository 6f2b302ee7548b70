"""Untrusted weights: files, folders, indexes of shards, configs, and other things under their names."""

from __future__ import annotations

import contextlib
import copy
import io
import pickle
from pathlib import Path
from random import Random

import torch

from dcae_core import DCAE, DEMO, VARIANTS, hub
from dcae_core.architecture import Architecture
from dcae_core.cli import main
from dcae_core.weights import keys
from dcae_core.weights.checkpoint import Checkpoint, is_dcae

from .examine import Target, attempt, expect, ran
from .mutate import bent, json_bytes, odd, odd_text, pack, scrambled, special, write_sparse

__all__ = ["CHECKPOINT", "cli"]

NAMES = ("x", "model", "diffusion_pytorch_model", "dc-ae-f32c32-mix-1.0")
SHARD = "diffusion_pytorch_model-{:05}-of-{:05}.safetensors"
INDEX = "diffusion_pytorch_model.safetensors.index.json"
WRONG = (b"\x00\x00\xc0\x7f", b"\x00\x7c\x00\x7c", b"\x80\x7f\x80\xff", b"\xff\xff\xff\xff")  # NaN, infinities
SMALL = 64 << 20  # bytes of a file that is loaded, not only looked at

# Nothing of it is published.
CUSTOM = {"latent_channels": 4, "attention_head_dim": 8, "scaling_factor": 0.5}
CUSTOM |= {f"{side}_block_out_channels": [8, 16] for side in ("encoder", "decoder")}
CUSTOM |= {"encoder_block_types": ["ResBlock", "EfficientViTBlock"], "encoder_layers_per_block": [0, 1]}
CUSTOM |= {"decoder_block_types": ["EfficientViTBlock", "ResBlock"], "decoder_layers_per_block": [1, 1]}
CUSTOM |= {"encoder_qkv_multiscales": [[], [3]], "decoder_qkv_multiscales": [[5], []]}
CUSTOM |= {"decoder_norm_types": ["rms_norm", "batch_norm"], "decoder_act_fns": ["silu", "relu"]}


def make(chance: Random, folder: Path) -> Path:
    kind = chance.randrange(10)
    path = folder / f"{chance.choice(NAMES)}.safetensors"
    if kind == 0:
        special(chance, path)
    elif kind == 1:
        path.write_bytes(pickled(chance))
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
    front, size = pack(chance, tensors, metadata, mutations)
    write_sparse(path, front, size)
    if chance.random() < 0.3 and 0 < size < SMALL:  # some weights that are not finite
        with path.open("r+b") as file:
            file.seek(len(front) + chance.randrange(size) // 4 * 4)
            file.write(chance.choice(WRONG))


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


def pickled(chance: Random) -> bytes:
    buffer = io.BytesIO()
    if chance.random() < 0.5:
        torch.save({"state_dict": Bomb()}, buffer, _use_new_zipfile_serialization=chance.random() < 0.5)
        return buffer.getvalue()
    return pickle.dumps(Bomb(), chance.randrange(pickle.HIGHEST_PROTOCOL + 1))


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


CHECKPOINT = Target(make, open_all, megabytes=400.0)
