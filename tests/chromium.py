"""The browser of the tests."""

import contextlib
import shutil
from collections.abc import Iterator

import pytest


@contextlib.contextmanager
def chromium() -> Iterator:
    """Playwright's Browser: Debian's Chromium. Skips the test where there is none."""
    sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed: no browser to test in")
    program = shutil.which("chromium")
    if program is None:
        pytest.skip("there is no Chromium (on Debian: apt install chromium): no browser to test in")
    with (
        sync_api.sync_playwright() as play,
        play.chromium.launch(executable_path=program, args=["--no-sandbox", "--disable-gpu"]) as browser,
    ):
        yield browser
