"""`stream`: a genuine AutoencoderDC that runs through the engine, and stays what it was in all else."""

import copy
import io
import threading
import types

import accelerate
import numpy as np
import onnxruntime
import pytest
import torch
from diffusers import AutoencoderDC, SanaPAGPipeline, SanaPipeline
from diffusers.hooks import HookRegistry, ModelHook, apply_group_offloading
from diffusers.image_processor import PixArtImageProcessor
from diffusers.models.autoencoders.autoencoder_dc import ResBlock
from diffusers.training_utils import EMAModel
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import nn
from torch.fx.experimental.proxy_tensor import make_fx
from torch.nn import functional as F

from dcae_core import DEMO, VARIANTS, BudgetError, ImageError, LatentError, hub
from dcae_core.engine.live_bytes import LiveBytes
from dcae_core.errors import OptionError
from dcae_core.integrations import streaming
from dcae_core.integrations.diffusers import StreamedAutoencoderDC, stream, unstream
from tests import tiny_models
from tests.core.helpers import randomised

BOUND = {"rtol": 0, "atol": 1e-5}


@pytest.fixture(scope="module")
def stock() -> AutoencoderDC:
    return tiny_models.autoencoder()


@pytest.fixture
def vae() -> AutoencoderDC:
    return stream(tiny_models.autoencoder())


@pytest.fixture(scope="module")
def x() -> torch.Tensor:
    return torch.rand(2, 3, 64, 96, generator=torch.Generator().manual_seed(0)) * 2 - 1


@pytest.fixture(scope="module")
def z(stock, x) -> torch.Tensor:
    return stock.encode(x).latent


def plans(vae, direction="decode"):
    """How many runs went through the engine, from here on: a list that grows."""
    seen, progress = [], vae.streaming.progress
    vae.streaming.progress = lambda done, total: seen.append(vae.streaming) if done == total else progress
    return seen


def same(vae, stock, x, z, **bound):
    bound = bound or BOUND
    with torch.no_grad():
        torch.testing.assert_close(vae.encode(x).latent, stock.encode(x).latent, **bound)
        torch.testing.assert_close(vae.decode(z).sample, stock.decode(z).sample, **bound)


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


# Gradients


def gradients(vae, x, z):
    """Of a loss on a picture and a latent, through the vae to them and to its weights."""
    x, z = x.clone().requires_grad_(), z.clone().requires_grad_()
    loss = vae.decode(z).sample.square().mean() + vae.encode(x).latent.square().mean() + z.square().mean()
    weights = [p for p in vae.parameters() if p.requires_grad]
    return loss, torch.autograd.grad(loss, [x, z, *weights])


@pytest.mark.parametrize("train_weights", [True, False])
@pytest.mark.parametrize("recompute", [True, False])
def test_gradients_are_those_of_diffusers(x, z, recompute, train_weights, caplog):
    theirs = tiny_models.autoencoder().requires_grad_(train_weights)
    ours = stream(tiny_models.autoencoder().requires_grad_(train_weights), recompute=recompute)
    wanted, wanted_gradients = gradients(theirs, x, z)
    loss, found = gradients(ours, x, z)
    assert (ours.streaming.last_plan is not None) == recompute
    assert ("gradients are on" in caplog.text) != recompute
    torch.testing.assert_close(loss, wanted, rtol=1e-5, atol=1e-5)
    assert len(found) == len(wanted_gradients)
    for one, other in zip(found, wanted_gradients, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4 * float(other.abs().max()))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_gradients_of_what_is_padded_and_converted(dtype):
    vae, other = stream(tiny_models.autoencoder(), recompute=True), tiny_models.autoencoder()
    given = [torch.randn(1, 3, 48, 40, generator=torch.Generator().manual_seed(2), dtype=dtype) for _ in range(2)]
    for x in given:
        x.requires_grad_()
    vae.encode(given[0]).latent.square().sum().backward()
    other.encode(F.pad(given[1].float(), (0, 24, 0, 16), mode="replicate")).latent.square().sum().backward()
    torch.testing.assert_close(given[0].grad, given[1].grad, rtol=1e-3, atol=1e-4)


def test_gradients_that_recompute_does_not_have(z, x):
    vae, other = stream(tiny_models.autoencoder(), recompute=True), tiny_models.autoencoder()
    given = z.clone().requires_grad_()
    with pytest.raises(OptionError, match="create_graph"):
        torch.autograd.grad(vae.decode(given).sample.mean(), given, create_graph=True)
    bad = x.clone().requires_grad_()
    with torch.no_grad():
        bad[0, 0, 0, 0] = float("inf")
    for one in (vae, other):
        one.encode(bad).latent.sum().backward()
    assert not bad.grad.isfinite().all()  # so that a GradScaler sees it


def test_gradients_within_a_budget(z, stock):
    vae = stream(tiny_models.autoencoder(), 1, recompute=True)
    z = torch.randn(1, 32, 8, 8, requires_grad=True)
    with pytest.raises(BudgetError) as error:
        vae.decode(z)
    vae.streaming.budget = error.value.needed
    (found,) = torch.autograd.grad(vae.decode(z).sample.square().mean(), z)
    assert vae.streaming.last_plan.strips > 1
    (wanted,) = torch.autograd.grad(stock.decode(z).sample.square().mean(), z)
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-7)


def test_going_back_holds_the_maps_between_blocks_only():
    """Not what each block makes inside: counted while it goes back, against diffusers' own."""
    peaks = []
    for recompute in (False, True):
        vae = stream(tiny_models.autoencoder(), recompute=recompute)
        z = torch.randn(1, 32, 8, 8)
        with torch.no_grad():
            vae.decode(z)  # so that the engine is there
        with LiveBytes([*vae.parameters(), *vae.streaming.coders["decode"].engine.parameters()]) as counted:
            vae.decode(z.requires_grad_()).sample.square().mean().backward()
        peaks.append(counted.peak)
    assert peaks[1] < 0.6 * peaks[0]


def test_a_step_of_training(x):
    """The weights change, and what is derived from them with them."""
    pair = [tiny_models.autoencoder().requires_grad_(True) for _ in range(2)]
    stream(pair[1], recompute=True)
    for vae in pair:
        optimiser = torch.optim.SGD(vae.parameters(), lr=1e-3)
        for _ in range(2):
            optimiser.zero_grad()
            (vae(x).sample - x).square().mean().backward()
            optimiser.step()
    same(pair[1], pair[0], x, pair[0].encode(x).latent.detach(), rtol=1e-3, atol=1e-3)


# What the engine would leave out


class Doubling(ModelHook):
    def post_forward(self, module, output):
        return 2 * output


def hook_inside(vae):
    vae.decoder.up_blocks[0].register_forward_hook(lambda module, given, output: 0.5 * output)


def pre_hook_inside(vae):
    vae.decoder.conv_in.register_forward_pre_hook(lambda module, given: (0.5 * given[0],))


def diffusers_hook_inside(vae):
    HookRegistry.check_if_exists_or_initialize(vae.decoder.conv_in).register_hook(Doubling(), "doubling")


def circular(vae):
    for module in vae.modules():
        if isinstance(module, nn.Conv2d):
            module.padding_mode = "circular"


def replaced_convolution(vae):
    """As for seamless textures."""
    conv = vae.decoder.conv_in
    padded = lambda self, x, w, b: F.conv2d(F.pad(x, (1, 1, 1, 1), mode="circular"), w, b)  # noqa: E731
    conv._conv_forward = types.MethodType(padded, conv)


def without_residuals(vae):
    for module in vae.modules():
        if hasattr(module, "residual_connection"):
            module.residual_connection = False


def without_a_shortcut(vae):
    vae.decoder.in_shortcut = False


def another_module(vae):
    class Twice(nn.Conv2d):
        def forward(self, x):
            return 2 * super().forward(x)

    vae.decoder.conv_in.__class__ = Twice


def another_activation(vae):
    vae.decoder.conv_act = nn.SiLU()


def replaced_forward(vae):
    conv = vae.decoder.conv_in
    conv.forward = lambda x: 2 * type(conv).forward(conv, x)


def parametrised(vae):
    nn.utils.parametrizations.spectral_norm(vae.decoder.conv_in)


def layerwise_casting(vae):
    vae.enable_layerwise_casting(storage_dtype=torch.float8_e4m3fn, compute_dtype=torch.float32)


def some_in_bf16(vae):
    vae.decoder.norm_out.to(torch.bfloat16)


INSIDE = [
    hook_inside, pre_hook_inside, diffusers_hook_inside, circular, another_module, another_activation, replaced_forward,
    parametrised, layerwise_casting, replaced_convolution, without_residuals, without_a_shortcut,
]  # fmt: skip


@pytest.mark.parametrize("change", INSIDE)
def test_what_is_inside_is_heeded_and_said(change, x, z, caplog):
    """By diffusers' own forward."""
    vae, other = stream(tiny_models.autoencoder()), tiny_models.autoencoder()
    with torch.no_grad():
        before = vae.decode(z).sample
    runs = plans(vae)
    for one in (vae, other):
        torch.manual_seed(0)
        change(one)
        one.eval()
    for _ in range(2):
        with torch.no_grad():
            result = vae.decode(z).sample
    assert torch.equal(result, other.decode(z).sample) and not torch.equal(result, before)
    assert not runs and caplog.text.count("runs diffusers' own forward") == 1


def test_a_patched_class_is_heeded(vae, z, monkeypatch, caplog):
    forward = ResBlock.forward
    monkeypatch.setattr(ResBlock, "forward", lambda self, x: 1.1 * forward(self, x))
    with torch.no_grad():
        assert torch.equal(vae.decode(z).sample, tiny_models.autoencoder().decode(z).sample)
    assert "has forward of somebody else" in caplog.text


def hook_on_the_decoder(vae):
    vae.decoder.register_forward_hook(lambda module, given, output: 2 * output)


def diffusers_hook_on_the_decoder(vae):
    HookRegistry.check_if_exists_or_initialize(vae.decoder).register_hook(Doubling(), "doubling")


@pytest.mark.parametrize("change", [hook_on_the_decoder])
def test_hooks_of_a_whole_coder_run_around_the_engine(vae, stock, z, change):
    change(vae)
    with torch.no_grad():
        torch.testing.assert_close(vae.decode(z).sample, 2 * stock.decode(z).sample, **BOUND)
    assert vae.streaming.last_plan is not None


def test_a_hook_that_was_there_first():
    vae = tiny_models.autoencoder()
    diffusers_hook_on_the_decoder(vae)
    with pytest.raises(OptionError, match=r"stream\(\) the vae first"):
        stream(vae)
    assert "forward" not in vae.encoder.__dict__ and "streaming" not in vae.__dict__


def test_lora(z, caplog):
    peft = pytest.importorskip("peft", reason="peft is not here")
    vae, other = stream(tiny_models.autoencoder()), tiny_models.autoencoder()
    for one in (vae, other):
        torch.manual_seed(0)
        config = peft.LoraConfig(r=2, target_modules=["to_q", "conv_inverted"], init_lora_weights=False)
        peft.inject_adapter_in_model(config, one)
    with torch.no_grad():
        assert torch.equal(vae.decode(z).sample, other.decode(z).sample)
    assert "own forward" in caplog.text


@pytest.mark.parametrize(("dtype", "cast"), [(torch.bfloat16, torch.float16), (torch.float16, torch.bfloat16)])
def test_weights_of_another_half_than_autocast(z, dtype, cast):
    vae = stream(tiny_models.autoencoder().to(dtype))
    with torch.no_grad(), torch.autocast("cpu", dtype=cast):
        first, second = (vae.decode(z.to(dtype)).sample for _ in range(2))
    assert torch.equal(first, second)


def test_mixed_precision_is_said(vae, z, caplog):
    some_in_bf16(vae)
    with torch.no_grad(), pytest.raises(RuntimeError):  # diffusers' own error
        vae.decode(z)
    assert "its weights are" in caplog.text


def test_batch_norms_in_training(caplog):
    config = {**VARIANTS[DEMO].diffusers_config(), "decoder_norm_types": "batch_norm"}
    config = {name: value for name, value in config.items() if not name.startswith("_")}
    vae = randomised(lambda: AutoencoderDC(**config)).eval().requires_grad_(False)
    other = copy.deepcopy(vae)
    stream(vae)
    z = torch.randn(2, 32, 2, 2)
    torch.testing.assert_close(vae.decode(z).sample, other.decode(z).sample, rtol=1e-4, atol=1e-4)
    assert not caplog.text
    for one in (vae, other):
        one.train()
    assert torch.equal(vae.decode(z).sample, other.decode(z).sample)
    assert "training mode" in caplog.text


# Weights that are kept elsewhere


@pytest.mark.parametrize("first", ["stream", "offload"])
def test_sequential_offload(stock, x, z, first):
    vae = tiny_models.autoencoder()
    for step in (first, "offload" if first == "stream" else "stream"):
        if step == "stream":
            stream(vae)
        else:
            accelerate.cpu_offload(vae, execution_device="cpu")
    assert all(p.is_meta for p in vae.parameters())
    same(vae, stock, x, z)
    assert vae.streaming.last_plan is not None and vae.streaming.held_bytes == 0
    torch.testing.assert_close(vae.encoder(x), stock.encoder(x), **BOUND)
    torch.testing.assert_close(vae.decoder(z), stock.decoder(z), **BOUND)
    assert all(p.is_meta for p in vae.parameters())
    accelerate.hooks.remove_hook_from_module(vae, recurse=True)
    same(vae, stock, x, z)
    assert torch.equal(unstream(vae).decode(z).sample, stock.decode(z).sample)


def test_unstream_while_offloaded(vae, stock, z):
    accelerate.cpu_offload(vae, execution_device="cpu")
    assert torch.equal(unstream(vae).decode(z).sample, stock.decode(z).sample)


@pytest.mark.parametrize("times", [1, 2])
def test_out_of_memory_while_weights_come(vae, stock, z, times, monkeypatch):
    """The first time they come again; else the error is that, and nothing is left half done."""
    accelerate.cpu_offload(vae, execution_device="cpu")
    hook, failures = vae.decoder.conv_in._hf_hook, []
    load = hook.pre_forward

    def fail(module, *args, **options):
        if len(failures) < times:
            failures.append(1)
            raise torch.OutOfMemoryError("CUDA out of memory")
        return load(module, *args, **options)

    monkeypatch.setattr(hook, "pre_forward", fail)
    if times == 2:
        with pytest.raises(torch.OutOfMemoryError):
            vae.decode(z)
    assert all(p.is_meta for p in vae.parameters())
    torch.testing.assert_close(vae.decode(z).sample, stock.decode(z).sample, **BOUND)


@pytest.mark.parametrize("to_disk", [True, False])
def test_group_offload(stock, x, z, to_disk, tmp_path):
    vae = stream(tiny_models.autoencoder())
    options = {"offload_type": "leaf_level"}
    if to_disk:
        options["offload_to_disk_path"] = str(tmp_path)
    apply_group_offloading(vae, onload_device=torch.device("cpu"), **options)
    same(vae, stock, x, z)
    assert vae.streaming.last_plan is not None and vae.streaming.held_bytes == 0


# Compiling and exporting: the plain network


class Call(nn.Module):
    """One direction of a vae, as a module."""

    def __init__(self, vae, direction):
        super().__init__()
        self.vae, self.direction = vae, direction
        self.eval()

    def forward(self, given):
        return getattr(self.vae, self.direction)(given, return_dict=False)[0]


@pytest.mark.parametrize("direction", ["encode", "decode"])
def test_export(vae, stock, x, z, direction):
    given, call = x if direction == "encode" else z, Call(vae, direction)
    wanted = Call(stock, direction)(given)
    exported = torch.export.export(call, (given,))
    torch.testing.assert_close(exported.module()(given), wanted, **BOUND)
    traced = torch.jit.trace(call, (given,), check_trace=False)
    torch.testing.assert_close(traced(given), wanted, **BOUND)


@pytest.mark.parametrize("direction", ["encode", "decode"])
def test_onnx(vae, stock, x, z, direction, tmp_path):
    given, path = x if direction == "encode" else z.detach(), tmp_path / "coder.onnx"
    torch.onnx.export(Call(vae, direction), (given,), path, dynamo=True)
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    (found,) = session.run(None, {session.get_inputs()[0].name: given.numpy()})
    torch.testing.assert_close(torch.from_numpy(found), Call(stock, direction)(given).detach(), **BOUND)


def test_compile(vae, stock, x, z):
    """`backend="eager"` captures the graph as the others do, without a compiler."""
    for direction, given in (("encode", x), ("decode", z)):
        compiled = torch.compile(getattr(vae, direction), fullgraph=True, backend="eager")
        wanted = getattr(stock, direction)(given, return_dict=False)[0]
        torch.testing.assert_close(compiled(given, return_dict=False)[0], wanted, **BOUND)
    vae.decoder = torch.compile(vae.decoder, backend="eager")
    runs = plans(vae)
    torch.testing.assert_close(vae.decode(z).sample, stock.decode(z).sample, **BOUND)
    assert not runs


def test_make_fx(vae, stock, z):
    recorded = make_fx(lambda z: vae.decode(z).sample)(z)
    torch.testing.assert_close(recorded(z), stock.decode(z).sample, **BOUND)


def test_functional_transforms(vae, stock, z):
    """Derivatives forwards, and vmap."""
    result, tangent = torch.func.jvp(lambda z: vae.decode(z).sample, (z,), (torch.ones_like(z),))
    torch.testing.assert_close(result, stock.decode(z).sample, **BOUND)
    assert tangent.abs().max() > 0
    mapped = torch.func.vmap(lambda z: vae.decoder(z))(z[:, None])
    torch.testing.assert_close(mapped[:, 0], stock.decode(z).sample, **BOUND)


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
