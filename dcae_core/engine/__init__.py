"""An Architecture and its tensors as a network that runs: whole or in strips, within a memory budget. See README.md."""
