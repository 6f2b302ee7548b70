"""Downloads that go wrong, through the real huggingface_hub, from a stand-in for the hub's server on this machine."""

import hashlib
import importlib.util
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from huggingface_hub import constants

from dcae_core import DCAE, VARIANTS, CheckpointError, DownloadError, hub
from dcae_core.weights import download as transfer
from dcae_core.weights.checkpoint import is_dcae
from tests import faults
from tests.core.standin_hub import StandinHub

NAME = "dc-ae-f32c32-sana-1.0"
REPO = VARIANTS[NAME].repos[0]
FILE = f"{REPO}/diffusion_pytorch_model.safetensors"
BODY = os.urandom(400_000)


class Stop(Exception):
    pass


@pytest.fixture(autouse=True)
def hurry(monkeypatch):
    monkeypatch.setattr(transfer, "RETRY_WAIT", 0.02)
    monkeypatch.setattr(transfer, "PROGRESS_INTERVAL", 0.01)


@pytest.fixture
def download(tmp_path, monkeypatch):
    """`hub.download` from a stand-in hub."""

    def run(server: StandinHub, folder: Path = tmp_path, **options) -> Path:
        server.asked_by(monkeypatch)
        options.setdefault("progress", lambda done, total: None)
        return hub.download(NAME, folder, **options)

    return run


def refusal(download, server: StandinHub, **options) -> str:
    """The error message of a download, which must not hold the token."""
    with pytest.raises(DownloadError) as error:
        download(server, token="hf_secret", **options)
    assert "hf_secret" not in str(error.value)
    return str(error.value)


def ranges(server: StandinHub) -> list[str | None]:
    return [headers.get("Range") for headers in server.gets()]


def kept(folder: Path) -> int:
    """Bytes of the partial file."""
    (part,) = folder.glob("*.part")
    assert part.read_bytes() == BODY[: part.stat().st_size]
    return part.stat().st_size


def test_a_server_that_cuts_again_and_again_is_gone_on_from_and_nothing_is_fetched_twice(download):
    with StandinHub({FILE: BODY}, cut=150_000) as server:
        assert download(server).read_bytes() == BODY
    assert ranges(server) == [None, "bytes=150000-", "bytes=300000-"]


def test_a_server_that_sends_nothing_is_given_up_and_what_came_before_is_kept(download, tmp_path):
    with StandinHub({FILE: BODY}, cut=150_000) as server:
        with pytest.raises(Stop):
            download(server, progress=raiser())
        before = kept(tmp_path)
        server.cut = 0
        message = refusal(download, server)
        assert "the connection failed (" in message
        assert "What has arrived is kept, and a new try resumes from there." in message
        assert len(server.gets()) == 1 + transfer.MAX_TRIES
        assert kept(tmp_path) == before
        server.cut = None
        assert download(server).read_bytes() == BODY
    assert ranges(server)[-1] == f"bytes={before}-"


def raiser():
    def progress(done: int, total: int) -> None:
        assert total == len(BODY)
        raise Stop

    return progress


@pytest.mark.parametrize("kind", [Stop, KeyboardInterrupt, MemoryError])
def test_what_ends_it_is_passed_on_and_what_came_is_kept(download, tmp_path, kind):
    def end(done: int, total: int) -> None:
        raise kind

    with StandinHub({FILE: BODY}, drip=(100_000, 0.01)) as server:
        with pytest.raises(kind):
            download(server, progress=end)
        assert 0 < kept(tmp_path) < len(BODY)


def test_an_answer_without_a_length_that_ends_early(download):
    with StandinHub({FILE: BODY}, cut=150_000, ends=True) as server:
        assert download(server).read_bytes() == BODY
        assert ranges(server) == [None, "bytes=150000-", "bytes=300000-"]


def test_an_answer_without_a_length_that_ends_at_once(download):
    with StandinHub({FILE: BODY}, cut=0, ends=True) as server:
        assert "ended after 0 of 400000 bytes, several times: try again" in refusal(download, server)


def test_a_server_that_heeds_no_range_starts_over(download, tmp_path):
    with StandinHub({FILE: BODY}, cut=150_000) as server:
        with pytest.raises(Stop):
            download(server, progress=raiser())
        server.ranges, server.cut = False, None
        assert download(server).read_bytes() == BODY


def test_a_range_that_is_not_there(download):
    with StandinHub({FILE: BODY[:100_000]}, announce=hashlib.sha256(BODY).hexdigest(), size=len(BODY)) as server:
        server.cut, server.ends = 100_000, True
        message = refusal(download, server)
    assert "the connection ended after 100000 of 400000 bytes, several times" in message
    assert ranges(server) == [None, "bytes=100000-", None, "bytes=100000-", None]


def test_another_size_than_announced_is_not_even_begun(download, tmp_path):
    with StandinHub({FILE: BODY}, size=len(BODY) + 5) as server:
        assert "the server has 400000 bytes instead of the 400005 announced" in refusal(download, server)
    assert not list(tmp_path.iterdir())


def test_more_than_announced_is_cut_off_and_so_damaged(download, tmp_path):
    with StandinHub({FILE: BODY}, size=1000, ends=True) as server:
        assert "arrived damaged: its sha256 is" in refusal(download, server)
    assert not list(tmp_path.iterdir())


def test_a_redirect_to_another_host_works_and_the_token_stays_here(download):
    with StandinHub({FILE: BODY}) as storage, StandinHub({FILE: BODY}) as server:
        server.elsewhere = storage.url.replace("127.0.0.1", "localhost")
        assert download(server, token="hf_secret").read_bytes() == BODY
    assert {headers.get("Authorization") for _, _, headers in server.requests} == {"Bearer hf_secret"}
    assert len(storage.gets()) == 1
    assert all("Authorization" not in headers for _, _, headers in storage.requests)


@pytest.mark.parametrize("scheme", ["file://", "file://localhost", "ftp://127.0.0.1"])
def test_a_redirect_to_what_is_no_http_is_refused(download, tmp_path, scheme):
    secret = tmp_path / "secret"
    secret.write_bytes(BODY)
    with StandinHub({FILE: BODY}, elsewhere=f"{scheme}{secret}?") as server:
        message = refusal(download, server, folder=tmp_path / "models")
    if scheme == "file://" and "no such file" in message:
        return  # huggingface_hub before 2 asks the hub itself for that path
    assert "neither http nor https" in message
    assert len(server.gets()) <= 1  # none where huggingface_hub follows it to ask for the size
    assert not list((tmp_path / "models").glob("*"))


@pytest.mark.parametrize(
    ("status", "code", "reason"),
    [
        (401, None, "no such repository, or it is private: check the name, or set HF_TOKEN"),
        (401, "BadToken", "the token was not accepted: check HF_TOKEN, or unset it"),
        (403, "GatedRepo", "its owner must grant you access first: open its page, accept the terms, and set HF_TOKEN"),
        (403, "Forbidden", "this token, or none, has no access to it"),
        (404, "Nothing", "it is not there: check HF_ENDPOINT"),
        (429, None, "too many requests from here: it requests a wait of 7 s, then try again; with HF_TOKEN set"),
        (500, None, "the server has a fault (500): it requests a wait of 7 s"),
        (503, None, "the server has a fault (503): it requests a wait of 7 s"),
        (418, None, "the server has a fault (418)"),
    ],
)
@pytest.mark.parametrize("when", ["asked", "fetched"])
def test_statuses_say_what_to_do(download, tmp_path, status, code, reason, when):
    with StandinHub({FILE: BODY}, code=code, wait="7" if status in (429, 500, 503) else None) as server:
        if when == "asked":
            server.status = status
        else:
            server.statuses, server.wait = [status] * transfer.MAX_TRIES, server.wait and "0"
        message = refusal(download, server)
    assert reason.replace("7 s", "0 s" if when == "fetched" else "7 s") in message
    assert f"put it at {tmp_path / NAME}.safetensors" in message
    assert not list(tmp_path.iterdir()), "nothing arrived"


def test_a_fault_that_passes_is_waited_for(download):
    seen = []
    with StandinHub({FILE: BODY}, statuses=[503, 429], wait="1") as server:
        start = time.monotonic()
        assert download(server, progress=lambda done, total: seen.append(done)).read_bytes() == BODY
    assert time.monotonic() - start >= 2
    assert seen.count(0) > 20, "so that a user can cancel meanwhile"


def test_nobody_waits_for_an_hour(download):
    with StandinHub({FILE: BODY}, statuses=[429], wait="3600") as server:
        assert "it requests a wait of 3600 s" in refusal(download, server)
    assert len(server.gets()) == 1


def test_a_slow_drip_can_be_cancelled_and_is_given_up(download, tmp_path, monkeypatch):
    with StandinHub({FILE: BODY}, drip=(1, 0.03)) as server:
        seen = []

        def cancel(done: int, total: int) -> None:
            seen.append(done)
            if done >= 3:
                raise Stop

        with pytest.raises(Stop):
            download(server, progress=cancel)
        assert 3 <= seen[-1] == kept(tmp_path) < len(BODY) // 2  # a few at once where the machine is busy
        monkeypatch.setattr(transfer, "STALL_SECONDS", 0.3)
        start = time.monotonic()
        assert "the server is too slow" in refusal(download, server)
        assert time.monotonic() - start < 5
        assert kept(tmp_path) > seen[-1]


def test_a_silent_server(download, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_DOWNLOAD_TIMEOUT", 0.1)
    with StandinHub({FILE: BODY}, drip=(1, 1)) as server:
        assert "the server does not answer" in refusal(download, server)
        start = time.monotonic()
        with pytest.raises(Stop):
            download(server, progress=raiser())
        assert time.monotonic() - start < 0.9, "it can be cancelled between two tries"


def test_an_unreachable_storage(download):
    with StandinHub({}) as gone:
        pass
    with StandinHub({FILE: BODY}, elsewhere=gone.url) as server:
        assert "no connection to" in refusal(download, server)


def test_the_token_is_in_no_message(download, monkeypatch):
    def fails(*arguments, **options):
        raise ValueError("Illegal header value b'Bearer hf_secret'")

    with StandinHub({FILE: BODY}) as server:
        monkeypatch.setattr("huggingface_hub.get_hf_file_metadata", fails)
        assert "Bearer (the token)" in refusal(download, server)


def test_threads_that_want_the_same_file_fetch_it_once(download, tmp_path):
    paths, seen = [], []
    with StandinHub({FILE: BODY}, statuses=[503], wait="1") as server:
        options = {"progress": lambda done, total: seen.append(threading.get_ident())}
        threads = [threading.Thread(target=lambda: paths.append(download(server, **options))) for _ in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(30)
    assert paths == [tmp_path / f"{NAME}.safetensors"] * 3
    assert len(server.gets()) == 2, "the fault, and the file"
    assert len(set(seen)) == 3, "those that wait can be cancelled too"
    assert sorted(p.name for p in tmp_path.iterdir()) == [paths[0].name, paths[0].name + ".json"]


def test_processes_that_want_the_same_file_fetch_it_once_and_go_on_where_a_killed_one_was(tmp_path):
    folder = tmp_path / "w"
    with StandinHub({FILE: BODY}, drip=(4000, 0.03)) as server:
        settings = {"HF_ENDPOINT": server.url, "HF_HOME": str(tmp_path / "hf-home"), "HF_HUB_OFFLINE": "0"}
        command = [sys.executable, "-m", "dcae_core", "download", NAME, "--cache-dir", folder]

        def start() -> subprocess.Popen:
            pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
            return subprocess.Popen(command, env={**os.environ, **settings}, text=True, **pipes)

        first = start()
        until(lambda: any(part.stat().st_size > 50_000 for part in folder.glob("*.part")))
        first.kill()
        first.wait()
        before = kept(folder)
        others = [start(), start()]
        outputs = [other.communicate(timeout=120) for other in others]
    assert [other.returncode for other in others] == [0, 0], outputs
    assert {out.strip() for out, _ in outputs} == {str(folder / f"{NAME}.safetensors")}
    assert (folder / f"{NAME}.safetensors").read_bytes() == BODY
    assert ranges(server) == [None, f"bytes={before}-"]


def until(condition) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_a_partial_file_is_never_taken_for_a_model(download, tmp_path):
    """Not even a complete one that only lacks its final name."""
    whole = hub.bundled().read_bytes()
    for folder in (tmp_path, tmp_path / NAME, tmp_path / f"{NAME}-diffusers"):
        folder.mkdir(exist_ok=True)
        for name in (f"{NAME}.safetensors", "model.safetensors", "diffusion_pytorch_model.safetensors"):
            (folder / f"{name}.0123456789ab.part").write_bytes(whole)
            (folder / f"{name}.part").write_bytes(whole)
            with pytest.raises(CheckpointError, match="is an unfinished download"):
                DCAE.from_file(folder / f"{name}.0123456789ab.part")
        assert not is_dcae(folder)
    assert hub.find(NAME, tmp_path) is None
    in_sdnext = {}
    sdnext_names().arrange(in_sdnext, tmp_path, downloads=False)
    assert in_sdnext == {}
    (tmp_path / "cut.safetensors").write_bytes(whole[: len(whole) // 2])
    assert not is_dcae(tmp_path / "cut.safetensors")


def sdnext_names():
    """The module that lists SD.Next's choices, which imports nothing of SD.Next."""
    path = Path(__file__).parents[3] / "scripts" / "dcae_sdnext" / "names.py"
    spec = importlib.util.spec_from_file_location("dcae_sdnext_names", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_a_full_disk_is_seen_before_anything_is_fetched(download, tmp_path):
    with StandinHub({FILE: BODY}) as server, faults.small_disk(tmp_path / "disk", 200_000) as disk:
        message = refusal(download, server, folder=disk)
        assert "MB free, but dc-ae-f32c32-sana-1.0 needs 0 MB more: free some space, or choose another" in message
    assert server.gets() == []


def test_a_disk_that_fills_up_under_way_keeps_what_arrived(download, tmp_path):
    with StandinHub({FILE: BODY}) as server:
        with faults.files_of_at_most(200_000):
            message = refusal(download, server)
        assert "the disk is full (File too large): free some space, or choose another folder" in message
        assert "What has arrived is kept" in message and "by hand" not in message
        before = kept(tmp_path)
        assert 0 < before <= 200_000
        assert download(server).read_bytes() == BODY
    assert ranges(server) == [None, f"bytes={before}-"]


def test_a_folder_that_may_not_be_written(download, tmp_path):
    (tmp_path / "models").mkdir()
    with StandinHub({FILE: BODY}) as server:
        with faults.read_only(tmp_path / "models") as folder:
            message = refusal(download, server, folder=folder)
            assert f"{folder} can't be written (Permission denied): make it writable, or choose another" in message
            assert "can't be written" in refusal(download, server, folder=folder / "below")
        assert server.gets() == []
        (tmp_path / "file").touch()
        assert "can't be written (Not a directory)" in refusal(download, server, folder=tmp_path / "file" / "below")
        assert download(server, folder=folder).read_bytes() == BODY
        with faults.read_only(folder):  # a complete file needs no writing
            assert download(server, folder=folder, token=False).read_bytes() == BODY
    assert len(server.gets()) == 1
