"""The browser that the tests of web pages share."""

import shutil
from collections.abc import Iterator

import pytest

from tests.signals import end_once


def pytest_configure() -> None:
    end_once()


@pytest.fixture(scope="session")
def browser() -> Iterator:
    """Playwright's Browser, on Debian's Chromium. Skips the test if there is none."""
    sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed: no browser to test in")
    executable = shutil.which("chromium")
    if executable is None:
        pytest.skip("there is no Chromium (on Debian: apt install chromium): no browser to test in")
    with (
        sync_api.sync_playwright() as play,
        play.chromium.launch(executable_path=executable, args=["--no-sandbox", "--disable-gpu"]) as browser,
    ):
        yield browser
