"""The real ComfyUI that the tests of this folder share."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.core.standin_hub import StandinHub
from tests.servers import python_of

from .server import FP32, Server, comfyui_of, default_env


@pytest.fixture(scope="session")
def hub() -> Iterator[StandinHub]:
    """The hub that this ComfyUI downloads from: a stand-in, and empty."""
    with StandinHub({}) as server:
        yield server


@pytest.fixture(scope="session")
def comfyui(tmp_path_factory: pytest.TempPathFactory, hub: StandinHub) -> Iterator[Server]:
    """A started ComfyUI with this pack and the stand-ins beside, and with previews while it samples; one for all
    tests: leave its queue empty behind you."""
    env = default_env()
    if not python_of(env).exists() or not (comfyui_of(env) / "main.py").is_file():
        lacking = f"There is no ComfyUI in {comfyui_of(env)}, or no Python for it in {env}."
        pytest.fail(f"{lacking} This makes it: python3 tools/run.py test", pytrace=False)
    with Server(
        env=env,
        others=[Path(__file__).parent / name for name in ("standin_sana", "standin_packs")],
        args=["--preview-method", "latent2rgb", *FP32],
        environ={"HF_HOME": str(tmp_path_factory.mktemp("hf-home")), "HF_ENDPOINT": hub.url},
    ) as server:
        yield server


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item: pytest.Item):
    """Show what ComfyUI printed during a test that fails."""
    report = (yield).get_result()
    server = getattr(item, "funcargs", {}).get("comfyui")
    if server and report.when == "call" and report.failed:
        report.sections.append(("ComfyUI's log", "\n".join(server.log()[item.log_from :].splitlines()[-60:])))


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_call(item: pytest.Item) -> None:
    server = getattr(item, "funcargs", {}).get("comfyui")
    item.log_from = len(server.log()) if server else 0
