"""What SD.Next runs at its start. The work is done by the package dcae_sdnext beside this file, and dcae_core."""

import sys
from pathlib import Path

here = Path(__file__).resolve().parent
before = list(sys.path)
sys.path[:0] = [str(here), str(here.parent)]  # only for these imports: SD.Next has its own `scripts` and `modules`
try:
    import dcae_sdnext
finally:
    sys.path[:] = before

dcae_sdnext.install()
