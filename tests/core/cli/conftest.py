from pathlib import Path

import pytest
from PIL import Image

from tests.core.cli.commands import EXAMPLE


@pytest.fixture
def picture(tmp_path) -> Path:
    path = tmp_path / "bird.png"
    Image.open(EXAMPLE).crop((400, 80, 550, 180)).save(path)  # 150x100: neither a multiple of 32
    return path
