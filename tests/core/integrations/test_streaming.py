"""`stream`: a genuine AutoencoderDC that runs through the engine, and stays what it was in all else."""

import copy
import io
import threading
import types

import numpy as np
import pytest
import torch
from diffusers import AutoencoderDC, SanaPAGPipeline, SanaPipeline
from diffusers.image_processor import PixArtImageProcessor
from diffusers.training_utils import EMAModel
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import nn

from dcae_core import DEMO, VARIANTS, BudgetError, ImageError, LatentError, hub
from dcae_core.errors import OptionError
from dcae_core.integrations import streaming
from dcae_core.integrations.diffusers import StreamedAutoencoderDC, stream, unstream
from tests import tiny_models
from tests.core.integrations.streamed import BOUND, same

# What it stays


def test_the_same_numbers_from_the_same_object(vae, stock, x, z):
    same(vae, stock, x, z)
    assert vae.streaming.last_plan is not None
    assert type(vae) is AutoencoderDC and vae.streaming.name == DEMO
    torch.testing.assert_close(vae(x).sample, stock(x).sample, **BOUND)
    torch.testing.assert_close(vae.decoder(z), stock.decoder(z), **BOUND)
    torch.testing.assert_close(vae.encoder(x), stock.encoder(x), **BOUND)


def test_what_is_saved_is_diffusers_own(vae, stock, x, z, tmp_path):
    same(vae, stock, x, z)  # and the engine has been made
    assert list(vae.state_dict()) == list(stock.state_dict()) and vae.config == stock.config
    vae.save_pretrained(tmp_path / "vae")
    saved = load_file(tmp_path / "vae" / "diffusion_pytorch_model.safetensors")
    assert all(torch.equal(saved[name], tensor) for name, tensor in stock.state_dict().items())
    assert AutoencoderDC.load_config(tmp_path / "vae")["_class_name"] == "AutoencoderDC"
    save_file(vae.state_dict(), tmp_path / "state.safetensors")


def test_unstream_gives_it_back(vae, stock, x, z):
    before = set(tiny_models.autoencoder().__dict__)
    same(vae, stock, x, z)
    assert unstream(vae) is vae and set(vae.__dict__) == before
    for coder in (vae.encoder, vae.decoder):
        assert not {"forward", "_apply"} & set(coder.__dict__)
    assert torch.equal(vae.decode(z).sample, stock.decode(z).sample)
    unstream(vae)
    same(stream(vae), stock, x, z)


def test_copies_and_pickles_run_by_themselves(vae, stock, x, z):
    same(vae, stock, x, z)
    file = io.BytesIO()
    torch.save(vae, file)
    file.seek(0)
    for other in (copy.deepcopy(vae), torch.load(file, weights_only=False)):
        with torch.no_grad():
            other.decoder.conv_in.weight.mul_(2)
        assert other.streaming is not vae.streaming
        assert not torch.allclose(other.decode(z).sample, stock.decode(z).sample, atol=1e-2)
        assert other.streaming.last_plan is not None
        same(vae, stock, x, z)


def test_a_pipeline(stock, tmp_path):
    def run(pipe):
        pipe.set_progress_bar_config(disable=True)
        options = {"num_inference_steps": 2, "use_resolution_binning": False, "output_type": "pt"}
        return pipe("a cat", generator=torch.Generator().manual_seed(1), height=64, width=96, **options).images

    wanted = run(tiny_models.sana(copy.deepcopy(stock)))
    pipe = tiny_models.sana()
    assert stream(pipe, budget="1GiB") is pipe
    torch.testing.assert_close(run(pipe), wanted, **BOUND)
    assert pipe.vae.streaming.last_plan is not None
    other = SanaPAGPipeline.from_pipe(pipe)
    assert other.vae is pipe.vae and type(SanaPipeline.from_pipe(other)) is SanaPipeline
    pipe.save_pretrained(tmp_path)
    torch.testing.assert_close(run(SanaPipeline.from_pretrained(tmp_path)), wanted, **BOUND)
    assert "forward" not in unstream(pipe).vae.decoder.__dict__


class EditingPipeline(SanaPipeline):
    """A stand-in for VIBE's: a SanaPipeline of another package, with modules of its own, that puts the latents of a
    picture beside what it denoises. Here they are only mixed into the noise."""

    def __init__(self, tokenizer, text_encoder, vae: AutoencoderDC, transformer, scheduler):
        super(SanaPipeline, self).__init__()
        modules = {"tokenizer": tokenizer, "text_encoder": text_encoder, "vae": vae}
        self.register_modules(**modules, transformer=transformer, scheduler=scheduler)
        self.vae_scale_factor = 2 ** (len(self.vae.config.encoder_block_out_channels) - 1)
        self.image_processor = PixArtImageProcessor(vae_scale_factor=self.vae_scale_factor)

    @torch.no_grad()
    def edit(self, image: Image.Image, **options):
        pixels = self.image_processor.preprocess(image, 64, 96).to(self._execution_device, self.vae.dtype)
        latents = self.vae.encode(pixels).latent * self.vae.config.scaling_factor
        return self("a cat", latents=latents, height=64, width=96, output_type="pt", **options).images


def test_a_pipeline_of_another_package(stock, tmp_path):
    options = {"num_inference_steps": 2, "use_resolution_binning": False, "generator": torch.Generator()}
    picture = Image.open(hub.bundled().with_name("example.jpg")).convert("RGB")
    parts = tiny_models.sana(copy.deepcopy(stock)).components
    wanted = EditingPipeline(**parts).edit(picture, **options)
    stream(parts["vae"])
    pipe = EditingPipeline(**parts)
    torch.testing.assert_close(pipe.edit(picture, **options), wanted, **BOUND)
    assert pipe.vae.streaming.last_plan.direction == "decode" and all(
        c.engine for c in pipe.vae.streaming.coders.values()
    )
    pipe.save_pretrained(tmp_path)
    vae = StreamedAutoencoderDC.from_pretrained(tmp_path, subfolder="vae")
    again = EditingPipeline.from_pretrained(tmp_path, vae=vae)
    torch.testing.assert_close(again.edit(picture, **options), wanted, **BOUND)


def test_what_can_not_be_streamed():
    with pytest.raises(OptionError, match="needed is an AutoencoderDC"):
        stream(nn.Linear(1, 1))
    with pytest.raises(OptionError, match="whose vae is of type Linear"):
        stream(types.SimpleNamespace(vae=nn.Linear(1, 1)))
    with pytest.raises(OptionError, match="in_channels"), torch.device("meta"):
        stream(AutoencoderDC(in_channels=4))
    for budget in ("much", b"1", [1], True):
        with pytest.raises(OptionError, match=r"is not a budget: .*GiB"):
            stream(tiny_models.autoencoder(), budget=budget)


def test_methods_of_somebody_else(vae, z):
    other = tiny_models.autoencoder()
    other.decode = lambda z: z
    with pytest.raises(OptionError, match="has decode of somebody else"):
        stream(other)
    assert "streaming" not in vars(other) and "forward" not in vars(other.encoder)
    vae.decode = replaced = lambda z: z
    assert unstream(vae).decode is replaced


def test_a_subclass_with_more_arguments(stock, z):
    class Scaled(AutoencoderDC):
        def decode(self, z, return_dict=True, scale=1.0):
            return super().decode(z * scale, return_dict)

    vae = Scaled.from_config(stock.config)
    vae.load_state_dict(stock.state_dict())
    with torch.no_grad():
        torch.testing.assert_close(stream(vae).decode(z, scale=2.0).sample, stock.decode(2 * z).sample, **BOUND)


def test_a_decoder_of_another_streamed_vae(vae, stock, x, z):
    other = tiny_models.autoencoder()
    other.decoder = copy.deepcopy(vae.decoder)
    same(stream(other), stock, x, z)
    assert len({id(v.streaming) for v in (vae, other)}) == 2


def test_streaming_again_keeps_what_it_is_not_told(vae):
    stream(vae, recompute=True)
    stream(vae, "2GiB")
    assert vae.streaming.recompute and vae.streaming.budget == "2GiB"
    vae.register_to_config(scaling_factor=2.0)
    assert vae.streaming.scaling_factor == 2.0


def test_moving_while_another_thread_runs(vae, stock, z):
    """The move waits for the run."""
    movers = []

    def progress(done, total):
        movers.append(threading.Thread(target=vae.to, args=(torch.float64,)))
        movers[-1].start()

    vae.streaming.progress = progress
    with torch.no_grad():
        torch.testing.assert_close(vae.decode(z).sample, stock.decode(z).sample, **BOUND)
    for mover in movers:
        mover.join()
    assert vae.dtype == torch.float64


# Budgets


def test_within_a_budget(vae, stock):
    z, reported = torch.randn(1, 32, 8, 8), []
    wanted = stock.decode(z).sample
    stream(vae, 1, lambda done, total: reported.append((done, total)))
    with pytest.raises(BudgetError, match="at least") as error, torch.no_grad():
        vae.decode(z)
    vae.streaming.budget = error.value.needed
    vae.enable_tiling(64, 64, 32, 32)
    vae.enable_slicing()
    with torch.no_grad():
        torch.testing.assert_close(vae.decode(z).sample, wanted, rtol=0, atol=1e-4)
        torch.testing.assert_close(vae.tiled_decode(z, return_dict=False)[0], wanted, rtol=0, atol=1e-4)
        assert vae.use_tiling and vae.streaming.last_plan.strips > 1
        assert reported[-1] == (vae.streaming.last_plan.steps,) * 2
        vae.streaming.budget = None
        torch.testing.assert_close(vae.tiled_encode(wanted).latent, stock.encode(wanted).latent, rtol=0, atol=1e-4)


@pytest.mark.parametrize(
    ("given", "error"), [(np.zeros((1, 3, 64, 64)), ImageError), ([Image.new("RGB", (64, 64))], ImageError)]
)
def test_what_is_no_tensor(vae, given, error):
    for call in (vae.encode, vae):
        with pytest.raises(error, match="VaeImageProcessor"):
            call(given)
    with pytest.raises(LatentError, match="raw latents"):
        vae.decode(given)
    with pytest.raises(LatentError, match="Stable Diffusion"), torch.no_grad():
        vae.decode(torch.randn(1, 4, 8, 8))


# Memory


def test_what_is_held_beside_the_weights_of_sana():
    with torch.device("meta"):
        vae = stream(AutoencoderDC.from_config(VARIANTS["dc-ae-f32c32-sana-1.1"].diffusers_config()))
    weights = {t.untyped_storage()._cdata: t.untyped_storage().nbytes() for t in vae.state_dict().values()}
    held = dict(weights)
    for coder in vae.streaming.coders.values():
        coder.make()
        held |= {t.untyped_storage()._cdata: t.untyped_storage().nbytes() for t in coder.engine.state_dict().values()}
    more = sum(held.values()) - sum(weights.values())
    assert vae.streaming.held_bytes == more
    assert 0.16 < more / sum(weights.values()) < 0.2


def test_nothing_is_held_before_a_run_nor_after_a_move(vae, z):
    assert vae.streaming.held_bytes == 0
    with torch.no_grad():
        vae.decode(z)
        held = vae.streaming.held_bytes
        assert 0 < held < sum(p.nbytes for p in vae.parameters()) / 2
        vae.to(torch.bfloat16)
        assert vae.streaming.held_bytes == 0
        assert vae.decode(z).sample.dtype == torch.bfloat16
    assert vae.streaming.held_bytes == held // 2


def test_fp16_that_runs_in_fp32_leaves_the_weights_shared(vae, z):
    vae.half()
    with torch.no_grad():
        vae.decode(z)
    assert 0 < vae.streaming.held_bytes < sum(p.nbytes for p in vae.parameters()) / 2
    assert vae.dtype == torch.float16


# Weights that change


def scaled(weights):
    for weight in weights:
        weight.mul_(1.1)


def by_data(vae):
    scaled(p.data for p in vae.parameters())


def by_version(vae):
    with torch.no_grad():
        scaled(vae.parameters())


def by_ema(vae):
    ema = EMAModel(vae.parameters())
    scaled(ema.shadow_params)
    ema.copy_to(vae.parameters())


def by_assignment(vae):
    vae.load_state_dict({name: 1.1 * tensor for name, tensor in vae.state_dict().items()}, assign=True)


def by_a_new_parameter(vae):
    for module in vae.modules():
        for name, parameter in list(module.named_parameters(recurse=False)):
            setattr(module, name, nn.Parameter(parameter.detach() * 1.1))


def by_a_few_rows(vae):
    vae.encoder.conv_out.weight.data[:2] *= 1.1
    vae.decoder.conv_in.weight.data[5:9] *= 1.1


def by_a_few_rows_under_inference(vae):
    with torch.inference_mode():
        vae.decoder.conv_in.weight[5:9] *= 1.1


@pytest.mark.parametrize(
    "change",
    [by_data, by_version, by_ema, by_assignment, by_a_new_parameter, by_a_few_rows, by_a_few_rows_under_inference],
)
def test_changed_weights_are_heeded(vae, x, z, change):
    other = tiny_models.autoencoder()
    same(vae, other, x, z)
    for one in (vae, other):
        change(one)
    same(vae, other, x, z, rtol=1e-4, atol=1e-4)
    assert vae.streaming.last_plan is not None


def test_weights_are_derived_once(vae, z):
    with torch.no_grad():
        vae.decode(z)
        engine = vae.streaming.coders["decode"].engine
        vae.decode(z)
        assert vae.streaming.coders["decode"].engine is engine
        vae.decoder.conv_in.weight.add_(0)
        vae.decode(z)
        assert vae.streaming.coders["decode"].engine is not engine
    assert vae.streaming.coders["encode"].engine is None


# The names that messages have


def test_names():
    config = VARIANTS["dc-ae-f32c32-in-1.0"].diffusers_config()
    assert streaming.variant_of(config).name == "dc-ae-f32c32-in-1.0"
    assert streaming.variant_of({**config, "scaling_factor": 1.0}).name == "a DC-AE f32c32"
    adaptive = VARIANTS["dc-ae-f32c128-1.5"].diffusers_config()
    found = streaming.variant_of({**adaptive, "scaling_factor": 0.7})
    assert found.adaptive and found.factor() == 0.7
    strided = {**VARIANTS["dc-ae-f32c32-sana-1.0"].diffusers_config(), "downsample_block_type": "stride_conv"}
    assert streaming.variant_of(strided).architecture.encoder.resample == "Conv"
