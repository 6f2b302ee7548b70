"""Pictures and latents, as files and as tensors."""
