"""What test_other_packs.py tries: each case is a node of another pack, with its inputs."""

from .prompts import loader, node

WIDTH, HEIGHT = 150, 140  # in 160x160
LATENT, OTHER, VAE, MODEL, FLAT, COND = ["3", 0], ["5", 0], ["2", 0], ["model", 0], ["flat", 0], ["model", 1]
OURS, GIVEN = ["x", 0], ["1", 0]
SAMPLER = {"sampler_name": "euler", "scheduler": "simple", "cfg": 1.0}
CONDS = {"positive": COND, "negative": COND}
SEEDED = {"seed": 0, "steps": 2, "denoise": 1.0, **SAMPLER}


def base(name):
    """What the cases begin with: the photograph, its latent, one without padding, a mask, SEGS, models, pipes."""
    pipe = {"clip": ["any", 0], "vae": VAE, **CONDS}
    provider = {"basic_pipe": ["pipe", 0], **SAMPLER}
    return {
        "1": node("LoadImage", image=name),
        "2": loader(),
        "3": node("DCAE_Encode", pixels=GIVEN, vae=VAE, size_mode="pad"),
        "4": node("ImageScale", image=GIVEN, width=160, height=160, upscale_method="bilinear", crop="disabled"),
        "5": node("DCAE_Encode", pixels=["4", 0], vae=VAE, size_mode="pad"),
        "model": node("StandInSana", outcome=LATENT, channels=32, colours=False),
        "empty": node("DCAE_EmptyLatent", width=32, height=32, batch_size=1, variant="from vae", vae=VAE),
        "flat": node("StandInSana", outcome=["empty", 0], channels=32, colours=False),
        "black": node("SolidMask", value=0.0, width=WIDTH, height=HEIGHT),
        "white": node("SolidMask", value=1.0, width=64, height=64),
        "mask": node("MaskComposite", destination=["black", 0], source=["white", 0], x=32, y=32, operation="add"),
        "masked": node("SetLatentNoiseMask", samples=LATENT, mask=["mask", 0]),
        "video": node("CreateVideo", images=GIVEN, fps=24.0),
        "any": node("ImpactDummyInput"),
        "pipe": node("ToBasicPipe", model=MODEL, **pipe),
        "flat pipe": node("ToBasicPipe", model=FLAT, **pipe),
        "ksampler": node("KSamplerProvider", seed=0, steps=2, denoise=1.0, **provider),
        "flat ksampler": node("KSamplerProvider", **SEEDED, basic_pipe=["flat pipe", 0]),
        "advanced": node("KSamplerAdvancedProvider", sigma_factor=1.0, **provider),
        "region": node("RegionalPrompt", mask=["mask", 0], advanced_sampler=["advanced", 0]),
        "segs": node(
            "MaskToSEGS",
            mask=["mask", 0],
            combined=False,
            crop_factor=1.5,
            bbox_fill=False,
            drop_size=10,
            contour_fill=False,
        ),
        "pixels": upscaler("PixelKSampleUpscalerProvider", model=FLAT, **CONDS, **{**SEEDED, "denoise": 0.1}),
        "two": upscaler(
            "TwoSamplersForMaskUpscalerProvider",
            full_sample_schedule="none",
            base_sampler=["flat ksampler", 0],
            mask_sampler=["flat ksampler", 0],
            mask=["mask", 0],
        ),
    }


def upscaler(kind, **inputs):
    return node(kind, scale_method="bilinear", vae=VAE, use_tiled_vae=False, tile_size=512, **inputs)


def sample(kind, **inputs):
    return node(kind, latent_image=LATENT, **inputs)


def iterate(kind, upscaler, factor, **inputs):
    common = {"steps": 1, "temp_prefix": "", "step_mode": "simple", "upscale_factor": factor}
    return node(kind, upscaler=[upscaler, 0], **common, **inputs)


DETAILER = {"image": GIVEN, "segs": ["segs", 0], "model": FLAT, "clip": ["any", 0], "vae": VAE, **CONDS}
DETAILER |= {"seed": 0, "steps": 4, "denoise": 0.25, "feather": 5, **SAMPLER}
GUIDE = {"guide_size": 128.0, "guide_size_for": True, "max_size": 512.0, "noise_mask": True, "force_inpaint": True}
GUIDE |= {"wildcard": "", "cycle": 1}
RESCALE = {"rescale_factor": 2.0, "resampling_method": "bicubic", "supersample": "false", "rounding_modulus": 8}
RESCALE |= {"inpaint_model": False, "noise_mask_feather": 0}
REGIONAL = {"overlap_factor": 2, "restore_latent": True, "additional_mode": "DISABLE", "additional_sampler": "AUTO"}
REGIONAL |= {"additional_sigma_ratio": 0.3, "base_sampler": ["advanced", 0], "regional_prompts": ["region", 0]}
BRIDGE = {"image": "", "preview_method": "Latent2RGB-SDXL", "block": False, "restore_mask": "never"}
TILED_MODEL = {"tile_width": 32, "tile_height": 32, "tile_overlap": 8, "tile_batch_size": 4, "method": "MultiDiffusion"}
PREVIEW = {"max_resolution": 1024, "jpeg_quality": 80, "suppress_default_preview": True, "preview_frames": 1}
ADVANCED = {"noise_seed": 0, "steps": 2, "start_at_step": 0, "end_at_step": 2, "return_with_leftover_noise": False}
VARIATION = {"variation_seed": 1, "variation_strength": 0.2, **CONDS}
VIDEO = {"width": 0, "height": 0, "max_frames": 0, "upscale_method": "bilinear", "keep_proportion": "stretch"}
INJECT = {"strength": 0.0, "noise": LATENT, "normalize": False, "average": False}
SIZED = [  # result, node, slot of its LATENT
    ("kept", node("GetLatentSizeAndCount", latent=LATENT), 0),
    ("kept", node("GetLatentsFromBatchIndexed", latents=LATENT, indexes="0", latent_format="BCHW"), 0),
    (
        "kept",
        node("DifferentialDiffusionAdvanced", model=MODEL, samples=LATENT, mask=["mask", 0], multiplier=1.0),
        1,
    ),
    ("kept", node("LazySwitchKJ", switch=True, on_false=LATENT, on_true=LATENT), 0),
    ("whole", node("LazySwitchKJ", switch=True, on_false=OTHER, on_true=LATENT), 0),
    ("whole", node("InjectNoiseToLatent", latents=LATENT, **INJECT), 0),
    ("whole", node("InsertLatentToIndexed", source=LATENT, destination=LATENT, index=0), 0),
    ("whole", node("GetLatentRangeFromBatch", latents=LATENT, start_index=0, num_frames=1), 0),
    ("whole", node("EncodeVideoComponents", video=["video", 0], vae=VAE, **VIDEO), 0),
    ("kept", sample("ImpactKSamplerBasicPipe", basic_pipe=["pipe", 0], **SEEDED), 1),
    (
        "kept",
        sample("ImpactKSamplerAdvancedBasicPipe", basic_pipe=["pipe", 0], add_noise=True, **ADVANCED, **SAMPLER),
        1,
    ),
    (
        "kept",
        sample("TwoSamplersForMask", base_sampler=["ksampler", 0], mask_sampler=["ksampler", 0], mask=["mask", 0]),
        0,
    ),
    (
        "kept",
        node(
            "TwoAdvancedSamplersForMask",
            samples=LATENT,
            base_sampler=["advanced", 0],
            mask_sampler=["advanced", 0],
            mask=["mask", 0],
            seed=0,
            steps=2,
            denoise=1.0,
            overlap_factor=2,
        ),
        0,
    ),
    (
        "kept",
        node(
            "RegionalSampler",
            samples=LATENT,
            seed=0,
            seed_2nd=0,
            seed_2nd_mode="ignore",
            steps=3,
            base_only_steps=1,
            denoise=1.0,
            **REGIONAL,
        ),
        0,
    ),
    ("kept", sample("RegionalSamplerAdvanced", add_noise=True, **ADVANCED, **REGIONAL), 0),
    ("kept", node("RemoveNoiseMask", samples=["masked", 0]), 0),
    ("kept", node("ImpactControlBridge", value=LATENT, mode=True, behavior="Stop"), 0),
    ("kept", node("ImpactInversedSwitch", select=1, input=LATENT, sel_mode=False), 0),
    ("kept", node("ImpactSwitch", select=1, sel_mode=False, input1=LATENT), 0),
    ("whole", node("ImpactSwitch", select=1, sel_mode=False, input1=LATENT, input2=OTHER), 0),
    ("kept", node("LatentSwitch", select=1, sel_mode=False, input1=LATENT), 0),
    ("whole", node("LatentSwitch", select=1, sel_mode=False, input1=LATENT, input2=OTHER), 0),
    ("kept", node("ImpactConditionalBranch", cond=True, tt_value=LATENT, ff_value=LATENT), 0),
    ("whole", node("ImpactConditionalBranch", cond=True, tt_value=LATENT, ff_value=OTHER), 0),
    ("kept", node("PreviewBridgeLatent", latent=["masked", 0], vae_opt=VAE, **BRIDGE), 0),
    (
        "whole",
        node("ReencodeLatent", samples=LATENT, tile_mode="None", tile_size=512, input_vae=VAE, output_vae=VAE),
        0,
    ),
    (
        "whole",
        node(
            "ReencodeLatentPipe",
            samples=LATENT,
            tile_mode="None",
            input_basic_pipe=["pipe", 0],
            output_basic_pipe=["pipe", 0],
        ),
        0,
    ),
    (
        "whole",
        node(
            "LatentPixelScale",
            samples=LATENT,
            scale_method="bilinear",
            scale_factor=1.0,
            vae=VAE,
            use_tiled_vae=False,
        ),
        0,
    ),
    ("whole", iterate("IterativeLatentUpscale", "pixels", 4.0, samples=LATENT), 0),
    ("kept", node("InjectLatentNoise+", latent=LATENT, noise_seed=0, noise_strength=0.1, normalize="false"), 0),
    ("kept", node("RemoveLatentMask+", samples=["masked", 0]), 0),
    (
        "kept",
        sample(
            "KSamplerVariationsStochastic+",
            model=MODEL,
            noise_seed=0,
            steps=4,
            cfg=1.0,
            sampler="euler",
            scheduler="simple",
            cfg_scale=1.0,
            **VARIATION,
        ),
        0,
    ),
    ("kept", node("SimpleCondition+", evaluate=True, on_true=LATENT, on_false=LATENT), 0),
    ("whole", node("SimpleCondition+", evaluate=True, on_true=LATENT, on_false=OTHER), 0),
]
SAMPLED = [  # a model goes through them
    node("ModelPreviewOverrideKJ", model=FLAT, vae=VAE, tiny_vae="none", preview_fps=12, **PREVIEW),
    node("TiledDiffusion", model=FLAT, **TILED_MODEL),
]
COMPILE = {"vae": VAE, "backend": "inductor", "compile_encoder": True, "compile_decoder": True}
SAME = [  # "decode" or "encode", the nodes that do it; the last gives the IMAGE or LATENT
    ("decode", [node("VAEDecodeTiled_TiledDiffusion", samples=LATENT, vae=VAE, tile_size=384, fast=True)]),
    (
        "encode",
        [node("VAEEncodeTiled_TiledDiffusion", pixels=GIVEN, vae=VAE, tile_size=256, fast=True, color_fix=True)],
    ),
    (
        "decode",
        [
            node("TorchCompileVAE", fullgraph=False, mode="default", **COMPILE),
            node("VAEDecode", samples=LATENT, vae=OURS),
        ],
    ),
    (  # the same VAE once more
        "encode",
        [
            node("TorchCompileVAE", fullgraph=True, mode="reduce-overhead", **COMPILE),
            node("VAEEncode", pixels=GIVEN, vae=OURS),
        ],
    ),
    *(
        ("decode", [node("ImagePreviewFromLatent+", latent=LATENT, vae=VAE, tile_size=tile, image="none")])
        for tile in (0, 512)
    ),
]
WORKS = [  # the node, the size of its IMAGE
    (node("DetailerForEach", **DETAILER, **GUIDE), (HEIGHT, WIDTH)),
    (node("DetailerForEach", **DETAILER, **GUIDE, inpaint_model=True), (HEIGHT, WIDTH)),
    (node("DetailerForEachDebug", **DETAILER, **GUIDE), (HEIGHT, WIDTH)),
    (node("SEGSUpscaler", **DETAILER, **RESCALE), (2 * HEIGHT, 2 * WIDTH)),
    (iterate("IterativeImageUpscale", "pixels", 8.0, pixels=GIVEN, vae=VAE), (320, 320)),
    (iterate("IterativeImageUpscale", "two", 8.0, pixels=GIVEN, vae=VAE), (320, 320)),
]
NO_VIDEO_TILES = {"tiling": "disabled"}
VIDEO_TILES = {"tiling": "enabled", "tiling.tile_size": 512, "tiling.overlap": 64}
VIDEO_TILES |= {"tiling.temporal_size": 4096, "tiling.temporal_overlap": 16}


def save_video(vae, samples, tiling):
    options = {"fps": 25.0, "filename_prefix": "packs/video", "format": "auto", "codec": "auto"}
    return node("DecodeAndSaveVideo", video_latent=samples, video_vae=vae, **options, **tiling)


REFUSED = [  # the node, or a part of what its error or DC-AE Decode's says
    (node("VAEMergeKJ", vae_1=VAE, vae_2=VAE, ratio=0.5), "size mismatch"),
    (
        node(
            "GenerateNoise",
            width=160,
            height=160,
            batch_size=1,
            seed=1,
            multiplier=1.0,
            constant_batch_noise=False,
            normalize=False,
        ),
        "needs [batch, 32",
    ),
    (
        node("EmptyLatentImagePresets", dimensions="512 x 512 (1:1)", invert=False, batch_size=1),
        "needs [batch, 32",
    ),
    (
        node("LatentSender", samples=LATENT, filename_prefix="l", link_id=0, preview_method="Latent2RGB-SDXL"),
        "shapes cannot be multiplied",
    ),
    (
        sample("KSamplerVariationsWithNoise+", model=MODEL, main_seed=0, steps=2, denoise=1.0, **SAMPLER, **VARIATION),
        "must match the size",
    ),
]


def with_any_vae(vae, samples):
    """What fails with every VAE of pictures, and a part of what it says."""
    tiles = {"samples": samples, "tile_mode": "Both", "input_vae": vae, "output_vae": vae, "tile_size": 512}
    scale = {"scale_method": "bilinear", "scale_factor": 2.0, "vae": vae, "use_tiled_vae": True}
    feather = {**DETAILER, "vae": vae, **GUIDE, "noise_mask_feather": 20}
    return [
        (node("ReencodeLatent", **tiles), "overlap"),
        (node("LatentPixelScale", samples=samples, **scale), "overlap"),
        (save_video(vae, samples, VIDEO_TILES), "NoneType"),
        (node("DetailerForEach", **feather), "'apply'"),
    ]
