"""What the code itself does not show of its uses of the hosts: reasons, exceptions, and what is used by no name."""

from __future__ import annotations

# Attributes and methods that classes of ours add to a host's class.
OURS = {"streaming"}
# Strings in web/ and example_workflows/ that look like node types of ComfyUI: of its page, or of another pack.
NOT_NODES = {"Reroute", "ExtraVAELoader", "GemmaLoader", "SanaCheckpointLoader", "SanaTextEncode"}
# Methods of ours that take other arguments than the host's on purpose: only our own callers use them.
OTHER_ARGUMENTS = {
    "diffusers.AutoencoderDC.from_pretrained",
    "diffusers.AutoencoderDC.from_single_file",
    "diffusers.SanaPipeline.__call__",
}
# Objects whose attributes come from strings: the modules where these are.
FROM_STRINGS = {
    "comfy.model_management.args": ("comfy.cli_args",),
    "modules.shared.cmd_opts": ("modules.cmd_args",),
    "modules.shared.opts": ("modules.ui_definitions", "modules.shared_legacy"),
}
# What is used without being named in a way that can be found: {name: (host, our file)}. Names such as
# `module: "text"` are strings that must be in that module of the host.
MODEL = "comfy.model_patcher.ModelPatcher"
REQUEST = "modules.processing_class.StableDiffusionProcessing"
UNSEEN = {
    'nodes: "comfy_entrypoint"': ("ComfyUI", "__init__.py"),
    'nodes: "WEB_DIRECTORY"': ("ComfyUI", "__init__.py"),
    'app.custom_node_manager: "locales"': ("ComfyUI", "locales"),
    'app.custom_node_manager: "example_workflows"': ("ComfyUI", "example_workflows"),
    'comfy.sd: "pixel_space_vae"': ("ComfyUI", "nodes/vae.py"),
    f"{MODEL}.add_wrapper_with_key": ("ComfyUI", "nodes/preview.py"),
    f"{MODEL}.clone": ("ComfyUI", "nodes/preview.py"),
    f"{MODEL}.get_model_object": ("ComfyUI", "nodes/preview.py"),
    f"{MODEL}.load_device": ("ComfyUI", "nodes/preview.py"),
    f"{MODEL}.remove_wrappers_with_key": ("ComfyUI", "nodes/preview.py"),
    "comfy.latent_formats.LatentFormat.process_out": ("ComfyUI", "nodes/preview.py"),
    "node.Reroute": ("page", "web/plan.js"),
    "comfy.sd.VAE.patcher.offload_device": ("ComfyUI", "nodes/vae.py"),
    f"{REQUEST}.override_settings": ("SD.Next", "scripts/dcae_sdnext/hooks.py"),
    f"{REQUEST}.override_settings_restore_afterwards": ("SD.Next", "scripts/dcae_sdnext/hooks.py"),
    f"{REQUEST}.is_hr_pass": ("SD.Next", "scripts/dcae_sdnext/hosted.py"),
    f"{REQUEST}.hr_upscale_to_x": ("SD.Next", "scripts/dcae_sdnext/hosted.py"),
    f"{REQUEST}.hr_upscale_to_y": ("SD.Next", "scripts/dcae_sdnext/hosted.py"),
    'modules.processing_args: "preprocess"': ("SD.Next", "scripts/dcae_sdnext/hosted.py"),
    'modules.sd_models: "sd_checkpoint_info"': ("SD.Next", "scripts/dcae_sdnext/hooks.py"),
}

INTRODUCTION = """# What this pack uses of its hosts

Every name of ComfyUI, SD.Next, their page and diffusers that the code of this pack relies on. `tools/host_symbols.py`
finds them in our sources, writes this page, and looks them up in the sources of a host:

    git clone --depth 1 https://github.com/Comfy-Org/ComfyUI
    git clone --depth 1 https://github.com/vladmandic/sdnext
    python3 tools/host_symbols.py --comfyui ComfyUI --sdnext sdnext

prints what is gone, and what takes other arguments than ours, and ends with status 1 unless all of that is optional.
*Optional* names are looked for while running, and done without. In brackets are arguments that are given by name.
*Overridden*: a method that a class of ours replaces; *replaced*: a function in whose place ours is put, which calls it.
`.github/workflows/hosts.yml` does this each week with the newest of all of them. After a change of ours:
`python3 tools/host_symbols.py --page docs/host-symbols.md`.

| ComfyUI | names | tests |
|---|---|---|
| 0.3.67 and older | no `comfy.sd.VAE.model_size` and `size`; `comfy_api.v0_0_2` came with 0.3.48 | not run |
| 0.3.68 (4 November 2025, `265adad8`) | all | `tests/comfyui` but for those in a browser, November 2026 |
| 0.3.75 (26 November 2025) | all | all, at each change |
| each release to 0.33.0 | all; node replacement from 0.14.0 on | not run |
| 0.33.0 (22 August 2026, `783545f6`) | all | `tests/comfyui`, in a browser with its page and 1.58.1, November 2026 |
| later ones, single files, to 0.38.1 and beyond | all of those read: the VAE of `comfy/sd.py` (`encode` takes \
`not_video`, and so does ours), VAE nodes of `nodes.py`, half of `server.py`, `latent_preview.py`, node replacement, \
parts of `comfy/model_patcher.py` and `comfy/model_management.py` | not run |
"""
HOSTS = {
    "ComfyUI": ("ComfyUI", "Python, `nodes/` and the pack's `__init__.py`."),
    "server": ("ComfyUI's server", "Routes, messages and types of nodes that our scripts and workflows name."),
    "page": (
        "ComfyUI's page",
        "What `web/*.js` uses of the frontend; `node`, `slot` and `graph` are LiteGraph's. Looked up in a frontend as "
        "built (`--frontend`), in which a name must occur.",
    ),
    "SD.Next": (
        "SD.Next",
        "Where one of those in `scripts/dcae_sdnext/host.py` is gone the extension says so in the log and stays off.",
    ),
    "libraries": (
        "diffusers and accelerate",
        "Under SD.Next, and by themselves. Looked up in a `site-packages` (`--libraries`).",
    ),
}
# Why a name is used; also of the names that begin with it and have no reason of their own.
VAE = "comfy.sd.VAE"
IO = "comfy_api.v0_0_2.io"
WHY = {
    'app.custom_node_manager: "example_workflows"': "folder of the templates",
    'app.custom_node_manager: "locales"': "folder of the translations",
    "comfy.latent_formats": "colours of a preview",
    "comfy.model_management": "where and how weights are held",
    "comfy.model_management.args": "the user's choice of precision",
    "comfy.model_management.extra_reserved_memory": "memory left for others, in the budget of a run",
    "comfy.model_management.get_free_memory": "the budget of a run",
    "comfy.model_management.get_total_memory": "the budget of a run before it happens",
    "comfy.model_management.intermediate_device": "where latents are kept between nodes",
    "comfy.model_management.is_device_cpu": "bf16 on processors that have it",
    "comfy.model_management.load_models_gpu": "weights on the device, others off it",
    "comfy.model_management.throw_exception_if_processing_interrupted": "Cancel, between strips and while downloading",
    "comfy.model_management.vae_dtype": "the default precision",
    MODEL: "memory management moves the weights",
    f"{MODEL}.add_wrapper_with_key": "previews while a model samples",
    f"{MODEL}.clone": "the model that shows previews",
    f"{MODEL}.get_model_object": "the latents of a model",
    f"{MODEL}.load_device": "where a model samples",
    f"{MODEL}.remove_wrappers_with_key": "previews while a model samples",
    "comfy.patcher_extension": "previews while a model samples",
    VAE: "our VAE is one, so that every node takes it; Compare takes any",
    f"{VAE}.decode": "VAE Decode",
    f"{VAE}.decode_tiled": "VAE Decode (Tiled): streams",
    f"{VAE}.encode": "VAE Encode",
    f"{VAE}.encode_tiled": "VAE Encode (Tiled): streams",
    f"{VAE}.device": "where a run happens",
    f"{VAE}.disable_offload": "weights are loaded whole",
    f"{VAE}.downscale_ratio": "other nodes ask for the ratio",
    f"{VAE}.upscale_ratio": "other nodes ask for the ratio",
    f"{VAE}.first_stage_model": "the network; its class names the kind of another VAE",
    f"{VAE}.latent_channels": "other nodes ask for it",
    f"{VAE}.latent_dim": "a latent has two dimensions",
    f"{VAE}.memory_used_decode": "other nodes ask what a run will take",
    f"{VAE}.memory_used_encode": "other nodes ask what a run will take",
    f"{VAE}.model_size": "weights count in a budget",
    f"{VAE}.output_channels": "RGB",
    f"{VAE}.output_device": "where pictures and latents go",
    f"{VAE}.patcher": "where weights rest",
    f"{VAE}.size": "made anew for our weights",
    f"{VAE}.spacial_compression_encode": "Compare: sides of the picture",
    f"{VAE}.vae_dtype": "precision of the weights",
    'comfy.sd: "pixel_space_vae"': "key of the smallest VAE that the constructor makes",
    "comfy.utils.ProgressBar": "the node's progress bar",
    "comfy_api.v0_0_2.ComfyAPI.node_replacement": "our nodes in the place of another pack's (0.14 and newer)",
    f"{IO}.NodeReplace": "our nodes in the place of another pack's (0.14 and newer)",
    "comfy_api.v0_0_2.ComfyExtension": "the list of our nodes",
    IO: "inputs and outputs of the nodes",
    f"{IO}.ComfyNode": "the nodes",
    f"{IO}.ComfyNode.fingerprint_inputs": "run again when a file changed",
    f"{IO}.ComfyNode.hidden": "the node that a download's progress is shown on",
    f"{IO}.ComfyNode.validate_inputs": "a workflow that names a missing file is refused with the reason",
    f"{IO}.Hidden": "the node that a download's progress is shown on",
    f"{IO}.Hidden.dynprompt": "which nodes a latent came through, and so where its true picture lies",
    f"{IO}.HiddenHolder": "which nodes a latent came through, and so where its true picture lies",
    "nodes.NODE_CLASS_MAPPINGS": "which inputs are latents; is another pack's node here?",
    f"{IO}.NodeOutput": "results, and the line on the node",
    f"{IO}.Schema": "what a node is; `search_aliases` too where it is known (0.11 and newer)",
    "folder_paths": "input, temp and models/vae",
    "latent_preview": "previews while a model samples",
    "nodes": "how ComfyUI finds a pack's nodes and scripts",
    "server.PromptServer": "the line on a node while a download runs",
    "server.PromptServer.instance.add_on_prompt_handler": "our nodes in the place of another pack's, over the API",
    "server.PromptServer.instance.routes": "the two routes that the page asks",
    "message": "the lines on the nodes follow the run",
    "route /upload/image": "a dropped latent file goes to the input folder",
    "route /view": "pictures of Compare; sizes of pictures for the plan",
    "type": "a latent's size is followed through it, or a template has it",
    "type PreviewImage": "made for a dropped latent file",
    "api": "messages and routes",
    "api.getServerFeature": "does the page replace another pack's nodes?",
    "app": "the graph on the page",
    "app.canvas": "where a dropped file becomes nodes",
    "app.dragOverNode": "a node that takes the drop itself",
    "app.extensionManager": "a note to the user",
    "app.extensionManager.setting": "does the page replace another pack's nodes?",
    "app.handleFile": "a dropped file that is not ours",
    "app.lastNodeErrors": "what a run was refused for, on the node",
    "app.registerExtension": "our scripts",
    "scripts": "the modules that extensions import",
    "extension": "hooks of our extension",
    "graph": "nodes on the page, and those made for a dropped file",
    "LiteGraph.createNode": "nodes for a dropped file",
    "LiteGraph.registered_node_types": "is another pack's node here?",
    "slot": "following links to what a run will take",
    "widget": "values that a run will take",
    "node": "nodes on the page, and those made for a dropped file",
    "node.addDOMWidget": "the line on a node, and Compare's slider",
    "node.comfyClass": "which nodes are ours",
    "node.computeSize": "room for the slider",
    "node.expandToFitContent": "room for the line",
    "node.getInputNode": "following links to what a run will take",
    "node.onExecuted": "what a run took",
    "node.Reroute": "following links through it",
    "node.last_serialization": "what a node that is not installed holds",
    "node.subgraph": "nodes in subgraphs",
    "modules.call_queue": "Compare waits for its turn, as a picture does",
    "modules.devices": "where a run happens, and at what precision",
    "modules.devices.torch_gc": "free what another VAE held",
    "modules.modeldata": "is it the model, or a refiner?",
    'modules.processing_args: "preprocess"': "a method of our pipeline: the size of the second pass",
    REQUEST: "the settings of one request",
    f"{REQUEST}.hr_upscale_to_x": "the size of the second pass",
    f"{REQUEST}.hr_upscale_to_y": "the size of the second pass",
    f"{REQUEST}.is_hr_pass": "the size of the second pass",
    "modules.processing_vae": "small latents, and why a decode failed",
    "modules.script_callbacks": "settings, tab, route, and when a model has loaded",
    "modules.sd_models": "the VAE goes where the settings want it",
    'modules.sd_models: "sd_checkpoint_info"': "which checkpoint a pipeline is of",
    "modules.sd_vae": "choosing a VAE",
    "modules.sd_vae.loaded_vae_file": "the name in log and infotext",
    "modules.sd_vae.unspecified": "nothing was chosen",
    "modules.sd_vae.vae_dict": "the VAE list",
    "modules.shared": "settings and the loaded model",
    "modules.shared.api": "the route, behind the login",
    "modules.shared.state": "Stop and Skip",
    "modules.shared.state.begin": "a decode of ours, in the list of jobs",
    "modules.shared.state.end": "a decode of ours, in the list of jobs",
    "accelerate.hooks": "another VAE's hooks go with it",
    "diffusers.AutoencoderDC": "ours is one, so that every pipeline takes it",
    "diffusers.pipelines.auto_pipeline": "picture to picture with Sana",
    "diffusers.SanaPipeline": "picture to picture with Sana",
    "diffusers.SanaSprintImg2ImgPipeline": "AutoPipeline knows Sana-Sprint",
    "diffusers.SanaSprintPipeline": "AutoPipeline knows Sana-Sprint",
}
