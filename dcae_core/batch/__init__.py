"""Encode data sets to latents and decode them, on one machine or a cluster. Jobs are resumable: docs/data-sets.md."""
