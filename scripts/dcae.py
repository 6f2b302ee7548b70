"""The script that SD.Next runs at its start. It imports the package dcae_sdnext and calls `install()`."""

import sys
from pathlib import Path

here = Path(__file__).resolve().parent
original_path = list(sys.path)
sys.path[:0] = [str(here), str(here.parent)]  # only for these imports: SD.Next has its own `scripts` and `modules`
try:
    import dcae_sdnext
finally:
    sys.path[:] = original_path

dcae_sdnext.install()
