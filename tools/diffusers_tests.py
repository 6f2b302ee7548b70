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
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from xml.etree import ElementTree

ROOT = Path(__file__).resolve().parents[1]
WAYS = ("theirs", "stream", "class")
FILES = (
    *("models/autoencoders/test_models_autoencoder_dc", "pipelines/sana/test_sana", "pipelines/sana/test_sana_sprint"),
    *("pipelines/sana/test_sana_sprint_img2img", "pipelines/sana/test_sana_controlnet", "pipelines/pag/test_pag_sana"),
    *("pipelines/prx/test_pipeline_prx", "lora/test_lora_layers_sana"),
)
EXCEPTIONS: dict[str, str] = {}  # the end of a test's name: why it can't pass


def main(arguments: list[str]) -> int:
    checkout = Path(os.environ.get("DCAE_DIFFUSERS_PATH") or "")
    files = [f"tests/{file}.py" for file in FILES]
    if not (checkout / files[0]).is_file():
        sys.exit(f"Set DCAE_DIFFUSERS_PATH to a checkout of diffusers that has {files[0]}: it is {str(checkout)!r}.")
    cut = arguments.index("--") if "--" in arguments else len(arguments)
    ways = arguments[:cut] or list(WAYS)
    if unknown := set(ways) - set(WAYS):
        sys.exit(f"There is no way {', '.join(sorted(unknown))}: choose of {', '.join(WAYS)}.")
    results = {way: run(way, checkout, [*files, *arguments[cut + 1 :]]) for way in ways}
    failing = not all(results.values())
    for way, result in results.items():
        for file in FILES:
            names = [name for name in result if re.match(rf"tests\.{file.replace('/', '.')}\W", name)]
            print(f"{file}, {way}: {dict(collections.Counter(result[name] for name in names))}")
        for name, outcome in result.items():
            if outcome == "failed" and results.get("theirs", {}).get(name, "passed") == "passed":
                reason = next((why for end, why in EXCEPTIONS.items() if name.endswith(end)), None)
                failing |= reason is None
                print(f"{way}: {name} fails{'' if reason is None else f' ({reason})'}")
    return int(failing)


def run(way: str, checkout: Path, arguments: list[str]) -> dict[str, str]:
    """Return the outcome of each test."""
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.xml"
        paths = os.pathsep.join([str(ROOT / "tools"), str(ROOT), os.environ.get("PYTHONPATH", "")])
        ours = {"DCAE_WAY": way, "PYTHONPATH": paths, "HF_HUB_OFFLINE": "1"}
        command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "diffusers_tests"]
        command += [f"--junitxml={report}", *arguments]
        subprocess.run(command, cwd=checkout, env={**os.environ, **ours}, check=False)
        if not report.exists():
            return {}
        outcomes = {"failure": "failed", "error": "failed", "skipped": "skipped"}
        return {
            f"{case.get('classname')}::{case.get('name')}": next(
                (outcomes[child.tag] for child in case if child.tag in outcomes), "passed"
            )
            for case in ElementTree.parse(report).iter("testcase")
        }


# The plugin, in pytest's process.


def pytest_configure(config) -> None:
    stand_in()
    if os.environ["DCAE_WAY"] != "theirs":
        put_ours(os.environ["DCAE_WAY"])


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
