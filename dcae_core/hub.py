"""Finding weights on this machine, and downloading them from the Hugging Face hub when asked to.

huggingface_hub does the transfer, so HF_ENDPOINT, HF_TOKEN, HF_HUB_OFFLINE and its other settings apply.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Callable
from pathlib import Path

from . import variants
from .errors import DownloadError
from .variants import DEMO, Variant

__all__ = ["bundled", "default_folder", "download", "find"]

Progress = Callable[[int, int], None]


def bundled() -> Path:
    """The demo model that comes with this package."""
    return Path(__file__).parent / "assets" / f"{DEMO}.safetensors"


def default_folder() -> Path:
    """Where weights are kept when the caller names no folder: $DCAE_HOME, or ~/.cache/dcae."""
    return Path(os.environ.get("DCAE_HOME") or Path.home() / ".cache" / "dcae")


def repo_file(repo: str) -> str:
    """The name that the weights have in `repo`."""
    return "diffusion_pytorch_model.safetensors" if repo.endswith("-diffusers") else "model.safetensors"


def find(variant: str | Variant, folder: str | os.PathLike | None = None) -> Path | None:
    """The file or folder that holds this variant here, or None. Never asks the network.

    Looks at the bundled demo, then in `folder` (as NAME.safetensors, NAME/ or NAME-diffusers/), then in the cache that
    huggingface_hub and diffusers share.
    """
    from huggingface_hub import try_to_load_from_cache

    variant = variants.find(variant)
    if variant.name == DEMO:
        return bundled()
    folder = Path(folder) if folder is not None else default_folder()
    for name in (f"{variant.name}.safetensors", variant.name, f"{variant.name}-diffusers"):
        path = folder / name
        if path.is_file() or (path.is_dir() and any(path.glob("*.safetensors"))):
            return path
    for repo in variant.repos:
        cached = try_to_load_from_cache(repo, repo_file(repo))
        if isinstance(cached, str):
            return Path(cached)
    return None


def download(
    variant: str | Variant,
    folder: str | os.PathLike | None = None,
    *,
    revision: str = "main",
    repo: str | None = None,
    token: str | None = None,
    progress: Progress | None = None,
) -> Path:
    """Downloads a variant's weights to `folder`/NAME.safetensors and returns that path.

    `revision` is a branch, tag or commit; the commit it stood for, the size and the sha256 are recorded beside the
    file, in NAME.safetensors.json. The file takes its name only after its size and sha256 are those the hub announces;
    until then it is NAME.safetensors.HASH.part, and a download that was cut off goes on from there. A file of that name
    that is already right is kept. `progress(done, total)` in bytes; what it raises stops the download and is passed on.
    Raises DownloadError.
    """
    import huggingface_hub as hf
    from huggingface_hub.utils import build_hf_headers

    variant = variants.find(variant)
    if not variant.repos:
        raise DownloadError(f"{variant.name} comes with this package: there is nothing to download.")
    repo = repo or variant.repos[0]
    folder = Path(folder) if folder is not None else default_folder()
    target = folder / f"{variant.name}.safetensors"
    if hf.constants.HF_HUB_OFFLINE:
        raise DownloadError(
            f"HF_HUB_OFFLINE forbids downloading {variant.name}. Unset it, or put the file from {repo} at {target}."
        )
    name, headers = repo_file(repo), build_hf_headers(token=token)
    try:
        known = hf.get_hf_file_metadata(hf.hf_hub_url(repo, name, revision=revision), token=token)
        if not known.size or not known.commit_hash or not re.fullmatch(r"[0-9a-f]{64}", known.etag or ""):
            raise DownloadError(
                f"{hf.constants.ENDPOINT} announces no commit, size or sha256 for {repo}/{name}, so a download could "
                "not be checked. Use another endpoint (HF_ENDPOINT), or fetch the file by hand."
            )
        sha256, total = known.etag, known.size
        folder.mkdir(parents=True, exist_ok=True)
        if not (target.is_file() and target.stat().st_size == total and _sha256(target) == sha256):
            part = target.with_name(f"{target.name}.{sha256[:12]}.part")
            url = hf.hf_hub_url(repo, name, revision=known.commit_hash)
            _fetch(url, part, total, headers, progress)
            _check(part, total, sha256, f"{repo}/{name}")
            os.replace(part, target)
        source = {"repo": repo, "file": name, "revision": revision, "commit": known.commit_hash}
        _record(target, {**source, "size": total, "sha256": sha256})
    except (DownloadError, KeyboardInterrupt):
        raise
    except _Stopped as stopped:
        raise stopped.cause from None
    except Exception as error:  # requests' and httpx's errors have no common base across huggingface_hub's versions
        raise DownloadError(_explain(error, repo, revision, target)) from error
    return target


class _Stopped(BaseException):
    """Carries what a progress callback raised past the retries of the transfer."""

    def __init__(self, cause: BaseException):
        self.cause = cause


class _Counted:
    """A binary file that reports how much it holds after each write."""

    def __init__(self, file, total: int, progress: Progress):
        self._file, self._total, self._progress = file, total, progress

    def write(self, data: bytes) -> int:
        written = self._file.write(data)
        try:
            self._progress(self._file.tell(), self._total)
        except BaseException as error:
            raise _Stopped(error) from None
        return written

    def __getattr__(self, name: str):
        return getattr(self._file, name)


def _fetch(url: str, part: Path, total: int, headers: dict, progress: Progress | None) -> None:
    from huggingface_hub.file_download import http_get

    done = part.stat().st_size if part.is_file() else 0
    if done == total:
        return  # asking for nothing more is an error to some servers
    if done > total:
        part.unlink()
        done = 0
    with open(part, "r+b" if done else "wb") as file:
        file.seek(done)
        sink = _Counted(file, total, progress) if progress else file
        http_get(url, sink, resume_size=done, headers=headers, expected_size=total)


def _check(part: Path, total: int, sha256: str, what: str) -> None:
    size = part.stat().st_size
    if size != total:
        raise DownloadError(
            f"{what} arrived with {size} bytes instead of {total}. Run it again: it goes on from there."
        )
    found = _sha256(part)
    if found != sha256:
        part.unlink()
        raise DownloadError(f"{what} arrived damaged: its sha256 is {found}, announced was {sha256}. Try again.")


def _sha256(path: Path) -> str:
    with open(path, "rb") as file:
        if hasattr(hashlib, "file_digest"):
            return hashlib.file_digest(file, "sha256").hexdigest()
        digest = hashlib.sha256()
        while block := file.read(1 << 20):
            digest.update(block)
        return digest.hexdigest()


def _record(target: Path, source: dict) -> None:
    record = target.with_name(target.name + ".json")
    part = record.with_name(record.name + ".part")
    part.write_text(json.dumps(source, indent=2) + "\n", encoding="utf-8")
    os.replace(part, record)


REASONS = {  # by name, since huggingface_hub has moved these classes about; the more special first
    "GatedRepoError": "its owner must grant you access first: open its page, accept the terms, and set HF_TOKEN",
    "RepositoryNotFoundError": "there is no such repository, or it is private: check the name, or set HF_TOKEN",
    "RevisionNotFoundError": "it has no such revision: leave the revision out to get the newest",
    "EntryNotFoundError": "it has no such file at this revision",
}


def _explain(error: Exception, repo: str, revision: str, target: Path) -> str:
    kinds = {kind.__name__ for kind in type(error).__mro__}
    first_line = next(iter(str(error).strip().splitlines()), "no details")
    reason = next((REASONS[kind] for kind in REASONS if kind in kinds), f"{type(error).__name__}: {first_line}")
    kept = list(target.parent.glob(f"{target.name}.*.part")) if target.parent.is_dir() else []
    again = " What has arrived is kept: a new try goes on from there." if kept else ""
    return (
        f"{repo} (revision {revision}) could not be downloaded: {reason}.{again} Or fetch the file by hand and put it "
        f"at {target}."
    )
