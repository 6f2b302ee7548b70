"""The real ComfyUI that the tests of this folder share."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from dcae_core.weights.hub import bundled
from tests.core.standin_hub import StandinHub
from tests.servers import python_of

from .page import FRONTENDS, RENDERERS, forget_runs, open_round_trip, opened_page, page_server
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
        pytest.fail(f"{lacking} This makes it: nox -s tests", pytrace=False)
    with Server(
        env=env,
        others=[Path(__file__).parent / name for name in ("standin_sana", "standin_packs")],
        args=["--preview-method", "latent2rgb", *FP32],
        environ={"HF_HOME": str(tmp_path_factory.mktemp("hf-home")), "HF_ENDPOINT": hub.url},
    ) as server:
        yield server


@pytest.fixture(scope="package", params=FRONTENDS)
def frontend(request) -> Iterator[Server]:
    """A started ComfyUI with one of the page's frontends, for both renderers."""
    with page_server(request.param) as server:
        shutil.copy(bundled(), server.base / "models" / "vae" / "mine.safetensors")
        yield server


@pytest.fixture(scope="package", params=RENDERERS)
def renderer(request) -> str:
    return request.param


@pytest.fixture(scope="package")
def shared_page(browser, frontend, renderer) -> Iterator:
    with opened_page(browser, frontend, renderer) as page:
        yield page


@pytest.fixture
def page(shared_page) -> Iterator:
    """ComfyUI's page, as `opened_page` has it, and as the test before has left it; its console says nothing of ours."""
    yield shared_page
    ours = (f"extensions/{shared_page.server.pack_name}/", "/dcae/", "extension 'dcae'")
    said, shared_page.complaints[:] = [*shared_page.complaints], []
    assert not [one for one in said if any(name in one for name in ours)]


@pytest.fixture
def round_trip(page) -> None:
    """The page with the round trip open, and a server with nothing of an earlier run."""
    forget_runs(page)
    open_round_trip(page)


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_call(item: pytest.Item):
    """Show what ComfyUI printed during a test that fails."""
    arguments = getattr(item, "funcargs", {})
    server = arguments.get("comfyui") or arguments.get("frontend")
    before = len(server.log()) if server else 0
    outcome = yield
    if server and outcome.excinfo:
        item.add_report_section("call", "ComfyUI", "\n".join(server.log()[before:].splitlines()[-60:]))
