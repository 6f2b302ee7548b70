"""Adapters of dcae_core to other libraries. Each module imports the library it is for."""
