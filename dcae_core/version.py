"""The version, which is in pyproject.toml: ComfyUI-Manager and the registry read it there, and only there."""

from __future__ import annotations

import importlib.metadata
import re
from pathlib import Path

__all__ = ["__version__"]

# A folder of custom_nodes is not installed, and another version may be.
_project = Path(__file__).resolve().parents[1] / "pyproject.toml"
_text = _project.read_text(encoding="utf-8") if _project.is_file() else ""
_found = re.search(r'^name = "dcae"\nversion = "(.+?)"', _text, re.MULTILINE)
__version__ = _found[1] if _found else importlib.metadata.version("dcae")
