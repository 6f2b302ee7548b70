"""Whole data sets: pictures to latents and back, on one machine or a cluster, resumable. See README.md here."""
