"""Files of networks that are not published: what they are is read from their tensors, configs and metadata, and they
run as in diffusers. `tests.core.test_any_architecture` has random ones."""

import json
import logging
from dataclasses import replace

import pytest
import torch
from diffusers import AutoencoderDC
from safetensors.torch import load_file, save_file

from dcae_core import (
    DCAE,
    DEMO,
    VARIANTS,
    CheckpointError,
    UnknownVariant,
    checkpoint,
    find,
    images,
    latents,
)
from dcae_core.cli import main
from dcae_core.errors import OptionError
from dcae_core.integrations.diffusers import StreamedAutoencoderDC
from dcae_core.weights import keys, recognise
from dcae_core.weights.checkpoint import Checkpoint
from tests.core.helpers import check_same, diffusers_vae, photograph

SMALL = {  # nothing of it is published
    "latent_channels": 6,
    "attention_head_dim": 8,
    "encoder_block_types": ["ResBlock", "EfficientViTBlock"],
    "decoder_block_types": ["ResBlock", "EfficientViTBlock"],
    "encoder_block_out_channels": [12, 24],
    "decoder_block_out_channels": [12, 24],
    "encoder_layers_per_block": [1, 1],
    "decoder_layers_per_block": [1, 2],
    "encoder_qkv_multiscales": [[], []],
    "decoder_qkv_multiscales": [[], []],
    "decoder_act_fns": ["mish", "silu"],
    "decoder_conv_act_fn": "gelu",
    "scaling_factor": 0.77,
}
# What changes a network without a change of its tensors (in diffusers' layout).
CHANGES = [
    {"attention_head_dim": 16},
    {"decoder_act_fns": ["relu"] * 6},
    {"decoder_act_fns": "gelu"},
    {"decoder_conv_act_fn": "silu"},
    {"encoder_out_shortcut": False},
    {"decoder_in_shortcut": False},
]


def saved(folder, config: dict) -> AutoencoderDC:
    """Random weights of such a network, in a folder as diffusers writes it."""
    vae = diffusers_vae(config)
    vae.save_pretrained(folder)
    return vae


@pytest.mark.parametrize("change", CHANGES, ids=str)
def test_a_config_with_the_tensors_of_a_published_network_runs_as_it_says(tmp_path, change):
    vae = saved(tmp_path / "mine", VARIANTS[DEMO].diffusers_config() | change)
    ae = DCAE.from_file(tmp_path / "mine", device="cpu", dtype="fp32")
    assert ae.variant.name == "mine"
    check_same(ae, vae)


@pytest.mark.parametrize("name", [n for n, v in VARIANTS.items() if v.scaling_factor])
@pytest.mark.parametrize("layout", keys.LAYOUTS)
def test_another_scaling_factor_is_another_model(name, layout):
    variant = VARIANTS[name]
    found = recognise.candidates(keys.expected(variant.architecture, layout), "x")
    config = variant.diffusers_config() | {"_class_name": "AutoencoderDC"}
    configured, complete = recognise.merge_configs(("config.json", config | {"scaling_factor": 0.77}), where="x")
    chosen = found.choose(None, configured, [("the name", variant)], name, complete)
    assert (chosen.scaling_factor, chosen.name) == (0.77, f"{name}-custom")
    assert chosen.architecture == variant.architecture
    configured, complete = recognise.merge_configs(("config.json", config), where="x")
    assert found.choose(None, configured, [("the name", variant)], name, complete) is variant


def test_where_none_is_published_a_config_gives_the_factor():
    variant = find("dc-ae-f32c128-1.5")
    found = recognise.candidates(keys.expected(variant.architecture, "original"), "x")
    configured, _ = recognise.merge_configs(("config.json", {"scaling_factor": 0.5}), where="x")
    assert found.choose(None, configured) == replace(variant, scaling_factor=0.5)


def test_a_factor_reaches_everything(tmp_path, capsys):
    folder = tmp_path / "tuned"
    vae = saved(folder, VARIANTS[DEMO].diffusers_config() | {"scaling_factor": 0.77})
    ae = DCAE.from_file(folder, device="cpu", dtype="fp32")
    assert (ae.scaling_factor, ae.name) == (0.77, "tuned")
    check_same(ae, vae)
    assert main(["info", str(folder)]) == 0
    said = capsys.readouterr().out
    assert "variant         tuned" in said and "scaling factor  0.77" in said
    assert "fields from     config.json: " in said and DEMO in said.split("note")[1]
    assert StreamedAutoencoderDC.from_pretrained(folder).config.scaling_factor == 0.77

    images.write(tmp_path / "a.png", images.to_host(photograph(64, 64))[0])
    run = ["--model", str(folder), "--device", "cpu", "--dtype", "fp32"]
    scaled, raw = tmp_path / "scaled.safetensors", tmp_path / "raw.safetensors"
    assert main(["encode", str(tmp_path / "a.png"), "-o", str(scaled), "--scaled", *run]) == 0
    assert main(["encode", str(tmp_path / "a.png"), "-o", str(raw), *run]) == 0
    assert torch.allclose(load_file(scaled)["latents"], 0.77 * load_file(raw)["latents"])
    assert latents.read(scaled).name == "tuned"
    assert torch.allclose(latents.read(scaled).raw, latents.read(raw).raw)
    capsys.readouterr()
    assert main(["decode", str(scaled), "-o", str(tmp_path / "b.png"), *run]) == 0
    assert main(["decode", str(scaled), "-o", str(tmp_path / "b.png"), "--device", "cpu"]) == 1
    assert "made with tuned, which is not published: say where it is with --model" in capsys.readouterr().err
    assert main(["decode", str(scaled), "-o", str(tmp_path / "b.png"), "--model", DEMO]) == 1
    assert f"was made with tuned, but {DEMO} is loaded" in capsys.readouterr().err


CONFIGS = {
    "shape": SMALL,
    "factor": VARIANTS[DEMO].diffusers_config() | {"scaling_factor": 0.77},
    "none": SMALL | {"encoder_out_shortcut": False, "decoder_in_shortcut": False, "scaling_factor": None},
}


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_converting_keeps_the_network(tmp_path, config, capsys):
    vae = saved(tmp_path / "a", config)
    first = Checkpoint(tmp_path / "a")
    paths = [tmp_path / "a"]
    for to, target in (
        ("original", "b"),
        ("diffusers", "c.safetensors"),
        ("original", "d.safetensors"),
        ("diffusers", "e"),
    ):
        assert main(["convert", str(paths[-1]), str(tmp_path / target), "--to", to]) == 0
        paths.append(tmp_path / target)
        ae = DCAE.from_file(paths[-1], device="cpu", dtype="fp32")
        assert (ae.layout, ae.name, ae.variant.scaling_factor) == (to, paths[-1].stem, config["scaling_factor"])
        assert ae.variant.architecture.same_network(first.choose().architecture)
        check_same(ae, vae)
    again = AutoencoderDC.from_pretrained(tmp_path / "e")
    assert all(torch.equal(again.state_dict()[k], t) for k, t in vae.state_dict().items())
    for field in ("scaling_factor", "attention_head_dim", "decoder_conv_act_fn", "encoder_out_shortcut"):
        assert again.config[field] == vae.config[field]


def test_what_nothing_tells_is_asked_for_by_field(tmp_path, capsys):
    vae = saved(tmp_path / "a", SMALL)
    (tmp_path / "a" / "config.json").unlink()
    (tmp_path / "a" / "diffusion_pytorch_model.safetensors").rename(file := tmp_path / "small one.safetensors")
    asked = "attention_head_dim, encoder_out_shortcut, decoder_in_shortcut, decoder_act_fns, decoder_conv_act_fn"
    with pytest.raises(CheckpointError, match=rf"small one.safetensors .*do not determine {asked}: put"):
        DCAE.from_file(file)
    assert Checkpoint(file).fits == []
    assert main(["info", str(file)]) == 1
    assert asked in capsys.readouterr().err

    told = {name: SMALL[name] for name in ("attention_head_dim", "decoder_act_fns", "decoder_conv_act_fn")}
    with pytest.raises(CheckpointError, match="do not determine encoder_out_shortcut, decoder_in_shortcut: "):
        DCAE.from_file(file, config=told)
    told |= {"encoder_out_shortcut": True, "decoder_in_shortcut": True}
    ae = DCAE.from_file(file, None, "cpu", "fp32", config=told)
    assert (ae.name, ae.variant.scaling_factor) == ("small one", None)
    check_same(ae, vae)
    with pytest.raises(OptionError, match="No scaling factor is published for small one"):
        ae.scaling_factor  # noqa: B018 - it raises
    (tmp_path / "told.json").write_text(json.dumps(told | {"scaling_factor": 2}))
    assert main(["info", str(file), "--config", str(tmp_path / "told.json")]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert "scaling factor  2.0" in lines
    assert any(
        line.startswith("fields from     the config given: attention_head_dim, decoder_act_fns") for line in lines
    )
    assert any(line.startswith("fields from     its tensors: in_channels, latent_channels, ") for line in lines)
    # The original layout tells the shortcuts, and metadata what the tensors do not.
    target = tmp_path / "told.safetensors"
    assert main(["convert", str(file), str(target), "--to", "original", "--config", str(tmp_path / "told.json")]) == 0
    save_file(load_file(target), bare := tmp_path / "bare.safetensors")
    with pytest.raises(
        CheckpointError, match="do not determine attention_head_dim, decoder_act_fns, decoder_conv_act_fn: "
    ):
        Checkpoint(bare).choose()
    assert Checkpoint(target).choose().scaling_factor == 2
    assert main(["plan", "--variant", str(target), "--size", "64"]) == 0
    assert "told, 64x64" in capsys.readouterr().out


def test_the_order_of_belief(tmp_path):
    config = VARIANTS[DEMO].diffusers_config()
    state = saved(tmp_path / "a", config).state_dict()
    variant = replace(VARIANTS[DEMO], name="other", scaling_factor=0.3)
    checkpoint.save(tmp_path / "model.safetensors", state, variant)
    assert Checkpoint(tmp_path / "model.safetensors").choose().scaling_factor == 0.3
    (tmp_path / "config.json").write_text(json.dumps({"_class_name": "AutoencoderDC", "scaling_factor": 0.4}))
    assert Checkpoint(tmp_path / "model.safetensors").choose().scaling_factor == 0.4
    assert Checkpoint(tmp_path / "model.safetensors", {"scaling_factor": 0.5}).choose().scaling_factor == 0.5
    assert Checkpoint(tmp_path / "model.safetensors").choose(DEMO).scaling_factor == 1.322
    assert Checkpoint(tmp_path / "model.safetensors", {"scaling_factor": 0.5}).choose(DEMO).scaling_factor == 0.5


def test_a_field_that_there_is_not(tmp_path):
    saved(tmp_path / "a", SMALL)
    with pytest.raises(CheckpointError, match=r"the config given has scale, which is no field .*scaling_factor"):
        DCAE.from_file(tmp_path / "a", config={"scale": 0.5})


def test_a_config_of_another_file_is_refused_by_field(tmp_path):
    saved(tmp_path / "a", SMALL)
    path = tmp_path / "a" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"latent_channels": 12}))
    with pytest.raises(CheckpointError, match=r"config.json says latent_channels 12, its tensors 6"):
        Checkpoint(tmp_path / "a").choose()


def test_a_network_that_can_not_be_says_why(tmp_path):
    shapes = keys.expected(VARIANTS[DEMO].architecture, "diffusers")
    state = {name: torch.zeros(shape) for name, shape in shapes.items()}
    state["encoder.conv_out.weight"] = torch.zeros(32, 128, 5, 5)
    save_file(state, tmp_path / "a.safetensors")
    with pytest.raises(
        CheckpointError, match=r"nearest to .*1 of another shape \(encoder.conv_out.weight is \[32, 128"
    ):
        Checkpoint(tmp_path / "a.safetensors")


def test_a_variant_of_ones_own_is_taken_if_it_fits(tmp_path):
    saved(tmp_path / "a", SMALL)
    own = replace(Checkpoint(tmp_path / "a").choose(), name="my-own", scaling_factor=3)
    assert DCAE.from_file(tmp_path / "a", own, "cpu").variant is own
    with pytest.raises(CheckpointError, match=f"another AutoencoderDC, not {DEMO}"):
        DCAE.from_file(tmp_path / "a", DEMO)


def test_adaptive_or_not(tmp_path):
    config = SMALL | {"encoder_out_shortcut": False, "decoder_in_shortcut": False, "adaptive_channels": [2, 4]}
    saved(tmp_path / "a", {k: v for k, v in config.items() if k != "adaptive_channels"})
    (tmp_path / "a" / "config.json").write_text(json.dumps({"_class_name": "AutoencoderDC", **config}))
    ae = DCAE.from_file(tmp_path / "a", None, "cpu", "fp32")
    x = torch.rand(1, 3, 8, 8)
    assert torch.allclose(ae.encode(x, latent_channels=4), ae.encode(x)[:, :4], atol=1e-6)
    assert main(["convert", str(tmp_path / "a"), str(tmp_path / "b.safetensors"), "--to", "original"]) == 0
    assert Checkpoint(tmp_path / "b.safetensors").choose().adaptive == (2, 4)
    with pytest.raises(CheckpointError, match="fewer latent channels need an encoder and a decoder without a shortcut"):
        Checkpoint(tmp_path / "a", {"encoder_out_shortcut": True}).choose()


@pytest.mark.parametrize(
    ("name", "variant"),
    [
        ("dc-ae-f32c128-1.1", None),
        ("dc-ae-f32c128-1.1-c48", None),
        ("dc-ae-f32c128-1.5-c16", None),
        ("dc-ae-f32c32-in-1.0-256px", None),
        ("dc-ai/dc-ae-1.5-f32c128", "dc-ae-f32c128-1.5"),
        ("dc-ai/dc-ae-1.5-f32c128-diffusers", "dc-ae-f32c128-1.5"),
        ("dc-ai/dc-ae-1.5-f64c128-diffusers", "dc-ae-f64c128-1.5"),
        ("dc-ae-turbo-f32c32-sana-1.1", "dc-ae-lite-f32c32-sana-1.1"),
        ("mit-han-lab/dc-ae-turbo-f32c32-sana-1.1-diffusers", "dc-ae-lite-f32c32-sana-1.1"),
    ],
)
def test_names_in_other_peoples_code(name, variant):
    found = find(name)
    assert found.name == (variant or name)
    if variant is None:  # with weights, and so latents, of its own
        assert found.latent_space == name and found.scaling_factor is None


def test_what_is_named_after_one_of_those_is_one(tmp_path):
    variant = find("dc-ae-f32c128-1.1")
    found = recognise.candidates(keys.expected(variant.architecture, "original"), "x")
    assert found.choose().name == "dc-ae-f32c128-1.5"
    for text in ("dc-ae-f32c128-1.1", "dc-ae-f32c128-1.5-c32"):
        hints = recognise.hints({"model_name": text}, {}, tmp_path / "model.safetensors")
        assert found.choose(hints=hints) == find(text)


def test_a_repository_of_somebody_else_is_not_taken_for_the_published(tmp_path, capsys):
    for name in ("somebody/dc-ae-f32c32-sana-1.1", "somebody/dc-ae-tuned"):
        with pytest.raises(
            UnknownVariant, match=f"{name} is no file or folder here.*dc-ae-f32c32-in-1.0, dc-ae-f32c32"
        ):
            DCAE(name, cache_dir=tmp_path)
        assert main(["info", name]) == 1
        assert f"{name} is no file or folder here" in capsys.readouterr().err


@pytest.mark.parametrize("layout", keys.LAYOUTS)
@pytest.mark.parametrize(
    "wrap",
    [
        "module.{}",
        "_orig_mod.{}",
        "autoencoder.{}",
        "model.{}",
        "module._orig_mod.{}",
        "state.model.vae.first_stage_model.{}",
    ],
)
def test_wrappers_around_names(tmp_path, small_state, layout, wrap):
    state = keys.to_original(small_state, VARIANTS[DEMO].architecture) if layout == "original" else small_state
    wrapped = {wrap.format(name): tensor.clone() for name, tensor in state.items()}
    save_file({**wrapped, "model.diffusion_model.x": torch.zeros(1)}, tmp_path / "a.safetensors")
    loaded = Checkpoint(tmp_path / "a.safetensors")
    assert (loaded.choose().name, loaded.layout, loaded.prefix) == (DEMO, layout, wrap.format(""))
    tensors = loaded.tensors()
    assert tensors.keys() == state.keys() and all(torch.equal(tensors[name], state[name]) for name in state)
    assert DCAE.from_state_dict(wrapped, device="cpu").name == DEMO


def test_what_compiling_parts_puts_between(small_state):
    """torch.compile of an encoder, FSDP of blocks."""
    between = {
        n.replace("encoder.", "encoder._orig_mod.").replace(".0.", ".0._fsdp_wrapped_module."): t
        for n, t in small_state.items()
    }
    assert any("_orig_mod" in n for n in between) and any("_fsdp" in n for n in between)
    first, second = (DCAE.from_state_dict(s, device="cpu", dtype="fp32") for s in (between, small_state))
    x = torch.rand(1, 3, 32, 32)
    assert torch.equal(first.encode(x), second.encode(x))


def test_two_autoencoders_in_one_file(tmp_path, small_state):
    for prefixes in (("model.", "ema."), ("", "ema_model.module.")):
        save_file({p + n: t.clone() for p in prefixes for n, t in small_state.items()}, tmp_path / "a.safetensors")
        listed = " and ".join(repr(p) if p else "no prefix" for p in sorted(prefixes))
        with pytest.raises(CheckpointError, match=f"a.safetensors holds 2 autoencoders, with names under {listed}"):
            Checkpoint(tmp_path / "a.safetensors")


def test_what_the_caller_requests_is_said_where_a_config_says_otherwise(tmp_path, caplog):
    saved(tmp_path / "a", VARIANTS[DEMO].diffusers_config() | {"decoder_act_fns": ["relu"] * 6})
    with caplog.at_level(logging.WARNING):
        assert Checkpoint(tmp_path / "a").choose(DEMO) is VARIANTS[DEMO]
    assert "although config.json says decoder_act_fns" in caplog.text
