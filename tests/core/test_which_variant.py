"""A file's variant: from keys and shapes, then from what names it, then from the caller, else an error that lists."""

import json

import pytest
import torch
from safetensors.torch import save_file

from dcae_core import DCAE, DEMO, VARIANTS, CheckpointError, UnknownVariant, checkpoint, find, keys
from dcae_core.checkpoint import Checkpoint

IN, MIX = VARIANTS["dc-ae-f32c32-in-1.0"], VARIANTS["dc-ae-f32c32-mix-1.0"]


@pytest.fixture
def ambiguous(tmp_path):
    """Writes a file with the keys and shapes of f32c32 `in` and `mix` and no contents to speak of; says where."""

    def write(name: str, layout: str = "original", metadata: dict | None = None, config: dict | None = None):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        save_file(
            {k: torch.empty(s, dtype=torch.float8_e5m2) for k, s in keys.expected(IN, layout).items()}, path, metadata
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
    ("name", "wanted"),
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
def test_names_tell(ambiguous, name, wanted):
    assert ambiguous(name).choose() == wanted


@pytest.mark.parametrize(
    "name", ["trained-in-2024.safetensors", "remix.safetensors", "mix/sub/f32c32.safetensors", "my mix.safetensors"]
)
def test_names_that_only_look_like_it_do_not(ambiguous, name):
    with pytest.raises(CheckpointError, match="Say it"):
        ambiguous(name).choose()


def test_config_and_metadata_tell(ambiguous):
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
    with pytest.raises(CheckpointError, match="Say it"):
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
    assert checkpoint.choose(sana, None, [], "x") == sana[0]
    assert checkpoint.choose(sana, None, [("the name 'x'", sana[1])], "x") == sana[1]


def test_variant_names_as_people_write_them():
    assert find("mit-han-lab/DC-AE-f32c32-in-1.0-diffusers") == IN
    assert find("dc-ai/dc-ae-lite-f32c32") == VARIANTS["dc-ae-lite-f32c32-sana-1.1"]
    with pytest.raises(UnknownVariant, match=r"Choose one of: dc-ae-f32c32-in-1\.0, "):
        find("sdxl")


@pytest.mark.parametrize("layout", keys.LAYOUTS)
@pytest.mark.parametrize("prefix", ["", "vae.", "first_stage_model."])
def test_state_dicts_of_both_layouts_with_and_without_prefix(small_state, layout, prefix):
    state = keys.to_original(small_state, VARIANTS[DEMO]) if layout == "original" else small_state
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
    shapes = {k: s for k, s in keys.expected(variant, "original").items() if not k.endswith("num_batches_tracked")}
    layout, fits = keys.candidates(shapes, "x")
    assert layout == "original"
    assert variant in fits
    state = checkpoint.complete({k: torch.empty(s, device="meta") for k, s in shapes.items()}, layout, variant)
    assert {k: tuple(t.shape) for k, t in state.items()} == keys.expected(variant, "diffusers")
