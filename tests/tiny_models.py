"""Models small enough for tests, in the layout of the published ones. Random weights, but for Sana's autoencoder, which
is the bundled demo model. As a program: `python tests/tiny_models.py MODELS VAES`, run by the Python that is to load
them, writes what the tests in SD.Next need into these two folders."""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from diffusers import (
    AutoencoderDC,
    AutoencoderKL,
    DDIMScheduler,
    DPMSolverMultistepScheduler,
    SanaPipeline,
    SanaTransformer2DModel,
    StableDiffusionPipeline,
    UNet2DConditionModel,
)
from safetensors.torch import load_file
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTokenizer,
    Gemma2Config,
    Gemma2Model,
    PreTrainedTokenizerFast,
)

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from dcae_core import DEMO, checkpoint, hub, variants

WORDS = ("<pad>", "<unk>", "<bos>", "a", "cat", "house", "red", "blue")


def sana(vae: AutoencoderDC | None = None) -> SanaPipeline:
    """A Sana in fp32 on the CPU, by default with the demo model. The same at every call."""
    torch.manual_seed(0)
    transformer = SanaTransformer2DModel(
        in_channels=32,
        out_channels=32,
        num_attention_heads=2,
        attention_head_dim=16,
        num_layers=2,
        num_cross_attention_heads=2,
        cross_attention_head_dim=16,
        cross_attention_dim=32,
        caption_channels=16,
        sample_size=32,
    )
    return SanaPipeline(
        tokenizer=tokenizer(),
        text_encoder=Gemma2Model(gemma2()).eval(),
        vae=vae or autoencoder(),
        transformer=transformer.eval(),
        scheduler=DPMSolverMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0),
    )


def tokenizer() -> PreTrainedTokenizerFast:
    """Of a few words."""
    words = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=words, pad_token="<pad>", unk_token="<unk>", bos_token="<bos>")


def gemma2() -> Gemma2Config:
    """The shape of a text encoder for them: one layer."""
    return Gemma2Config(
        vocab_size=len(WORDS),
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=8,
        pad_token_id=0,
        bos_token_id=2,
    )


def autoencoder(other: bool = False) -> AutoencoderDC:
    """diffusers' own class with the demo model's weights, or with `other` ones, whose pictures differ."""
    vae = AutoencoderDC.from_config(variants.find(DEMO).diffusers_config())
    vae.load_state_dict(load_file(hub.bundled()))
    vae.eval().requires_grad_(False)
    if other:
        vae.decoder.conv_in.weight.mul_(1.3)
        vae.encoder.conv_out.weight.mul_(0.8)
    return vae


def deep_autoencoder() -> AutoencoderDC:
    """Of ratio 128, with random weights: none of the variants, only of their kind."""
    torch.manual_seed(1)
    blocks = {"block_types": "ResBlock", "block_out_channels": [8] * 8, "layers_per_block": [0, *[1] * 7]}
    config = {f"{side}_{name}": value for side in ("encoder", "decoder") for name, value in blocks.items()}
    scales = {f"{side}_qkv_multiscales": [[]] * 8 for side in ("encoder", "decoder")}
    plain = {"encoder_out_shortcut": False, "decoder_in_shortcut": False}
    return AutoencoderDC(latent_channels=32, **config, **scales, **plain)


def stable_diffusion() -> StableDiffusionPipeline:
    """A model whose latents no DC-AE can read."""
    torch.manual_seed(0)
    letters = "abcdefghijklmnopqrstuvwxyz"
    words = [*letters, *(f"{letter}</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    vocabulary = {word: i for i, word in enumerate(words)}
    text = CLIPTextConfig(
        vocab_size=len(words),
        hidden_size=32,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=4,
        bos_token_id=len(words) - 2,
        eos_token_id=len(words) - 1,
        pad_token_id=len(words) - 1,
    )
    unet = UNet2DConditionModel(
        block_out_channels=(32, 64),
        layers_per_block=1,
        sample_size=32,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=32,
    )
    vae = AutoencoderKL(
        block_out_channels=[32] * 4,
        down_block_types=["DownEncoderBlock2D"] * 4,
        up_block_types=["UpDecoderBlock2D"] * 4,
    )
    return StableDiffusionPipeline(
        vae=vae,
        text_encoder=CLIPTextModel(text),
        tokenizer=CLIPTokenizer(vocab=vocabulary, merges=[], model_max_length=77),
        unet=unet,
        scheduler=DDIMScheduler(clip_sample=False),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def write(pipelines: Path, vaes: Path) -> None:
    """Sana with its own autoencoder and with the other; Stable Diffusion; the other autoencoder by itself, in every
    form it may come in, and what is none."""
    sana().save_pretrained(pipelines / "tiny_sana_diffusers")
    other = autoencoder(other=True)
    sana(other).save_pretrained(pipelines / "other_sana_diffusers")
    sana(deep_autoencoder()).save_pretrained(pipelines / "deep_sana_diffusers")
    stable_diffusion().save_pretrained(pipelines / "tiny_sd")
    other.save_pretrained(vaes / "other-folder-1.0")
    tuned = autoencoder(other=True)
    tuned.register_to_config(scaling_factor=0.77)
    sana(tuned).save_pretrained(pipelines / "tuned_sana_diffusers")
    tuned.save_pretrained(vaes / "tuned", variant="fp16")
    demo = variants.find(DEMO)
    checkpoint.save(vaes / "repository" / "model.safetensors", other.state_dict(), demo, "original")
    checkpoint.save(vaes / "other_original.safetensors", other.state_dict(), demo, "original")
    checkpoint.save(vaes / "other_diffusers.safetensors", other.state_dict(), demo)
    (vaes / "not_dcae").mkdir()
    (vaes / "not_dcae" / "config.json").write_text("{}")
    (vaes / "broken.safetensors").write_bytes((vaes / "other_original.safetensors").read_bytes()[:5000])


if __name__ == "__main__":
    write(Path(sys.argv[1]), Path(sys.argv[2]))
