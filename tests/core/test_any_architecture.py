"""Networks that are not in the table: whatever diffusers' AutoencoderDC can be configured to, it runs as there."""

import dataclasses

import pytest
import torch
from diffusers import AutoencoderDC
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dcae_core import DCAE, VARIANTS, Variant, plan
from dcae_core.architecture import Architecture
from dcae_core.engine.rewrites import REWRITES
from dcae_core.errors import OptionError
from dcae_core.weights import keys
from dcae_core.weights.fields import NOT_IN_TENSORS, fields_of
from tests.core.architectures import configs
from tests.core.helpers import check_same, counted, diffusers_vae, least

SETTINGS = {"deadline": None, "derandomize": True, "database": None, "suppress_health_check": list(HealthCheck)}


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    """Tensors are too small for two."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.mark.slow
@settings(max_examples=200, **SETTINGS)
@given(configs(), st.sampled_from([REWRITES, ()]), st.integers(0, 2**16))
def test_it_does_what_diffusers_does(config, rewrites, seed):
    oracle = diffusers_vae(config, seed)
    ae = DCAE.from_state_dict(oracle.state_dict(), None, "cpu", "fp32", rewrites, config)
    check_same(ae, oracle)


@pytest.mark.slow
@settings(max_examples=200, **SETTINGS)
@given(configs(), st.sampled_from(plan.DIRECTIONS), st.sampled_from([None, 1, 2]), st.sampled_from(["fp32", "bf16"]))
def test_its_memory_is_planned(config, direction, times, dtype):
    architecture = Architecture.from_config(config)
    variant = Variant("any", architecture, None)
    ae, ratio = DCAE.empty(variant, "meta", dtype), architecture.spatial_ratio
    size = (6 * ratio, 3 * ratio)
    budget = times and times * least(variant, direction, *size, ae.dtype)
    made = plan.make(architecture, direction, *size, 1, budget, ae.dtype)
    assert counted(ae, made) <= made.peak_bytes <= (budget or made.peak_bytes)


@settings(max_examples=200, **SETTINGS)
@given(configs())
def test_its_tensors_tell_what_they_can(config):
    architecture = Architecture.from_config(config)
    whole = architecture.diffusers_config()
    for layout in keys.LAYOUTS:
        shapes = keys.expected(architecture, layout)
        told = fields_of(shapes)
        again = Architecture.from_config({**{name: whole[name] for name in NOT_IN_TENSORS}, **told})
        assert again.same_network(architecture)
        assert keys.expected(again, layout) == shapes


@pytest.mark.parametrize("name", VARIANTS)
def test_what_is_published_can_be_read_from_its_config_and_its_tensors(name):
    architecture = VARIANTS[name].architecture
    config = architecture.diffusers_config()
    assert Architecture.from_config(config) == architecture
    for layout in keys.LAYOUTS:
        told = fields_of(keys.expected(architecture, layout))
        again = Architecture.from_config({**{name: config[name] for name in NOT_IN_TENSORS}, **told})
        assert again.same_network(architecture)


def test_defaults_are_those_of_diffusers():
    config = dict(AutoencoderDC().config)
    assert Architecture.from_config({}) == Architecture.from_config(config)


def test_fields_that_blocks_do_not_use_do_not_matter():
    sana = VARIANTS["dc-ae-f32c32-sana-1.1"].architecture
    config = sana.diffusers_config() | {
        "encoder_qkv_multiscales": [[5]] * 6,  # of ResBlocks too
        "decoder_act_fns": ["silu"] * 3 + ["relu"] * 3,  # of attention
    }
    other = Architecture.from_config(config)
    assert other != sana and other.same_network(sana)
    assert not Architecture.from_config(config | {"attention_head_dim": 64}).same_network(sana)
    assert not Architecture.from_config(config | {"decoder_conv_act_fn": "silu"}).same_network(sana)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"in_channels": 4}, "in_channels is 4: needed is 3"),
        ({"latent_channels": "32"}, "latent_channels is '32': needed is something like 32"),
        ({"latent_channels": True}, "latent_channels"),
        ({"decoder_act_fns": ["relu", 3]}, "decoder_act_fns"),
        ({"decoder_act_fns": ["relu"] * 5}, "decoder: 6 widths, but another number of act"),
        ({"decoder_conv_act_fn": "relu6"}, "decoder: 'relu6' is not one of relu, silu, gelu, mish"),
        ({"decoder_norm_types": "layer_norm"}, "'layer_norm' is not one of rms_norm, batch_norm"),
        ({"encoder_layers_per_block": [2, 0, 2, 3, 3, 3]}, "only the first and the last stage may be empty"),
        ({"encoder_qkv_multiscales": [[], [], [], [4], [], []]}, "odd numbers, not 4"),
        ({"encoder_block_out_channels": [128, 256, 512, 512, 10**9, 1024]}, "encoder_block_out_channels"),
        ({"encoder_block_types": "EfficientViTBlock", "attention_head_dim": 256}, "at least 256 channels, not 128"),
        ({"encoder_block_out_channels": [128] * 13}, "encoder_block_out_channels"),
        ({"encoder_out_shortcut": 1}, "encoder_out_shortcut is '1'"),
        ({"upsample_block_type": ["interpolate"]}, "upsample_block_type"),
    ],
)
def test_what_no_such_network_has_is_said_by_field(change, says):
    with pytest.raises(OptionError, match=says):
        Architecture.from_config(change)


def test_a_stage_without_blocks_needs_nothing_of_its_fields():
    stage = VARIANTS["dc-ae-f32c32-in-1.0"].architecture.decoder.stages[0]
    assert dataclasses.replace(stage, act="mish").essential == stage.essential
