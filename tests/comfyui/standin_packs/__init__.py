"""Custom nodes for tests alone: they do to a VAE and to a LATENT what nodes of other packs do, which are not here."""

import comfy.sampler_helpers
import torch
from comfy_execution.graph_utils import GraphBuilder


class ReachesIntoVAE:
    """Compiles both halves of a VAE in place, twice; puts a forward of its own into them; asks for a layer."""

    CATEGORY, FUNCTION = "tests", "reach"
    RETURN_TYPES = ("VAE",)

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"vae": ("VAE",), "layer": ("STRING", {"default": ""})}}

    def reach(self, vae, layer):
        model = vae.first_stage_model
        for name in ("encoder", "decoder"):
            for mode in ("default", "reduce-overhead"):
                setattr(model, name, torch.compile(getattr(model, name), mode=mode))
            half = getattr(model, name)
            half.original_forward = half.forward
            half.forward = lambda x: torch.zeros(())
            if layer:
                getattr(half, layer)
        return (vae,)


class DecodesByFirstStage:
    """Calls the model itself, not the VAE."""

    CATEGORY, FUNCTION = "tests", "decode"
    RETURN_TYPES = ("IMAGE", "LATENT")

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"vae": ("VAE",), "samples": ("LATENT",)}}

    def decode(self, vae, samples):
        picture = vae.first_stage_model.decode(samples["samples"].to(vae.vae_dtype).to(vae.device))
        picture = vae.process_output(picture.float()).movedim(1, -1)
        return picture, {"samples": vae.first_stage_model.encode(vae.process_input(picture.movedim(-1, 1)))}


class EncodesAsNewerComfyUI:
    """Gives VAE.encode what ComfyUI does since a version after 0.33."""

    CATEGORY, FUNCTION = "tests", "encode"
    RETURN_TYPES = ("LATENT",)

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"vae": ("VAE",), "pixels": ("IMAGE",)}}

    def encode(self, vae, pixels):
        tiled = vae.encode_tiled(pixels, tile_x=512, tile_y=512, overlap=64, tile_t=None, not_video=True)
        assert tiled.equal(vae.encode(pixels, not_video=True))
        return ({"samples": vae.encode(pixels, True)},)


class SamplerMask:
    """The mask that ComfyUI's samplers make of a LATENT's."""

    CATEGORY, FUNCTION = "tests", "show"
    RETURN_TYPES = ("MASK",)

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"samples": ("LATENT",)}}

    def show(self, samples):
        return (comfy.sampler_helpers.prepare_mask(samples["noise_mask"], samples["samples"].shape, "cpu")[:, 0],)


class DecodesByExpansion:
    """Makes a DC-AE Decode while it runs, which is to be shown in its place."""

    CATEGORY, FUNCTION = "tests", "expand"
    RETURN_TYPES = ("IMAGE",)

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"vae": ("VAE",), "samples": ("LATENT",)}, "hidden": {"unique_id": "UNIQUE_ID"}}

    def expand(self, vae, samples, unique_id):
        graph = GraphBuilder()
        decode = graph.node("DCAE_Decode", vae=vae, samples=samples)
        decode.set_override_display_id(unique_id)
        return {"result": (decode.out(0),), "expand": graph.finalize()}


class AnyType(str):
    """Differs from no type, as in the packs that have nodes for any."""

    def __ne__(self, other):
        return False


class AnyOutputs(tuple):
    """As many outputs as are asked for, one at a time, all of the first's type."""

    def __getitem__(self, slot):
        return super().__getitem__(min(slot, 0))


class PassesOn:
    """Gives what it is given, whatever it is."""

    CATEGORY, FUNCTION = "tests", "pass_on"
    RETURN_TYPES = AnyOutputs((AnyType("*"),))

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"value": ("*",)}}

    def pass_on(self, value):
        return (value,)


NODES = (ReachesIntoVAE, DecodesByFirstStage, EncodesAsNewerComfyUI, SamplerMask, DecodesByExpansion, PassesOn)
NODE_CLASS_MAPPINGS = {one.__name__: one for one in NODES}
