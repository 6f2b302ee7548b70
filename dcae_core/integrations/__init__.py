"""dcae_core in the clothes of other libraries. Each module imports the library it is for; dcae_core imports none."""
