"""What the engine would leave out runs diffusers' own forward: hooks, LoRA, compiling, exporting."""

import copy
import types

import pytest
import torch
from diffusers.hooks import HookRegistry, ModelHook
from diffusers.models.autoencoders.autoencoder_dc import ResBlock
from torch import nn
from torch.fx.experimental.proxy_tensor import make_fx
from torch.nn import functional as F

from dcae_core import DEMO, VARIANTS
from dcae_core.errors import OptionError
from dcae_core.integrations.diffusers import stream
from tests import tiny_models
from tests.core.helpers import diffusers_vae
from tests.core.integrations.streamed import BOUND, plans


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
    vae = diffusers_vae(config).eval().requires_grad_(False)
    other = copy.deepcopy(vae)
    stream(vae)
    z = torch.randn(2, 32, 2, 2)
    torch.testing.assert_close(vae.decode(z).sample, other.decode(z).sample, rtol=1e-4, atol=1e-4)
    assert not caplog.text
    for one in (vae, other):
        one.train()
    assert torch.equal(vae.decode(z).sample, other.decode(z).sample)
    assert "training mode" in caplog.text


# Compiling and exporting: the plain network


class Call(nn.Module):
    """One direction of a vae, as a module."""

    def __init__(self, vae, direction):
        super().__init__()
        self.vae, self.direction = vae, direction
        self.eval()

    def forward(self, given):
        return getattr(self.vae, self.direction)(given, return_dict=False)[0]


no_torch_2_6 = pytest.mark.skipif(
    torch.__version__.startswith("2.6."), reason="torch 2.6 can't trace a forward that an instance has of its own"
)


@no_torch_2_6
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
    onnxruntime = pytest.importorskip("onnxruntime", reason="onnxruntime is not installed: no export was run")
    torch.onnx.export(Call(vae, direction), (given,), path, dynamo=True)
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    (found,) = session.run(None, {session.get_inputs()[0].name: given.numpy()})
    torch.testing.assert_close(torch.from_numpy(found), Call(stock, direction)(given).detach(), **BOUND)


@no_torch_2_6
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
