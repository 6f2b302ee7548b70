"""Find weights on this machine, and download them from the Hugging Face hub on request. Opening them is left to
`checkpoint`, the transfer of bytes to `download`.

Downloads go through huggingface_hub, so HF_ENDPOINT, HF_TOKEN, HF_HUB_OFFLINE, HF_HUB_DOWNLOAD_TIMEOUT and proxies
apply. benchmarks/FAULTS.md lists what happens on each failure. The transfer itself is in `download`.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import logging
import os
import re
import shutil
import sys
from collections.abc import Callable, Generator, Mapping
from pathlib import Path

from .. import variants
from ..errors import DownloadError, UnknownVariant
from ..files import ASSETS, atomic_write
from ..variants import DEMO, Variant
from . import download as downloading
from .folders import INDEX_FILES, SINGLE_FILES, holds_weights

__all__ = ["Progress", "bundled", "cached", "default_folder", "download", "find", "is_path", "locate"]

log = logging.getLogger(__name__)
Progress = Callable[[int, int], None]
REPOSITORY = re.compile(r"[A-Za-z0-9][\w-]*/[A-Za-z0-9][\w.-]*")
SUFFIXES = (".safetensors", ".pt", ".pth", ".ckpt", ".bin")


def bundled() -> Path:
    """Return the path of the bundled demo model."""
    return ASSETS / f"{DEMO}.safetensors"


def default_folder() -> Path:
    """Return the folder for weights if the caller gives none: $DCAE_HOME or ~/.cache/dcae."""
    return Path(os.environ.get("DCAE_HOME") or Path.home() / ".cache" / "dcae")


def _repo_file(repo: str) -> str:
    """Return the name of the weights' file in `repo`."""
    return "diffusion_pytorch_model.safetensors" if repo.endswith("-diffusers") else "model.safetensors"


def find(variant: str | Variant, folder: str | os.PathLike[str] | None = None) -> Path | None:
    """Return the local file or folder that holds this variant, or None. Never uses the network.

    For the demo it is the bundled file. For others it looks in `folder` (NAME.safetensors, NAME/, NAME-diffusers/, or
    models--OWNER--NAME-diffusers/, as other packs name it), then in the cache that huggingface_hub and diffusers share.
    Raises UnknownVariant.
    """
    from huggingface_hub import try_to_load_from_cache

    variant = variants.find(variant)
    if variant.name == DEMO:
        return bundled()
    folder = Path(folder) if folder is not None else default_folder()
    others = [f"models--{repo.replace('/', '--')}" for repo in variant.repos]
    for name in (f"{variant.name}.safetensors", variant.name, f"{variant.name}-diffusers", *others):
        path = folder / name
        if holds_weights(path):
            return path
    for repo in variant.repos:
        cached = try_to_load_from_cache(repo, _repo_file(repo))
        if isinstance(cached, str):
            return Path(cached)
    return None


def locate(
    model: str | os.PathLike[str], folder: str | os.PathLike[str] | None = None, *, allow_download: bool = False
) -> tuple[Path, Variant | None]:
    """Return the file or folder that `model` refers to, and the variant if `model` is a name; `is_path` decides that.

    A path is returned unchanged, with None. A name is searched as in `find`, then as a file or folder of that name, and
    if it is not here, downloaded to `folder` with `allow_download`. Another repository is searched as in `cached`.
    Raises UnknownVariant for a string that is nothing of these, DownloadError for a variant that is not here or could
    not be downloaded.
    """
    if isinstance(model, os.PathLike) or is_path(model):
        return Path(model), None
    if variants.known(model) is None and _may_be_repository(model):
        if (path := cached(model)) is not None:
            return path, None
        raise UnknownVariant(
            f"{model} is no file or folder here, no repository in the Hugging Face cache, and not the name of a DC-AE: "
            f"name a file, or one of {', '.join(variants.names())}."
        )
    variant = variants.find(model)
    path = find(variant, folder)
    if path is None and holds_weights(Path(model)):
        return Path(model), None
    if path is None and not allow_download:
        where = Path(folder) if folder is not None else default_folder()
        raise DownloadError(
            f"{variant.name} is not in {where} nor in the Hugging Face cache. Download it with "
            f"DCAE({variant.name!r}, download=True) or 'dcae download {variant.name}'."
        )
    return path or download(variant, folder), variant


def is_path(model: str | os.PathLike[str]) -> bool:
    """Whether `model` is the path of a file or folder, not the name of a variant or of a repository.

    A string with a separator or a file's suffix is a path if it exists or can't be a name; OWNER/NAME can. Any other
    string is a path if it exists and is no name.
    """
    if isinstance(model, os.PathLike):
        return True
    pathlike = "/" in model or os.sep in model or Path(model).suffix in SUFFIXES
    if pathlike and Path(model).exists():
        return True
    if variants.known(model) is not None:
        return False
    return Path(model).exists() or (pathlike and not _may_be_repository(model))


def _may_be_repository(model: str) -> bool:
    """Whether this is OWNER/NAME, and no file's name in a folder that is here."""
    return bool(REPOSITORY.fullmatch(model)) and Path(model).suffix not in SUFFIXES and not Path(model).parent.is_dir()


def cached(repo: str, subfolder: str = "") -> Path | None:
    """Return the folder of a repository OWNER/NAME in the cache that huggingface_hub and diffusers share that holds
    weights: its own or that of the vae of its pipeline; None if it is not there. Never uses the network."""
    from huggingface_hub import try_to_load_from_cache

    for folder in (f"{subfolder}/",) if subfolder else ("", "vae/"):
        for name in ("config.json", *SINGLE_FILES, *INDEX_FILES):
            file = try_to_load_from_cache(repo, folder + name)
            if isinstance(file, str) and holds_weights(Path(file).parent):
                return Path(file).parent
    return None


def download(
    variant: str | Variant,
    folder: str | os.PathLike[str] | None = None,
    *,
    revision: str = "main",
    repo: str | None = None,
    token: str | None = None,
    progress: Progress | None = None,
) -> Path:
    """Download a variant's weights to `folder`/NAME.safetensors and return that path.

    `revision` is a branch, tag or commit. Its commit, the size and the sha256 are recorded in NAME.safetensors.json.
    The file gets its name only after its size and sha256 match the hub's; until then it is NAME.safetensors.HASH.part,
    from which an interrupted download resumes. A matching file that is already here is kept. Of several threads and
    processes that request it, one fetches it and the others wait. `progress(done, total)` is called with bytes about
    four times a second, also while waiting; an exception from it stops the download and propagates. Without `progress`,
    huggingface_hub's bar is shown. Raises UnknownVariant and DownloadError.
    """
    import huggingface_hub as hf
    from huggingface_hub.utils import build_hf_headers

    variant = variants.find(variant)
    if not variant.repos:
        where = "It is bundled with this package." if variant.name == DEMO else "Put its file there by hand."
        raise DownloadError(f"No repository is listed for {variant.name}: there is nothing to download. {where}")
    repo = repo or variant.repos[0]
    folder = Path(folder) if folder is not None else default_folder()
    target = folder / f"{variant.name}.safetensors"
    if hf.constants.HF_HUB_OFFLINE:
        raise DownloadError(
            f"HF_HUB_OFFLINE forbids downloading {variant.name}. Unset it, or put the file from {repo} at {target}."
        )
    name = _repo_file(repo)
    headers: dict[str, str] = {}
    try:
        headers = build_hf_headers(token=token)
        announced = hf.get_hf_file_metadata(hf.hf_hub_url(repo, name, revision=revision), token=token)
        sha256, total = announced.etag or "", announced.size
        if not total or not announced.commit_hash or not re.fullmatch(r"[0-9a-f]{64}", sha256):
            raise DownloadError(
                f"{hf.constants.ENDPOINT} announces no commit, size or sha256 for {repo}/{name}, so a download could "
                "not be checked. Use another endpoint (HF_ENDPOINT), or fetch the file by hand."
            )
        if not _matches(target, total, sha256):
            folder.mkdir(parents=True, exist_ok=True)
            part = target.with_name(f"{target.name}.{sha256[:12]}.part")
            with _reporting(progress, total, variant.name) as report, _locked(target, lambda: report(_size(part))):
                if not _matches(target, total, sha256):
                    _check_disk_space(part, total)
                    url = hf.hf_hub_url(repo, name, revision=announced.commit_hash)
                    downloading.fetch(url, part, total, headers, report)
                    _verify(part, sha256, f"{repo}/{name}")
                    os.replace(part, target)
        source = {"repo": repo, "file": name, "revision": revision, "commit": announced.commit_hash}
        _record(target, {**source, "size": total, "sha256": sha256})
    except (DownloadError, KeyboardInterrupt):
        raise
    except _ProgressError as wrapped:
        raise wrapped.cause from None
    except Exception as error:  # requests' and httpx's errors have no common base across huggingface_hub's versions
        raise DownloadError(_explain(error, repo, revision, target, headers)) from error
    return target


class _ProgressError(BaseException):
    """Carries an exception of a progress callback past the handlers of the transfer's errors."""

    def __init__(self, cause: BaseException):
        self.cause = cause


@contextlib.contextmanager
def _reporting(progress: Progress | None, total: int, name: str) -> Generator[Callable[[int], None]]:
    """Yield a callback for the number of bytes received, which calls `progress` or else moves huggingface_hub's bar."""
    from huggingface_hub.utils import tqdm

    if progress is None:
        with tqdm(total=total, unit="B", unit_scale=True, desc=name, disable=None) as bar:  # in a terminal only

            def move(done: int) -> None:
                bar.update(done - bar.n)

            yield move
        return

    def report(done: int) -> None:
        try:
            progress(done, total)
        except BaseException as error:
            raise _ProgressError(error) from None

    yield report


@contextlib.contextmanager
def _locked(target: Path, on_wait: Callable[[], None]) -> Generator[None]:
    """Hold the lock on `target` among threads and processes, calling `on_wait` repeatedly until it is free."""
    from filelock import FileLock, Timeout

    lock = FileLock(f"{target}.lock")
    while not lock.is_locked:
        try:
            lock.acquire(timeout=downloading.PROGRESS_INTERVAL)
        except Timeout:
            on_wait()
        except NotImplementedError:  # a network folder without locks
            break
    try:
        yield
    finally:
        with contextlib.suppress(OSError):
            os.unlink(lock.lock_file)
        lock.release()


def _size(file: Path) -> int:
    return file.stat().st_size if file.is_file() else 0


def _matches(file: Path, size: int, sha256: str) -> bool:
    return _size(file) == size and _sha256(file) == sha256


def _check_disk_space(part: Path, total: int) -> None:
    missing, free = total - _size(part), shutil.disk_usage(part.parent).free
    if missing > free:
        raise DownloadError(
            f"{part.parent} has {free / 1e6:.0f} MB free, but {part.name.partition('.safetensors')[0]} needs "
            f"{missing / 1e6:.0f} MB more: free some space, or {ANOTHER_FOLDER}."
        )


def _verify(part: Path, sha256: str, name: str) -> None:
    actual = _sha256(part)
    if actual != sha256:
        part.unlink()
        raise DownloadError(
            f"{name} arrived damaged: its sha256 is {actual}, announced was {sha256}. It was deleted. Try again; if it "
            f"happens again, {ELSEWHERE}."
        )


def _sha256(path: Path) -> str:
    with open(path, "rb") as file:
        if sys.version_info >= (3, 11):
            return hashlib.file_digest(file, "sha256").hexdigest()
        digest = hashlib.sha256()
        while block := file.read(1 << 20):
            digest.update(block)
        return digest.hexdigest()


def _record(target: Path, source: Mapping[str, str | int]) -> None:
    record, text = target.with_name(target.name + ".json"), json.dumps(source, indent=2) + "\n"
    try:
        if not record.is_file() or record.read_text(encoding="utf-8") != text:
            with atomic_write(record) as part:
                part.write_text(text, encoding="utf-8")
    except OSError as error:  # the weights themselves are complete
        log.warning("The source of %s could not be recorded in %s: %s", target, record.name, error)


ELSEWHERE = "use another endpoint (HF_ENDPOINT)"
REASONS = {  # by class name, since huggingface_hub has moved these classes; subclasses first
    "GatedRepoError": "its owner must grant you access first: open its page, accept the terms, and set HF_TOKEN",
    "RepositoryNotFoundError": "there is no such repository, or it is private: check the name, or set HF_TOKEN",
    "RevisionNotFoundError": "it has no such revision: leave the revision out to get the newest",
    "EntryNotFoundError": "it has no such file at this revision",
    "UnsupportedProtocol": f"the server points to an address that is neither http nor https: {ELSEWHERE}",
    "InvalidSchema": f"the server points to an address that is neither http nor https: {ELSEWHERE}",  # in requests
    "WrongSize": f"the server has {{summary}}: {ELSEWHERE}",
    "TooSlow": f"the server is too slow, {{summary}}: try again later, or {ELSEWHERE}",
    "Truncated": "{summary}, several times: try again",
    "TimeoutException": "the server does not answer ({summary}): try again later, or check the network",
    "Timeout": "the server does not answer ({summary}): try again later, or check the network",
    "TimeoutError": "the server does not answer ({summary}): try again later, or check the network",
    "ConnectError": "no connection to {endpoint} ({summary}): check the network, the proxy and HF_ENDPOINT",
    "ConnectionError": "no connection to {endpoint} ({summary}): check the network, the proxy and HF_ENDPOINT",
    "TransportError": "the connection failed ({summary}): try again",
    "ProtocolError": "the connection failed ({summary}): try again",  # urllib3's, below requests
}
STATUSES = {
    401: "the token was not accepted: check HF_TOKEN, or unset it",
    403: "this token, or none, has no access to it: set HF_TOKEN to one that has",
    404: "it is not there: check HF_ENDPOINT",
    429: "too many requests from here: {again}; with HF_TOKEN set the limit is higher",
}
ANOTHER_FOLDER = "choose another folder (on the command line with --cache-dir, or DCAE_HOME)"
DISK = {
    (errno.ENOSPC, errno.EDQUOT, errno.EFBIG): f"the disk is full ({{error}}): free some space, or {ANOTHER_FOLDER}",
    (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EEXIST): "{folder} can't be written ({error}): make "
    f"it writable, or {ANOTHER_FOLDER}",
}


def _explain(error: Exception, repo: str, revision: str, target: Path, headers: Mapping[str, str]) -> str:
    from huggingface_hub import constants

    kinds, status = {kind.__name__ for kind in type(error).__mro__}, downloading.http_status(error)
    path = str(getattr(error, "filename", None) or target)
    number = error.errno if isinstance(error, OSError) and path.startswith(str(target.parent)) else None
    disk = next((reason for numbers, reason in DISK.items() if number in numbers), None)
    other = f"the server has a fault ({status}): {{again}}" if status else "{summary}"
    reason = disk or next((REASONS[kind] for kind in REASONS if kind in kinds), STATUSES.get(status or 0, other))
    wait = downloading.requested_wait(error)
    reason = reason.format(
        summary=downloading.describe(error),
        again="try again later" if wait is None else f"it requests a wait of {wait:.0f} s, then try again",
        endpoint=constants.ENDPOINT,
        folder=target.parent,
        error=getattr(error, "strerror", None),
    )
    token = headers.get("authorization", "").removeprefix("Bearer ")
    reason = reason.replace(token, "(the token)") if token else reason
    kept = target.parent.is_dir() and any(target.parent.glob(f"{target.name}.*.part"))
    resume = " What has arrived is kept, and a new try resumes from there." if kept else ""
    by_hand = "" if disk else f" Or fetch the file by hand and put it at {target}."
    return f"{repo} (revision {revision}) could not be downloaded: {reason}.{resume}{by_hand}"
