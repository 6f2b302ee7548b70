"""Arithmetic that several layers share."""
