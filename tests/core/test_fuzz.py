"""Files from strangers, some hundred of them: what SECURITY.md promises. tools/fuzz.py does the same for hours."""

import shutil
import subprocess
import sys
import time
from pathlib import Path
from random import Random

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from dcae_core import DCAEError, hub
from tests.fuzzing import TARGETS, decoder
from tests.fuzzing.examine import Target, attempt, examine, ran

ROOT = Path(__file__).resolve().parents[2]
EXAMPLES = {"checkpoint": 60, "latents": 120, "shards": 100, "sources": 100, "images": 400, "jobs": 80}


@pytest.mark.parametrize("name", TARGETS)
def test_files_from_strangers(name, tmp_path):
    shutil.copy(hub.bundled(), tmp_path / "secret.safetensors")
    decoder()

    @settings(
        max_examples=EXAMPLES[name],
        derandomize=True,
        database=None,
        deadline=None,
        phases=[Phase.generate],  # not made smaller: a case that hangs takes a minute each time
        suppress_health_check=list(HealthCheck),
    )
    @given(chance=st.randoms(use_true_random=False))
    def one(chance):
        found = examine(TARGETS[name], chance, tmp_path)
        assert found is None, f"{found.kind}: {found.details}"

    one()


def kind_of(open_it, tmp_path: Path, **limits) -> str | None:
    """What `examine` says of a library that opens a file like this."""

    def make(chance: Random, folder: Path) -> Path:
        (folder / "x.bin").write_bytes(b"x")
        return folder / "x.bin"

    (tmp_path / "secret.safetensors").write_bytes(b"x")
    found = examine(Target(make, lambda path, chance: open_it(path), **limits), Random(0), tmp_path)
    return found and found.kind


def refuses(words: str):
    def work() -> None:
        raise DCAEError(words)

    return work


def test_what_breaks_a_promise_is_seen(tmp_path):
    """The examiner itself: one thing of each kind that it is there to see, and what is as it should be."""

    def hangs(path: Path) -> None:
        while True:
            pass

    assert kind_of(lambda path: path.read_bytes(), tmp_path) is None
    assert kind_of(lambda path: attempt(path, refuses(f"{path} is not a DC-AE.")), tmp_path) is None
    assert kind_of(lambda path: {}["header"], tmp_path) == "raised"
    assert kind_of(hangs, tmp_path, seconds=0.2) == "slow"
    assert kind_of(lambda path: time.sleep(30), tmp_path, seconds=0.05) == "slow"
    assert kind_of(lambda path: ran("a pickle"), tmp_path) == "ran code"
    assert kind_of(lambda path: (path.parent.parent / "secret.safetensors").read_bytes(), tmp_path) == "outside"
    assert kind_of(lambda path: attempt(path, refuses("it is damaged")), tmp_path) == "broken"
    assert kind_of(lambda path: attempt(path, refuses(f"{path}: " + "x" * 10_000)), tmp_path) == "broken"


MEMORY = """
import sys
from pathlib import Path
from tests.core.test_fuzz import kind_of
from tests.fuzzing.examine import peak, reset_peak

folder = Path(sys.argv[1])
if reset_peak():
    print(kind_of(lambda path: bytearray(b"x") * (800 << 20), folder, megabytes=200))
    print(kind_of(lambda path: bytearray(b"x") * (1 << 20), folder, megabytes=200))
    before, taken = peak(), bytearray(b"x") * (2000 << 20)  # more than any before it
    print(peak() - before > 1000)
"""


def test_a_case_that_takes_memory_is_seen(tmp_path):
    """In a process of its own: the peak is of the whole process, and other tests have had more."""
    result = subprocess.run(
        [sys.executable, "-c", MEMORY, str(tmp_path)], cwd=ROOT, capture_output=True, text=True, timeout=300
    )
    assert result.returncode == 0, result.stderr
    output_text = result.stdout.split()
    if not output_text or output_text[-1] == "False":
        pytest.skip("this system does not tell the peak of a process's memory, or does not reset it (clear_refs)")
    assert output_text[:2] == ["memory", "None"]
