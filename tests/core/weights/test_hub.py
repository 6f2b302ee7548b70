"""Downloads, through the real huggingface_hub, from a stand-in for the hub's server on this machine."""

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from dcae_core import VARIANTS, DownloadError, UnknownVariant, hub
from tests.core.standin_hub import COMMIT, StandinHub

NAME = "dc-ae-f32c32-sana-1.0"
REPO = VARIANTS[NAME].repos[0]
FILE = f"{REPO}/diffusion_pytorch_model.safetensors"
BODY = os.urandom(3 << 20)


@pytest.fixture
def fetch(tmp_path):
    """Runs `dcae download` in a process of its own, since huggingface_hub reads its settings when it is imported."""

    def run(server: StandinHub, *arguments: str, **environment: str) -> subprocess.CompletedProcess:
        settings = {"HF_ENDPOINT": server.url, "HF_HOME": str(tmp_path / "hf-home"), "HF_HUB_OFFLINE": "0"}
        return subprocess.run(
            [sys.executable, "-m", "dcae_core", "download", NAME, "--cache-dir", str(tmp_path / "w"), *arguments],
            env={**os.environ, **settings, **environment},
            capture_output=True,
            text=True,
            check=False,
        )

    return run


def one_line(result: subprocess.CompletedProcess) -> str:
    assert result.returncode == 1, result.stderr
    lines = [line for line in result.stderr.splitlines() if line.startswith("dcae: ")]
    assert len(lines) == 1, result.stderr
    assert "Traceback" not in result.stderr
    return lines[0]


def test_a_download_is_checked_and_its_source_recorded(fetch, tmp_path):
    with StandinHub({FILE: BODY}) as server:
        result = fetch(server, "--revision", "v2", HF_TOKEN="hf_secret")
    assert result.returncode == 0, result.stderr
    target = tmp_path / "w" / f"{NAME}.safetensors"
    assert result.stdout.strip() == str(target)
    assert target.read_bytes() == BODY
    assert json.loads((tmp_path / "w" / f"{NAME}.safetensors.json").read_text()) == {
        "repo": REPO,
        "file": "diffusion_pytorch_model.safetensors",
        "revision": "v2",
        "commit": COMMIT,
        "size": len(BODY),
        "sha256": hashlib.sha256(BODY).hexdigest(),
    }
    assert sorted(p.name for p in (tmp_path / "w").iterdir()) == [target.name, target.name + ".json"]
    assert hub.find(NAME, tmp_path / "w") == target
    tokens = {headers.get("Authorization") for _, _, headers in server.requests}
    assert tokens == {"Bearer hf_secret"}, server.requests
    assert any(COMMIT in path for method, path, _ in server.requests if method == "GET")


def test_a_file_that_is_right_is_not_fetched_again(fetch, tmp_path):
    with StandinHub({FILE: BODY}) as server:
        assert fetch(server).returncode == 0
        first = sum(method == "GET" for method, _, _ in server.requests)
        assert fetch(server).returncode == 0
        assert sum(method == "GET" for method, _, _ in server.requests) == first


def test_a_download_that_was_cut_off_goes_on_from_there(tmp_path, monkeypatch):
    class Stop(Exception):
        pass

    def stop(done: int, total: int) -> None:
        assert total == len(BODY)
        raise Stop

    with StandinHub({FILE: BODY}) as server:
        server.asked_by(monkeypatch)
        with pytest.raises(Stop):
            hub.download(NAME, tmp_path, progress=stop)
        (part,) = tmp_path.iterdir()
        assert part.name.endswith(".part")
        assert part.read_bytes() == BODY[: part.stat().st_size]
        kept = part.stat().st_size
        assert 0 < kept < len(BODY)
        seen = []
        target = hub.download(NAME, tmp_path, progress=lambda done, total: seen.append(done))
        assert target.read_bytes() == BODY
        assert seen[0] > kept
        assert seen[-1] == len(BODY)
        ranges = [h.get("Range") for method, _, h in server.requests if method == "GET"]
        assert ranges == [None, f"bytes={kept}-"]


def test_a_damaged_file_never_takes_its_name(fetch, tmp_path):
    with StandinHub({FILE: BODY}, announce="0" * 64) as server:
        assert "arrived damaged: its sha256 is" in one_line(fetch(server))
    assert list((tmp_path / "w").iterdir()) == []


def test_without_an_announced_sha256_nothing_is_fetched(fetch, tmp_path):
    with StandinHub({FILE: BODY}, announce="0" * 40) as server:
        assert "announces no commit, size or sha256" in one_line(fetch(server))
    assert all(method == "HEAD" for method, _, _ in server.requests)


def test_a_revision_that_is_not_there(fetch):
    with StandinHub({FILE: BODY}) as server:
        assert "no such revision" in one_line(fetch(server, "--revision", "v9"))


def test_offline_is_respected(fetch):
    with StandinHub({FILE: BODY}) as server:
        assert "HF_HUB_OFFLINE forbids" in one_line(fetch(server, HF_HUB_OFFLINE="1"))
    assert server.requests == []


def test_no_server_at_all(fetch):
    with StandinHub({}) as server:
        pass
    assert "could not be downloaded" in one_line(fetch(server))


def test_found_locally_under_every_name(tmp_path):
    assert hub.find(NAME, tmp_path) is None
    folder = tmp_path / f"{NAME}-diffusers"
    folder.mkdir()
    assert hub.find(NAME, tmp_path) is None  # an empty folder is not a model
    (folder / "diffusion_pytorch_model.safetensors").touch()
    assert hub.find(NAME, tmp_path) == folder
    (tmp_path / f"{NAME}.safetensors").touch()
    assert hub.find(NAME, tmp_path) == tmp_path / f"{NAME}.safetensors"


def test_the_demo_needs_no_download():
    assert hub.find("dc-ae-f32c32-demo") == hub.bundled()
    with pytest.raises(DownloadError, match="nothing to download"):
        hub.download("dc-ae-f32c32-demo")


def test_locate_decides_between_a_path_and_a_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    fetched, models = [], tmp_path / "models"
    monkeypatch.setattr(hub, "download", lambda variant, folder: fetched.append((variant.name, folder)) or tmp_path)

    path = tmp_path / f"{NAME}.safetensors"
    path.touch()
    assert hub.locate(str(path)) == (path, None)
    assert hub.locate(path.name) == (Path(path.name), None)
    assert hub.locate(Path(NAME)) == (Path(NAME), None), "a Path is never a name"
    assert hub.locate("absent/x.safetensors") == (Path("absent/x.safetensors"), None)
    Path(REPO).mkdir(parents=True)
    assert hub.locate(REPO, models) == (Path(REPO), None), "a folder that is there, not the repository"

    Path(NAME).mkdir()  # without weights in it a name stays a name
    for name in (NAME, f"{NAME}-diffusers"):
        with pytest.raises(DownloadError, match=f"{NAME} is not in .*models nor in the Hugging Face cache"):
            hub.locate(name, models)
    assert fetched == []
    assert hub.locate(NAME, models, allow_download=True) == (tmp_path, VARIANTS[NAME])
    assert fetched.pop() == (NAME, models)
    (Path(NAME) / "my-own.safetensors").touch()
    assert hub.locate(NAME, models, allow_download=True) == (Path(NAME), None), "a folder here, by its name"
    models.mkdir()
    (models / path.name).touch()
    for allowed in (False, True):
        assert hub.locate(NAME, models, allow_download=allowed) == (models / path.name, VARIANTS[NAME])
    (models / path.name).unlink()
    other = models / f"models--{REPO.replace('/', '--')}"  # as other packs for ComfyUI download
    other.mkdir()
    (other / "diffusion_pytorch_model.safetensors").touch()
    assert hub.locate(NAME, models) == (other, VARIANTS[NAME])
    with pytest.raises(UnknownVariant, match="no DC-AE variant named 'sdxl'"):
        hub.locate("sdxl", models, allow_download=True)
    assert fetched == []
