"""A Sana small enough for tests, in the layout of the published ones: random weights, but for the autoencoder, which is
the bundled demo model. As a program: `python tests/tiny_sana.py FOLDER`, for the Python that is to load it."""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from diffusers import AutoencoderDC, DPMSolverMultistepScheduler, SanaPipeline, SanaTransformer2DModel
from safetensors.torch import load_file
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import Gemma2Config, Gemma2Model, PreTrainedTokenizerFast

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from dcae_core import DEMO, hub, variants


def pipeline() -> SanaPipeline:
    """The pipeline, in fp32 on the CPU. The same at every call."""
    torch.manual_seed(0)
    words = ["<pad>", "<unk>", "<bos>", "a", "cat", "house", "red", "blue"]
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    text = Gemma2Config(
        vocab_size=len(words),
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=8,
        pad_token_id=0,
        bos_token_id=2,
    )
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
        tokenizer=PreTrainedTokenizerFast(
            tokenizer_object=tokenizer, pad_token="<pad>", unk_token="<unk>", bos_token="<bos>"
        ),
        text_encoder=Gemma2Model(text).eval(),
        vae=autoencoder(),
        transformer=transformer.eval(),
        scheduler=DPMSolverMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0),
    )


def autoencoder() -> AutoencoderDC:
    """diffusers' own class with the demo model's weights."""
    vae = AutoencoderDC.from_config(variants.find(DEMO).diffusers_config())
    vae.load_state_dict(load_file(hub.bundled()))
    return vae.eval().requires_grad_(False)


if __name__ == "__main__":
    pipeline().save_pretrained(sys.argv[1])
