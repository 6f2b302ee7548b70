"""The real ComfyUI_ExtraModels, with Sana's nodes, for tests that want it beside this pack."""

import os
from pathlib import Path

import pytest

from .server import default_env


def beside(*others: Path, **environ: str) -> dict:
    """Options of a `Server` with that pack and `others`, and without a hub. Skips where $DCAE_EXTRAMODELS_PATH names no
    sources.

    The packages that the pack needs are in $DCAE_EXTRAMODELS_PACKAGES, or beside ComfyUI's environment.
    """
    sources = os.environ.get("DCAE_EXTRAMODELS_PATH")
    if not sources:
        pytest.skip("DCAE_EXTRAMODELS_PATH does not name the sources of ComfyUI_ExtraModels, so nothing of it was run")
    packages = Path(os.environ.get("DCAE_EXTRAMODELS_PACKAGES") or default_env() / "extramodels")
    if not (packages / "timm").is_dir():
        pytest.fail(f"{packages} has no timm. This makes it: nox -s tests", pytrace=False)
    environ |= {"PYTHONPATH": str(packages), "HF_HUB_OFFLINE": "1"}
    return {"others": [Path(sources).resolve(), *others], "environ": environ}
