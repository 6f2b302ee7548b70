"""With diffusers' own pipelines: an autoencoder that runs on dcae_core, and Sana from picture to picture."""

import inspect
import json

import accelerate
import diffusers
import pytest
import torch
from diffusers import (
    AutoencoderDC,
    AutoPipelineForImage2Image,
    AutoPipelineForText2Image,
    FlowMatchEulerDiscreteScheduler,
    SanaPipeline,
    SanaSprintPipeline,
)
from diffusers.pipelines import auto_pipeline
from PIL import Image
from safetensors.torch import load_file

from dcae_core import DEMO, VARIANTS, BudgetError, DownloadError, LatentError, UnknownVariant, checkpoint, hub
from dcae_core.errors import OptionError
from dcae_core.integrations import sana as from_picture
from dcae_core.integrations.diffusers import StreamedAutoencoderDC
from tests import tiny_models


@pytest.fixture(scope="module")
def stock() -> AutoencoderDC:
    return tiny_models.autoencoder()


@pytest.fixture
def vae() -> AutoencoderDC:
    return StreamedAutoencoderDC.from_pretrained(DEMO)


@pytest.fixture
def pipe(vae) -> SanaPipeline:
    return tiny_models.sana(vae)


@pytest.fixture(scope="module")
def photograph() -> Image.Image:
    return Image.open(hub.bundled().with_name("example.jpg")).convert("RGB").resize((256, 128))


def run(pipe, prompt="a red house", seed=1, **options):
    given = {"num_inference_steps": 3, "use_resolution_binning": False, "output_type": "pt", **options}
    pipe.set_progress_bar_config(disable=True)
    return pipe(prompt, generator=torch.Generator().manual_seed(seed), **given).images


def test_a_pipeline_gives_the_picture_that_it_gives_with_diffusers_own(pipe, stock):
    theirs = run(tiny_models.sana(stock), height=128, width=256)
    ours = run(pipe, height=128, width=256)
    assert ours.shape == (1, 3, 128, 256) and (ours - theirs).abs().max() < 1e-5


def test_encode_and_decode(vae, stock):
    x = torch.rand(2, 3, 64, 96) * 2 - 1
    encoded = vae.encode(x)
    assert torch.allclose(encoded.latent, stock.encode(x).latent, atol=1e-4)
    assert torch.equal(vae.encode(x, False)[0], encoded.latent)
    decoded = vae.decode(encoded.latent)
    assert torch.allclose(decoded.sample, stock.decode(encoded.latent).sample, atol=1e-4)
    assert torch.equal(vae(x).sample, decoded.sample)


def test_tiling_and_slicing_change_nothing(vae):
    z = torch.randn(2, 32, 20, 3)
    plain = vae.decode(z).sample
    vae.enable_tiling(64, 64, 32, 32)
    if diffusers.__version__ >= "0.36":  # before, its own decode of slices raises AttributeError
        vae.enable_slicing()
    assert vae.use_tiling and torch.allclose(vae.decode(z).sample, plain, atol=1e-5)
    assert torch.equal(vae.tiled_decode(z, return_dict=False)[0], vae.decode(z).sample)
    assert torch.equal(vae.tiled_encode(plain).latent, vae.encode(plain).latent)
    vae.disable_tiling()
    assert not vae.use_tiling


def test_budget_and_progress(vae):
    z = torch.randn(1, 32, 8, 8)
    plain, reported = vae.decode(z).sample, []
    assert vae.streaming.last_plan.whole
    vae.streaming.budget, vae.streaming.progress = 1, lambda done, total: reported.append((done, total))
    with pytest.raises(BudgetError, match="at least") as error:
        vae.decode(z)
    vae.streaming.budget = error.value.needed
    assert torch.allclose(vae.decode(z).sample, plain, atol=1e-4)
    plan = vae.streaming.last_plan
    assert plan.strips > 1 and reported[-1] == (plan.steps,) * 2


@pytest.mark.parametrize("name", VARIANTS)
def test_it_is_the_class_of_diffusers_with_the_published_config(name):
    own = {"scaling_factor": 0.7} if VARIANTS[name].scaling_factor is None else {}
    config = {k: v for k, v in (VARIANTS[name].diffusers_config() | own).items() if not k.startswith("_")}
    with torch.device("meta"):
        ours, theirs = StreamedAutoencoderDC(**config), AutoencoderDC(**config)
        again = StreamedAutoencoderDC.from_config(theirs.config)
    for vae in (ours, again):
        assert type(vae) is AutoencoderDC and vae.config == theirs.config and vae.streaming.recompute
    for attribute in ("spatial_compression_ratio", "tile_latent_min_height", "tile_sample_stride_width", "use_tiling"):
        assert getattr(ours, attribute) == getattr(theirs, attribute)


def same_weights(vae, stock) -> bool:
    theirs, ours = stock.state_dict(), vae.state_dict()
    return list(ours) == list(theirs) and all(torch.equal(t, theirs[name]) for name, t in ours.items())


def test_loading(tmp_path, stock):
    stock.save_pretrained(tmp_path / "pipeline" / "vae")
    original = checkpoint.save(tmp_path / "original.safetensors", stock.state_dict(), VARIANTS[DEMO], "original")
    z = torch.randn(1, 32, 2, 2)
    wanted = StreamedAutoencoderDC.from_pretrained(DEMO).decode(z).sample
    for loaded in (
        StreamedAutoencoderDC.from_pretrained(tmp_path / "pipeline", subfolder="vae"),
        StreamedAutoencoderDC.from_pretrained(tmp_path / "pipeline"),
        StreamedAutoencoderDC.from_pretrained(original, variant=None),
        StreamedAutoencoderDC.from_single_file(hub.bundled()),
        StreamedAutoencoderDC.from_single_file(str(original), budget="1GiB"),
    ):
        assert type(loaded) is AutoencoderDC and same_weights(loaded, stock) and not loaded.training
        assert loaded.config.scaling_factor == 1.322 and loaded.streaming.name == DEMO
        assert loaded.dtype == torch.float32 and torch.equal(loaded.decode(z).sample, wanted)
    with pytest.raises(UnknownVariant):
        StreamedAutoencoderDC.from_pretrained("no-such-thing")
    with pytest.raises(DownloadError, match=r"dc-ae-f32c32-sana-1\.1"):
        StreamedAutoencoderDC.from_pretrained("dc-ae-f32c32-sana-1.1", local_files_only=True, cache_dir=tmp_path)


@pytest.mark.parametrize("layout", ["diffusers", "original"])
@pytest.mark.parametrize("name", ["torch_dtype", "dtype"])
def test_dtypes(tmp_path, stock, layout, name):
    """ "auto" is the file's, where diffusers does not load it: it takes that for fp32, and says so."""
    if (layout, name) == ("diffusers", "dtype"):
        stock.save_pretrained(tmp_path / "stock")
        try:
            AutoencoderDC.from_pretrained(tmp_path / "stock", dtype=torch.float16)
        except TypeError:
            pytest.skip("this diffusers calls it torch_dtype only")
    for dtype in (torch.float32, torch.bfloat16):
        state = {key: t.to(dtype) for key, t in stock.state_dict().items()}
        folder = tmp_path / str(dtype)
        checkpoint.save(folder, state, VARIANTS[DEMO], layout)
        auto = dtype if layout == "original" else torch.float32
        for given, wanted in ((None, torch.float32), ("auto", auto), (torch.float16, torch.float16)):
            assert StreamedAutoencoderDC.from_pretrained(folder, **{name: given}).dtype == wanted
        assert StreamedAutoencoderDC.from_pretrained(folder).dtype == torch.float32


def test_what_diffusers_takes(tmp_path, stock):
    stock.save_pretrained(tmp_path, variant="fp16")
    z = torch.ones(1, 32, 2, 2)
    options = {"revision": None, "token": None, "use_safetensors": True, "force_download": False, "variant": "fp16"}
    for more in ({"low_cpu_mem_usage": True}, {"low_cpu_mem_usage": False}, {"device_map": "cpu"}):
        vae = StreamedAutoencoderDC.from_pretrained(tmp_path, **options, **more)
        assert same_weights(vae, stock)
        assert torch.allclose(vae.decode(z).sample, stock.decode(z).sample, atol=1e-4)
    vae = StreamedAutoencoderDC.from_pretrained(tmp_path, variant="fp16", scaling_factor=0.5)
    assert vae.config.scaling_factor == 0.5


@pytest.mark.parametrize("layout", ["diffusers", "original"])
def test_arguments_are_taken_as_diffusers_takes_them(tmp_path, stock, layout):
    """Also for a file that it does not load."""
    saved = checkpoint.save(tmp_path / "vae", stock.state_dict(), VARIANTS[DEMO], layout)
    load = StreamedAutoencoderDC.from_pretrained
    vae, report = load(pretrained_model_name_or_path=saved, device_map={"": "cpu"}, output_loading_info=True)
    assert same_weights(vae, stock) and not report["missing_keys"] and vae.streaming.recompute
    if layout == "original":
        file = saved if saved.is_file() else next(saved.glob("*.safetensors"))
        for name in ("torch_dtype", "dtype"):
            for dtype in (torch.bfloat16, "bfloat16", "bf16"):
                assert StreamedAutoencoderDC.from_single_file(file, **{name: dtype}).dtype == torch.bfloat16
        with pytest.raises(OptionError, match="float99"):
            load(saved, torch_dtype="float99")
        with pytest.raises(OptionError, match="one device"):
            load(saved, device_map="auto")
        with pytest.raises(OptionError, match="can't be used here"):
            load(saved, device_map="no-such-device")


def test_what_was_loaded_is_saved(tmp_path, stock):
    original = checkpoint.save(tmp_path / "original.safetensors", stock.state_dict(), VARIANTS[DEMO], "original")
    vae = StreamedAutoencoderDC.from_pretrained(original)
    vae.decode(torch.randn(1, 32, 2, 2))
    vae.save_pretrained(tmp_path / "vae")
    saved = load_file(tmp_path / "vae" / "diffusion_pytorch_model.safetensors")
    assert all(torch.equal(saved[name], t) for name, t in load_file(hub.bundled()).items())
    tiny_models.sana(vae).save_pretrained(tmp_path / "pipe")
    assert json.loads((tmp_path / "pipe" / "model_index.json").read_text())["vae"] == ["diffusers", "AutoencoderDC"]
    assert same_weights(SanaPipeline.from_pretrained(tmp_path / "pipe").vae, stock)


def test_moves_and_conversions(vae):
    vae.to(torch.bfloat16)
    assert vae.streaming.dtype == torch.bfloat16
    assert vae.decode(torch.randn(1, 32, 2, 2)).sample.dtype == torch.bfloat16


def test_what_can_not_be(vae):
    with pytest.raises(LatentError, match="Stable Diffusion"):
        vae.decode(torch.randn(1, 4, 8, 8))


@pytest.mark.parametrize("whole", [True, False])
def test_weights_that_accelerate_keeps_elsewhere(vae, whole):
    """Sequential offload: the weights are on no device until something runs."""
    x = torch.rand(1, 3, 128, 64)
    z = vae.encode(x).latent.detach()
    picture = vae.decode(z).sample
    accelerate.cpu_offload(vae, execution_device="cpu")
    assert all(p.is_meta for p in vae.parameters())
    for direction, given, wanted in (("encode", x, z), ("decode", z, picture)):
        vae.streaming.budget = None
        if not whole:
            with pytest.raises(BudgetError) as error:
                vae.streaming.plan(direction, 128, 64, 1, 1)
            vae.streaming.budget = error.value.needed
        with torch.no_grad():
            assert torch.allclose(getattr(vae, direction)(given, return_dict=False)[0], wanted, atol=1e-4)
        assert vae.streaming.last_plan.whole == whole
        assert all(p.is_meta for p in vae.parameters())


@pytest.mark.parametrize("scheduler", [None, FlowMatchEulerDiscreteScheduler(shift=3.0)])
@pytest.mark.parametrize("whose", ["ours", "diffusers"])
def test_picture_to_picture(pipe, stock, photograph, scheduler, whose):
    from_picture.register()
    if whose == "diffusers":
        pipe.vae = stock
    pipe = AutoPipelineForImage2Image.from_pipe(pipe)
    if scheduler is not None:
        pipe.scheduler = scheduler
    assert isinstance(pipe, from_picture.SanaImg2ImgPipeline)
    x = pipe.image_processor.preprocess(photograph)
    round_trip = (pipe.vae.decode(pipe.vae.encode(x)[0]).sample / 2 + 0.5).clamp(0, 1)
    made = {s: run(pipe, image=photograph, strength=s, num_inference_steps=10) for s in (0, 0.1, 0.3, 0.6, 1)}
    assert torch.allclose(made[0], round_trip, atol=1e-5)
    distances = [(one - round_trip).abs().mean() for one in made.values()]
    assert distances == sorted(distances)
    other = photograph.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    noise_alone = run(pipe, image=other, strength=1.0, num_inference_steps=10)
    assert torch.allclose(noise_alone, made[1], atol=2e-3), "but for a first sigma that is not quite 1"
    assert (run(pipe, image=other, strength=0.6, num_inference_steps=10) - made[0.6]).abs().mean() > 0.01
    assert torch.equal(run(pipe, image=photograph, strength=0.6, num_inference_steps=10), made[0.6])
    back = AutoPipelineForText2Image.from_pipe(pipe)
    assert type(back) is SanaPipeline and back.vae is pipe.vae


def test_at_strength_1_it_is_text_to_image(pipe, photograph):
    """The same steps from the same noise, but for a first sigma that is not quite 1."""
    text = run(pipe, height=128, width=256)
    picture = run(from_picture.SanaImg2ImgPipeline(**pipe.components), image=photograph, strength=1.0)
    assert torch.allclose(text, picture, atol=2e-3)
    assert torch.equal(run(pipe, height=128, width=256), text), "the scheduler is as it was"


def test_only_the_last_steps_run(pipe, photograph):
    pipe, seen = from_picture.SanaImg2ImgPipeline(**pipe.components), []

    def callback(pipe, step, timestep, tensors):
        seen.append(float(timestep))
        return tensors

    run(pipe, image=photograph, strength=0.3, num_inference_steps=10, callback_on_step_end=callback)
    pipe.scheduler.set_timesteps(10)
    assert seen == [float(t) for t in pipe.scheduler.timesteps[-3:]]


def test_what_it_starts_from(pipe, photograph):
    pipe = from_picture.SanaImg2ImgPipeline(**pipe.components)
    x = pipe.image_processor.preprocess(photograph)
    scaled = pipe.vae.encode(x).latent * pipe.vae.config.scaling_factor
    plain = run(pipe, image=photograph, strength=0.5)
    assert torch.allclose(run(pipe, image=scaled, strength=0.5), plain, atol=1e-4)
    assert torch.allclose(run(pipe, image=x / 2 + 0.5, strength=0.5), plain, atol=1e-4)
    assert run(pipe, image=photograph.resize((250, 140)), strength=0.5).shape == (1, 3, 128, 224)
    assert run(pipe, image=photograph, strength=0.5, height=64, width=64).shape == (1, 3, 64, 64)
    many = run(pipe, ["a cat", "a house"], image=[photograph, photograph], strength=0.5, num_images_per_prompt=2)
    assert many.shape == (4, 3, 128, 256)
    larger = run(pipe, image=scaled, strength=0.5, height=256, width=512)
    assert larger.shape == (1, 3, 256, 512)
    assert torch.allclose(run(pipe, image=scaled[0], strength=0.5), plain, atol=1e-4)
    for wrong in ({"strength": 0.5}, {"image": photograph, "strength": 1.5}, {"image": [photograph] * 3}):
        with pytest.raises(OptionError):
            run(pipe, ["a cat", "a house"], **wrong)


def test_hosts_see_what_it_takes():
    taken = inspect.signature(from_picture.SanaImg2ImgPipeline.__call__).parameters
    assert {"image", "strength", *inspect.signature(SanaPipeline.__call__).parameters} == set(taken)


def test_register_and_unregister():
    before = dict(auto_pipeline.AUTO_IMAGE2IMAGE_PIPELINES_MAPPING)
    from_picture.register()
    mapping = auto_pipeline.AUTO_IMAGE2IMAGE_PIPELINES_MAPPING
    assert mapping["sana"] is from_picture.SanaImg2ImgPipeline
    assert auto_pipeline.AUTO_TEXT2IMAGE_PIPELINES_MAPPING["sana-sprint"] is SanaSprintPipeline
    from_picture.unregister()
    assert "sana" not in mapping or mapping["sana"] is before.get("sana")
    assert auto_pipeline.AUTO_TEXT2IMAGE_PIPELINES_MAPPING["sana"] is SanaPipeline
