"""Random configurations of diffusers' AutoencoderDC, small, and legal there: for tests of what is not in the table."""

from hypothesis import strategies as st

VIT = "EfficientViTBlock"


@st.composite
def configs(draw) -> dict:
    """What AutoencoderDC takes, but for the scaling factor."""
    count = draw(st.integers(2, 4), label="stages")
    head_dim = draw(st.sampled_from([4, 8, 16, 32]))
    latent = draw(st.sampled_from([4, 6, 8, 16]))
    config = {"latent_channels": latent, "attention_head_dim": head_dim}
    config["downsample_block_type"] = draw(st.sampled_from(["pixel_unshuffle", "Conv"]))
    config["upsample_block_type"] = draw(st.sampled_from(["pixel_shuffle", "interpolate"]))
    for side, shortcut in (("encoder", "encoder_out_shortcut"), ("decoder", "decoder_in_shortcut")):
        config[shortcut] = draw(st.booleans())
        # Each width divides four times the one before it, and is a multiple of 4.
        widths = [draw(st.sampled_from([8, 12, 16, 32]))]
        for _ in range(count - 1):
            widths.append(draw(st.sampled_from([w for w in (8, 12, 16, 24, 32, 48, 64) if 4 * widths[-1] % w == 0])))
        if config[shortcut] and widths[-1] % latent:
            config[shortcut] = False
        blocks = [draw(st.sampled_from(["ResBlock", VIT])) if w >= head_dim else "ResBlock" for w in widths]
        config[f"{side}_block_out_channels"] = tuple(widths)
        config[f"{side}_block_types"] = tuple(blocks)
        first, last = draw(st.integers(0, 2)), draw(st.integers(0 if count > 2 else 1, 2))
        config[f"{side}_layers_per_block"] = (first, *(draw(st.integers(1, 2)) for _ in range(count - 2)), last)
        scales = st.lists(st.sampled_from([3, 5, 7]), max_size=2).map(tuple)
        config[f"{side}_qkv_multiscales"] = tuple(draw(scales) if block == VIT else () for block in blocks)
    acts = st.sampled_from(["relu", "silu", "gelu", "mish"])
    config["decoder_norm_types"] = tuple(draw(st.sampled_from(["rms_norm", "batch_norm"])) for _ in range(count))
    config["decoder_act_fns"] = tuple(draw(acts) for _ in range(count))
    config["decoder_conv_act_fn"] = draw(acts)
    return config
