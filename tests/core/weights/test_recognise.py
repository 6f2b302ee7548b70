"""Recognising a file's variant from keys and shapes, the caller, hints around the file, and the latents' magnitude."""

import dataclasses
import json
import logging
from dataclasses import replace

import pytest
import torch
from safetensors.torch import save_file

from dcae_core import DCAE, DEMO, VARIANTS, CheckpointError, UnknownVariant, find, hub
from dcae_core.weights import infer_variant, keys, recognise
from dcae_core.weights.checkpoint import Checkpoint

IN, MIX = VARIANTS["dc-ae-f32c32-in-1.0"], VARIANTS["dc-ae-f32c32-mix-1.0"]


@pytest.fixture
def ambiguous(tmp_path):
    """Write a file of arbitrary values with the keys and shapes of f32c32 `in` and `mix`; return its Checkpoint."""

    def write(name: str, layout: str = "original", metadata: dict | None = None, config: dict | None = None):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        save_file(
            {k: torch.empty(s, dtype=torch.float8_e5m2) for k, s in keys.expected(IN.architecture, layout).items()},
            path,
            metadata,
        )
        if config is not None:
            (path.parent / "config.json").write_text(json.dumps(config))
        return Checkpoint(path)

    return write


def test_without_a_name_the_error_lists_the_candidates_and_their_factors(ambiguous):
    checkpoint = ambiguous("vae.safetensors")
    assert [v.name for v in checkpoint.fits] == [IN.name, MIX.name]
    with pytest.raises(CheckpointError, match=r"dc-ae-f32c32-in-1.0 or dc-ae-f32c32-mix-1.0.*0.3189, 0.4552"):
        checkpoint.choose()
    assert checkpoint.choose("dc-ae-f32c32-in-1.0") == IN


@pytest.mark.parametrize(
    ("name", "variant"),
    [
        ("dc-ae-f32c32-in-1.0.safetensors", IN),
        ("DC-AE-f32c32-MIX-1.0.safetensors", MIX),
        ("dcae_f32c32_in.safetensors", IN),
        ("my f32c32 mix fp16.safetensors", MIX),
        ("dc-ae-f32c32-mix-1.0-diffusers/model.safetensors", MIX),
        ("models--mit-han-lab--dc-ae-f32c32-in-1.0/snapshots/0123abc/model.safetensors", IN),
        ("mix/dc-ae-f32c32-in-1.0.safetensors", IN),  # the nearest name counts
    ],
)
def test_a_name_decides(ambiguous, name, variant):
    assert ambiguous(name).choose() == variant


@pytest.mark.parametrize(
    "name", ["trained-in-2024.safetensors", "remix.safetensors", "mix/sub/f32c32.safetensors", "my mix.safetensors"]
)
def test_a_name_that_only_resembles_one_does_not(ambiguous, name):
    with pytest.raises(CheckpointError, match="Set the variant"):
        ambiguous(name).choose()


def test_config_and_metadata_decide(ambiguous):
    assert (
        ambiguous("a/x.safetensors", config={"_class_name": "AutoencoderDC", "scaling_factor": 0.4552}).choose() == MIX
    )
    assert ambiguous("b/x.safetensors", config={"model_name": "dc-ae-f32c32-in-1.0"}).choose() == IN
    assert ambiguous("c/x.safetensors", metadata={"variant": "dc-ae-f32c32-in-1.0"}).choose() == IN
    with pytest.raises(CheckpointError):  # another model's config.json is no hint
        ambiguous("d/x.safetensors", config={"_class_name": "AutoencoderKL", "scaling_factor": 0.4552}).choose()


def test_a_config_counts_only_for_its_own_file(ambiguous, tmp_path):
    (tmp_path / "other.safetensors").touch()
    config = {"_class_name": "AutoencoderDC", "scaling_factor": 0.4552}
    with pytest.raises(CheckpointError, match="Set the variant"):
        ambiguous("vae.safetensors", config=config).choose()
    assert ambiguous("dc-ae-f32c32-in-1.0.safetensors", config=config).choose() == IN
    assert ambiguous("model.safetensors", config=config).choose() == MIX


def test_hints_that_contradict_each_other_are_an_error_that_shows_both(ambiguous):
    checkpoint = ambiguous("dc-ae-f32c32-in-1.0/model.safetensors", config={"model_name": MIX.name})
    with pytest.raises(CheckpointError, match=r"config.json says dc-ae-f32c32-mix-1.0, the name .* says dc-ae-f32c32"):
        checkpoint.choose()
    assert checkpoint.choose(IN.name) == IN


def test_the_caller_is_not_believed_against_the_shapes(ambiguous):
    with pytest.raises(CheckpointError, match=r"holds dc-ae-f32c32-in-1.0 or .*, not dc-ae-f64c128-in-1.0"):
        ambiguous("vae.safetensors").choose("dc-ae-f64c128-in-1.0")


def test_sana_1_0_and_1_1_need_no_name_since_their_numbers_are_the_same():
    sana = [VARIANTS["dc-ae-f32c32-sana-1.0"], VARIANTS["dc-ae-f32c32-sana-1.1"]]
    found = recognise.candidates(keys.expected(sana[0].architecture, "diffusers"), "x")
    assert found.fits == sana
    assert found.choose() == sana[0]
    assert found.choose(hints=[("the name 'x'", sana[1])]) == sana[1]


def test_variant_names_as_people_write_them():
    assert find("mit-han-lab/DC-AE-f32c32-in-1.0-diffusers") == IN
    assert find("dc-ai/dc-ae-lite-f32c32") == VARIANTS["dc-ae-lite-f32c32-sana-1.1"]
    with pytest.raises(UnknownVariant, match=r"Choose one of: dc-ae-f32c32-in-1\.0, "):
        find("sdxl")


@pytest.mark.parametrize("layout", keys.LAYOUTS)
@pytest.mark.parametrize("prefix", ["", "vae.", "first_stage_model."])
def test_state_dicts_of_both_layouts_with_and_without_prefix(small_state, layout, prefix):
    state = keys.to_original(small_state, VARIANTS[DEMO].architecture) if layout == "original" else small_state
    state = {prefix + k: t for k, t in state.items()}
    if prefix:
        state["model.diffusion_model.unrelated"] = torch.zeros(3)  # a whole pipeline's checkpoint
    ae = DCAE.from_state_dict(state, device="cpu", dtype="fp32")
    expected = DCAE.from_state_dict(small_state, device="cpu", dtype="fp32")
    loaded, wanted = ae.model.state_dict(), expected.model.state_dict()
    assert loaded.keys() == wanted.keys()
    assert all(torch.equal(loaded[k], wanted[k]) for k in loaded)


def test_strict_about_missing_unexpected_and_misshapen_tensors(small_state):
    state = dict(small_state)
    state.pop("encoder.conv_out.weight")
    state["decoder.extra"] = torch.zeros(1)
    state["decoder.conv_in.bias"] = torch.zeros(5)
    with pytest.raises(CheckpointError) as error:
        DCAE.from_state_dict(state)
    message = str(error.value)
    assert "nearest to dc-ae-f32c32-demo in the diffusers layout" in message
    assert "1 missing (encoder.conv_out.weight)" in message
    assert "1 unexpected (decoder.extra)" in message
    assert "decoder.conv_in.bias is [5], not [128]" in message


def test_batch_norm_counters_may_be_left_out():
    variant = VARIANTS["dc-ae-f32c32-in-1.0"]
    shapes = {
        k: s
        for k, s in keys.expected(variant.architecture, "original").items()
        if not k.endswith("num_batches_tracked")
    }
    found = recognise.candidates(shapes, "x")
    assert found.layout == "original"
    assert variant in found.fits
    state = {k: torch.empty(s, device="meta") for k, s in shapes.items()}
    state = keys.to_diffusers(state, found.layout, variant.architecture)
    assert {k: tuple(t.shape) for k, t in state.items()} == keys.expected(variant.architecture, "diffusers")


@pytest.fixture
def pair(monkeypatch):
    """An `in` and a `mix` of the bundled model's architecture, with the published factors of f32c32."""
    demo = VARIANTS[DEMO]
    factors = {"in": 0.3189, "mix": 0.4552}
    variants = [replace(demo, name=f"dc-ae-f8c8-{d}-1.0", scaling_factor=f) for d, f in factors.items()]
    monkeypatch.delitem(VARIANTS, DEMO)
    for one in variants:
        monkeypatch.setitem(VARIANTS, one.name, one)
    return variants


def with_factor(factor: float) -> dict[str, torch.Tensor]:
    """The bundled model's weights, their latents scaled so that 1 / RMS over the bundled photographs is `factor`."""
    state = Checkpoint(hub.bundled()).state(find(DEMO).architecture)
    state = {key: tensor.float() for key, tensor in state.items()}
    scale = infer_variant.measured_factor(DCAE.from_state_dict(state, DEMO, "cpu", "fp32").encode) / factor
    average = torch.zeros_like(state["encoder.conv_out.weight"])  # the shortcut beside it: means of four channels
    for i in range(32):
        average[i, 4 * i : 4 * i + 4, 1, 1] = 0.25
    state["encoder.conv_out.weight"] = scale * state["encoder.conv_out.weight"] + (scale - 1) * average
    state["encoder.conv_out.bias"] = scale * state["encoder.conv_out.bias"]
    return state


def test_a_file_that_nothing_names_is_inferred_from_its_latents(request, tmp_path, caplog):
    states = {factor: with_factor(factor) for factor in (0.3189, 0.4552, 0.381, 1.0)}
    request.getfixturevalue("pair")
    for i, state in enumerate(states.values()):
        save_file(state, tmp_path / f"{i}.safetensors")
        with pytest.raises(CheckpointError, match="Set the variant"):
            Checkpoint(tmp_path / f"{i}.safetensors").choose()  # headers do not tell them apart
    with caplog.at_level(logging.WARNING):
        ae = DCAE.from_file(tmp_path / "0.safetensors", None, "cpu", "fp32")
        assert ae.variant.name == "dc-ae-f8c8-in-1.0" and ae.scaling_factor == 0.3189
        assert DCAE.from_state_dict(states[0.4552], None, "cpu", "fp32").variant.name == "dc-ae-f8c8-mix-1.0"
    assert "nothing names it" in caplog.text and "0.3189" in caplog.text and "Probability: 99" in caplog.text
    for middle_or_neither in ("2", "3"):
        with pytest.raises(CheckpointError, match=r"does not tell them apart.*Set the variant"):
            DCAE.from_file(tmp_path / f"{middle_or_neither}.safetensors", None, "cpu", "fp32")
    assert DCAE.from_file(tmp_path / "2.safetensors", "dc-ae-f8c8-mix-1.0", "cpu", "fp32").scaling_factor == 0.4552


def test_every_pair_is_told_apart_by_its_published_factors():
    for one in VARIANTS.values():
        fits = [v for v in VARIANTS.values() if v.architecture == one.architecture]
        if len({v.scaling_factor for v in fits}) > 1:
            inference = infer_variant.most_probable(one.scaling_factor * 1.05, fits)
            assert inference.variant == one and inference.conclusive


def test_the_bundled_photographs_give_the_bundled_models_factor():
    ae = DCAE(DEMO, "cpu", "fp32")
    assert len(infer_variant.photographs()) == 7
    assert infer_variant.measured_factor(ae.encode) == pytest.approx(ae.scaling_factor, rel=0.03)


def test_a_variant_without_a_factor_is_not_inferred():
    unscaled = dataclasses.replace(VARIANTS[DEMO], name="dc-ae-f32c32-unscaled", scaling_factor=None)
    with pytest.raises(CheckpointError, match=r"weights is one of .* dc-ae-f32c32-unscaled has no scaling factor"):
        infer_variant.infer(lambda x: x, [VARIANTS[DEMO], unscaled], "weights")
