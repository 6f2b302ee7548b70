"""diffusers' own tests of AutoencoderDC and of the pipelines that take one: as they are, with each vae streamed, and
with ours in place of the class. Their sources lie beside, in a checkout of diffusers that fits what is installed:

    DCAE_DIFFUSERS_PATH=/path/to/diffusers python tools/diffusers_tests.py [WAY ...] [-- PYTEST_ARGUMENTS ...]

WAY: theirs, stream, class; all by default. Needs pytest, peft, parameterized and requests_mock. What the tests fetch
from the hub, a tokenizer and a text encoder, is stood in for by tests/tiny_models.py. A test that passes with theirs
and not with ours, and is not in EXCEPTIONS, makes this fail.
"""

from __future__ import annotations

import collections
import functools
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
WAYS = ("theirs", "stream", "class")
FILES = (
    "tests/models/autoencoders/test_models_autoencoder_dc.py",
    "tests/pipelines/sana/test_sana.py",
    "tests/pipelines/sana/test_sana_sprint.py",
    "tests/pipelines/sana/test_sana_sprint_img2img.py",
    "tests/pipelines/sana/test_sana_controlnet.py",
    "tests/pipelines/pag/test_pag_sana.py",
    "tests/pipelines/prx/test_pipeline_prx.py",
    "tests/lora/test_lora_layers_sana.py",
)
EXCEPTIONS: dict[str, str] = {}  # the end of a test's id: why it can't pass


def main(arguments: list[str]) -> int:
    checkout = os.environ.get("DCAE_DIFFUSERS_PATH")
    if not checkout or not (Path(checkout) / FILES[0]).is_file():
        print(f"Set DCAE_DIFFUSERS_PATH to a checkout of diffusers that has {FILES[0]}: it is {checkout!r}.")
        return 2
    cut = arguments.index("--") if "--" in arguments else len(arguments)
    ways, more = arguments[:cut] or list(WAYS), arguments[cut + 1 :]
    if unknown := set(ways) - set(WAYS):
        print(f"There is no way {', '.join(sorted(unknown))}: choose of {', '.join(WAYS)}.")
        return 2
    results = {way: run(way, Path(checkout), more) for way in ways}
    for file in FILES:
        counts = []
        for way, result in results.items():
            found = collections.Counter(outcome for name, outcome in result.items() if name.startswith(file))
            counts.append(f"{way} {found['passed']} passed, {found['failed']} failed, {found['skipped']} skipped")
        print(f"{Path(file).name}: {'; '.join(counts)}")
    missing = 0
    for way, result in results.items():
        for name, outcome in result.items():
            if outcome == "failed" and results.get("theirs", {}).get(name, "passed") == "passed":
                reason = next((why for end, why in EXCEPTIONS.items() if name.endswith(end)), None)
                missing += reason is None
                print(f"{way}: {name} fails{'' if reason is None else f' ({reason})'}")
    return int(missing > 0 or not all(results.values()))


def run(way: str, checkout: Path, more: list[str]) -> dict[str, str]:
    """Return the outcome of each test."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "outcomes.json"
        paths = os.pathsep.join([str(ROOT / "tools"), str(ROOT), os.environ.get("PYTHONPATH", "")])
        ours = {"DCAE_WAY": way, "DCAE_OUTCOMES": str(out), "PYTHONPATH": paths, "HF_HUB_OFFLINE": "1"}
        command = [
            sys.executable,
            "-m",
            "pytest",
            "-q",
            "-p",
            "no:cacheprovider",
            "-p",
            "diffusers_tests",
            *FILES,
            *more,
        ]
        subprocess.run(command, cwd=checkout, env={**os.environ, **ours}, check=False)
        return json.loads(out.read_text()) if out.exists() else {}


# The plugin, in pytest's process.

OUTCOMES: dict[str, str] = {}


def pytest_configure(config) -> None:
    stand_in()
    if os.environ["DCAE_WAY"] != "theirs":
        put_ours(os.environ["DCAE_WAY"])


def pytest_runtest_logreport(report) -> None:
    if report.when == "call" or report.outcome != "passed":
        OUTCOMES[report.nodeid] = report.outcome


def pytest_sessionfinish() -> None:
    Path(os.environ["DCAE_OUTCOMES"]).write_text(json.dumps(OUTCOMES))


def stand_in() -> None:
    """For what is fetched."""
    from transformers import AutoTokenizer, Gemma2Model, GemmaTokenizer

    sys.modules.pop("tests", None)  # not diffusers' own package of this name
    sys.path.insert(0, str(ROOT))
    from tests import tiny_models

    for name in [name for name in sys.modules if name == "tests" or name.startswith("tests.")]:
        del sys.modules[name]
    sys.path.remove(str(ROOT))

    def replace(cls: type, make) -> None:
        original = cls.from_pretrained

        def from_pretrained(name, *args, **options):
            fetched = str(name).startswith("hf-internal-testing/")
            return make() if fetched else original(name, *args, **options)

        cls.from_pretrained = staticmethod(from_pretrained)

    for cls in (AutoTokenizer, GemmaTokenizer):
        replace(cls, tiny_models.tokenizer)
    config = tiny_models.gemma2()
    config.hidden_size = 8
    replace(Gemma2Model, lambda: Gemma2Model(config))


def put_ours(way: str) -> None:
    import diffusers

    from dcae_core.integrations.diffusers import StreamedAutoencoderDC, stream

    if way == "class":
        # The pipelines that are tested know diffusers' own.
        _ = diffusers.SanaPipeline, diffusers.SanaSprintImg2ImgPipeline, diffusers.SanaControlNetPipeline
        _ = diffusers.SanaPAGPipeline, diffusers.SanaSprintPipeline, diffusers.PRXPipeline
        for module in (diffusers, diffusers.models):
            module.AutoencoderDC = StreamedAutoencoderDC
        return
    original = diffusers.AutoencoderDC.__init__

    @functools.wraps(original)
    def streamed(self, *args, **options) -> None:
        original(self, *args, **options)
        stream(self)

    diffusers.AutoencoderDC.__init__ = streamed


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
