"""A Sana small enough for tests, with random weights, in the files that the nodes of ComfyUI_ExtraModels open. Nothing
is fetched."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import torch
from transformers import Gemma2ForCausalLM

from tests.tiny_models import gemma2, tokenizer

SIZES = json.loads((Path(__file__).parent / "standin_tiny_sana" / "sizes.json").read_text())
GEMMA = "Efficient-Large-Model/gemma-2-2b-it"
TOKENS, LATENT_CHANNELS, FREQUENCIES, MLP_RATIO = 300, 32, 256, 2.5


def shapes(sprint: bool) -> dict[str, tuple[int, ...]]:
    """Keys and shapes of a Sana of these sizes, as in NVIDIA's files (.pth). Sprint's has more."""
    width, words, middle = SIZES["hidden_size"], SIZES["caption_channels"], int(SIZES["hidden_size"] * MLP_RATIO)
    found: dict[str, tuple[int, ...]] = {}

    def linear(name: str, *shape: int, bias: bool = True) -> None:
        found[f"{name}.weight"] = shape
        if bias:
            found[f"{name}.bias"] = shape[:1]

    linear("x_embedder.proj", width, LATENT_CHANNELS, 1, 1)
    for name in ("t_embedder", "cfg_embedder") if sprint else ("t_embedder",):
        linear(f"{name}.mlp.0", width, FREQUENCIES)
        linear(f"{name}.mlp.2", width, width)
    linear("t_block.1", 6 * width, width)
    found["y_embedder.y_embedding"] = (TOKENS, words)
    linear("y_embedder.y_proj.fc1", width, words)
    linear("y_embedder.y_proj.fc2", width, width)
    found["attention_y_norm.weight"] = (width,)
    for i in range(SIZES["depth"]):
        block = f"blocks.{i}"
        found[f"{block}.scale_shift_table"] = (6, width)
        linear(f"{block}.attn.qkv", 3 * width, width, bias=False)
        linear(f"{block}.attn.proj", width, width)
        linear(f"{block}.cross_attn.q_linear", width, width)
        linear(f"{block}.cross_attn.kv_linear", 2 * width, width)
        linear(f"{block}.cross_attn.proj", width, width)
        for part in ("attn", "cross_attn") if sprint else ():
            found[f"{block}.{part}.q_norm.weight"] = found[f"{block}.{part}.k_norm.weight"] = (width,)
        linear(f"{block}.mlp.inverted_conv.conv", 2 * middle, width, 1, 1)
        linear(f"{block}.mlp.depth_conv.conv", 2 * middle, 1, 3, 3)
        linear(f"{block}.mlp.point_conv.conv", width, middle, 1, 1, bias=False)
    found["final_layer.scale_shift_table"] = (2, width)
    linear("final_layer.linear", LATENT_CHANNELS, width)
    return found


def transformer(sprint: bool = False) -> dict[str, torch.Tensor]:
    """Random weights of torch's default spread. The same at every call."""
    generator = torch.Generator().manual_seed(int(sprint))
    state = {}
    for name, shape in shapes(sprint).items():
        bound = torch.Size(shape[1:]).numel() ** -0.5
        state[name] = torch.empty(shape).uniform_(-bound, bound, generator=generator)
    return state


def write(models: Path, hf_home: Path) -> None:
    """Two checkpoints, tiny.pth and tiny_sprint.pth, into ComfyUI's `models`, and a Gemma 2 twice: where GemmaLoader
    looks whether it is there, and in the cache of the Hugging Face hub, from where it then loads."""
    (models / "checkpoints").mkdir(parents=True, exist_ok=True)
    for name, sprint in (("tiny", False), ("tiny_sprint", True)):
        torch.save({"state_dict": transformer(sprint)}, models / "checkpoints" / f"{name}.pth")
    torch.manual_seed(0)
    here = models / "text_encoders" / "models-efficient-large-model--gemma-2-2b-it"
    Gemma2ForCausalLM(gemma2()).save_pretrained(here)
    tokenizer().save_pretrained(here)
    cached, commit = hf_home / "hub" / f"models--{GEMMA.replace('/', '--')}", "0" * 40
    shutil.copytree(here, cached / "snapshots" / commit)
    (cached / "refs").mkdir()
    (cached / "refs" / "main").write_text(commit)
