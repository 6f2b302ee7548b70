"""A name, file, folder or state dict as an Architecture and its tensors."""
