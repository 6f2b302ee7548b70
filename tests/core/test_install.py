import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
SOURCE = "import sys; sys.path.insert(0, sys.argv[1]); import install; print(*install.{})"


def ask(expression: str) -> list[str]:
    command = [sys.executable, "-c", SOURCE.format(expression), str(ROOT)]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()


def test_it_wants_what_the_core_needs_and_never_torch():
    wanted = [line.split(">")[0].split("=")[0] for line in ask("requirements()")]
    assert {"safetensors", "huggingface_hub", "einops", "tqdm", "pillow"} <= set(wanted)
    assert "torch" not in wanted


def test_it_finds_what_is_missing():
    assert ask("missing(['pip', 'no-such-package>=3'])") == ["no-such-package>=3"]


def test_with_everything_there_it_is_silent_and_quick():
    start = time.monotonic()
    done = subprocess.run([sys.executable, str(ROOT / "install.py")], capture_output=True, text=True, check=True)
    assert time.monotonic() - start < 5  # SD.Next runs it at every start
    assert done.stdout == done.stderr == ""


def test_it_imports_only_the_standard_library():
    code = "import sys; import install; print(any(m in sys.modules for m in ('torch', 'safetensors', 'pip')))"
    done = subprocess.run([sys.executable, "-S", "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
