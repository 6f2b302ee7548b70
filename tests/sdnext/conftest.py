"""The real SD.Next that the tests of this folder share."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from .server import Server


@pytest.fixture(scope="session")
def needs_sdnext() -> None:
    """Skip, with the reason, without sources of SD.Next."""
    if not (Path(os.environ.get("SDNEXT_PATH", "")) / "launch.py").is_file():
        pytest.skip("SDNEXT_PATH does not name a folder with SD.Next's sources, so nothing was run in SD.Next")
    if "DCAE_SDNEXT_ENV" not in os.environ:
        pytest.fail("There is no Python for SD.Next. This makes it: nox -s tests", pytrace=False)


@pytest.fixture(scope="session")
def sdnext(needs_sdnext: None) -> Iterator[Server]:
    """A running SD.Next with this pack, one for all tests."""
    with Server() as server:
        yield server


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item: pytest.Item):
    """Show what SD.Next printed during a test that fails."""
    report = (yield).get_result()
    server = getattr(item, "funcargs", {}).get("sdnext")
    if server and report.when == "call" and report.failed:
        report.sections.append(("SD.Next's log", "\n".join(server.log()[item.log_from :].splitlines()[-80:])))


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_call(item: pytest.Item) -> None:
    server = getattr(item, "funcargs", {}).get("sdnext")
    item.log_from = len(server.log()) if server else 0
