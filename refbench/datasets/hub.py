"""Downloads from the Hugging Face hub, with huggingface_hub, to `$REFBENCH_HOME/cache/hub`, and uploads to it.

`HF_ENDPOINT`, `HF_TOKEN`, `HF_HUB_OFFLINE` and the proxy variables are respected. Files that are already in the cache
of huggingface_hub are not downloaded again. huggingface_hub 2 does not keep interrupted downloads in its cache.
Therefore, new files are stored here, and running the same command again resumes the download. Every file with a known
sha256 is checked. No other module imports huggingface_hub.
"""

from __future__ import annotations

import os
import time
from pathlib import Path
from urllib.parse import urlsplit

from huggingface_hub import HfApi, constants, get_hf_file_metadata, hf_hub_url, try_to_load_from_cache
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    RemoteEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.file_download import HfFileMetadata, http_get
from huggingface_hub.utils import WeakFileLock, build_hf_headers

from refbench.datasets.catalogue import HubFile, HubSource, is_commit
from refbench.errors import DatasetError
from refbench.storage.files import file_sha256, home
from refbench.storage.progress import Progress

ATTEMPTS = 4
WAIT_SECONDS = 1.0
SHA256_LENGTH = 64


class _NoHub(Exception):
    """The server that responded is not a hub."""


def fetch(source: HubSource, offline: bool, progress: Progress) -> Path:
    """Download missing files; returns the folder, which is named after the commit and contains the files at their paths
    in the repository.

    Args:
        offline: download nothing.

    Raises:
        DatasetError: the hub cannot be reached or refuses the request, the disk is full, or a file does not match its
            sha256 (it is removed). Complete and partial downloads are kept.
    """
    offline = offline or constants.HF_HUB_OFFLINE
    root = home() / "cache" / "hub" / source.repo.replace("/", "--")
    commit = _commit_of(source, root, offline)
    for done, file in enumerate(source.files):
        path = root / commit / file.path
        if not path.resolve().is_relative_to(root.resolve()):
            raise DatasetError(f"sources.toml lists {file.path!r}, which is outside the download folder")
        if path.is_file():
            _check_again(source, file, path)
        if not path.is_file():
            _place(source, file, commit, path, offline)
        progress("downloads", done + 1, len(source.files))
    return root / commit


def push(folder: Path, repo: str, message: str) -> str:
    """Upload a folder to a dataset repository of the hub, which is created if it does not exist.

    The upload is one commit, so nobody sees a part of it.

    Args:
        repo: OWNER/NAME.

    Returns:
        The address of the commit.

    Raises:
        DatasetError: the hub cannot be reached or refuses the upload, or HF_HUB_OFFLINE is set.
    """
    if constants.HF_HUB_OFFLINE:
        raise DatasetError("HF_HUB_OFFLINE is set, so nothing can be uploaded; unset it")
    # Read now: the endpoint may have been set after the import.
    api = HfApi(endpoint=os.environ.get("HF_ENDPOINT") or None)
    try:
        api.create_repo(repo, repo_type="dataset", exist_ok=True)
        commit = api.upload_folder(repo_id=repo, folder_path=folder, repo_type="dataset", commit_message=message)
    except HFValidationError as error:
        raise DatasetError(f"{repo!r} is not a name of the hub ({_line(error)}); write OWNER/NAME") from None
    except HfHubHTTPError as error:
        raise DatasetError(
            f"{folder} cannot be uploaded to {repo}: the hub answers {_line(error)}; log in with `hf auth login`, or "
            "set HF_TOKEN to a token that may write"
        ) from None
    except Exception as error:  # noqa: BLE001 (as in _place)
        raise DatasetError(
            f"{folder} cannot be uploaded to {repo} ({type(error).__name__}: {_line(error)}); check the network, "
            "HF_ENDPOINT and the proxy variables"
        ) from None
    return str(commit.commit_url)


def _commit_of(source: HubSource, root: Path, offline: bool) -> str:
    """The latest commit of a branch, from the hub; if offline, the commit from the last request."""
    if is_commit(source.revision):
        return source.revision
    note = root / "refs" / source.revision.replace("/", "--")
    if not source.files:
        raise DatasetError(f"sources.toml lists no file of {source.repo}")
    if offline:
        if not note.is_file():
            raise _not_here(source, source.files[0])
        return note.read_text(encoding="ascii")
    commit = _asked(source, source.files[0], source.revision).commit_hash or ""
    if not is_commit(commit):
        raise _failed(source, source.files[0], _NoHub("it names no commit"))
    note.parent.mkdir(parents=True, exist_ok=True)
    note.write_text(commit, encoding="ascii")
    return commit


def _place(source: HubSource, file: HubFile, commit: str, path: Path, offline: bool) -> None:
    """Bring the file to `path`, from the cache of huggingface_hub or from the hub, and check it."""
    cached = try_to_load_from_cache(source.repo, file.path, revision=commit, repo_type="dataset")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(cached, str):
            if file.sha256:
                _check(source, file, Path(cached), file.sha256, "sources.toml", remove=False)
            path.symlink_to(Path(cached).resolve())
            return
        if offline:
            raise _not_here(source, file)
        partial = path.with_name(f"{path.name}.part")
        with WeakFileLock(path.with_name(f".{path.name}.lock")):
            # Another process may have finished it while this one waited.
            if not path.is_file():
                wanted, origin = _download(source, file, commit, partial)
                if wanted:
                    _check(source, file, partial, wanted, origin, remove=True)
                    _note_of(path).write_text(wanted, encoding="ascii")
                partial.replace(path)
    except OSError as error:
        raise _failed(source, file, error) from None


def _download(source: HubSource, file: HubFile, commit: str, partial: Path) -> tuple[str, str]:
    """Download to `partial`, resuming a partial download. Returns the expected sha256 (or "") and the source that
    states it.
    """
    for attempt in range(ATTEMPTS):
        try:
            found = _asked(source, file, commit)
            there = partial.stat().st_size if partial.is_file() else 0
            if found.size is not None and there > found.size:
                partial.unlink()
                there = 0
            url = hf_hub_url(source.repo, file.path, repo_type="dataset", revision=commit)
            # A token is for the hub, not for the storage that it points to.
            same_host = urlsplit(found.location).netloc == urlsplit(url).netloc
            headers = build_hf_headers(token=None if same_host else False)
            with partial.open("ab") as target:
                http_get(
                    found.location, target, resume_size=there, headers=headers, expected_size=found.size,
                    displayed_filename=file.path,
                )  # fmt: skip
            if file.sha256:
                return file.sha256, "sources.toml"
            # No published sha256; for large files the hub gives the sha256 as the etag.
            return (found.etag, "the hub") if found.etag and len(found.etag) == SHA256_LENGTH else ("", "")
        except DatasetError:
            raise
        except Exception as error:  # noqa: BLE001 (errors of the hub, of its HTTP client and of the disk share no base)
            if attempt + 1 == ATTEMPTS or not _may_pass(error):
                raise _failed(source, file, error) from None
        time.sleep(WAIT_SECONDS * 2**attempt)
    raise AssertionError("unreachable")


def _asked(source: HubSource, file: HubFile, revision: str) -> HfFileMetadata:
    """The metadata of a file on the hub; the request is repeated until the hub responds."""
    url = hf_hub_url(source.repo, file.path, repo_type="dataset", revision=revision)
    for attempt in range(ATTEMPTS):
        try:
            found = get_hf_file_metadata(url)
            if found.commit_hash is None or found.etag is None:
                raise _NoHub("the response contains no commit id")
            return found
        except Exception as error:  # noqa: BLE001 (as above)
            if attempt + 1 == ATTEMPTS or not _may_pass(error):
                raise _failed(source, file, error) from None
        time.sleep(WAIT_SECONDS * 2**attempt)
    raise AssertionError("unreachable")


def _may_pass(error: Exception) -> bool:
    """Whether to try again. A failing or unreachable server may recover, but retrying does not help after a refusal or
    if the disk is full.
    """
    if isinstance(error, HfHubHTTPError):
        return error.response.status_code >= 500 or error.response.status_code in (408, 429)
    if isinstance(error, (_NoHub, HFValidationError)):
        return False
    # A download of the wrong length raises an OSError without errno; an OSError with errno comes from the disk.
    return not (isinstance(error, OSError) and error.errno)


def _note_of(path: Path) -> Path:
    """The file next to `path` that stores the sha256 that `path` had when it was downloaded."""
    return path.with_name(f"{path.name}.sha256")


def _check_again(source: HubSource, file: HubFile, path: Path) -> None:
    """Remove the stored file if it was damaged since the download, or if `sources.toml` now states another sha256."""
    note = _note_of(path)
    wanted = file.sha256 or (note.read_text(encoding="ascii", errors="replace") if note.is_file() else "")
    if wanted and file_sha256(path) != wanted:
        path.unlink()


def _check(source: HubSource, file: HubFile, path: Path, wanted: str, origin: str, remove: bool) -> None:
    found = file_sha256(path)
    if found == wanted:
        return
    if remove:
        path.unlink()
    raise DatasetError(
        f"{file.path} of {source.repo} has the sha256 {found}, but {origin} expects {wanted}, so the file "
        "is damaged, or it is a different file. "
        f"{'It is removed; the same command downloads it anew.' if remove else f'Remove {path}.'} If this "
        "happens again, check HF_ENDPOINT and the proxy settings"
    )


def _not_here(source: HubSource, file: HubFile) -> DatasetError:
    return DatasetError(
        f"{file.path} of {source.repo} is not downloaded yet, and --offline forbids downloads: run once without it"
    )


def _failed(source: HubSource, file: HubFile, error: Exception) -> DatasetError:
    where = f"{file.path} of {source.repo}"
    kept = "Partial downloads are kept; the same command resumes them"
    if isinstance(error, GatedRepoError):
        return DatasetError(f"{where} is behind a form: accept its terms on the hub, then set HF_TOKEN")
    if isinstance(error, RepositoryNotFoundError):
        return DatasetError(f"the hub has no dataset {source.repo}, or it is private: then set HF_TOKEN")
    if isinstance(error, RevisionNotFoundError):
        return DatasetError(f"{source.repo} has no revision {source.revision}; pass other --sources")
    if isinstance(error, RemoteEntryNotFoundError):
        return DatasetError(f"{source.repo} holds no {file.path} at {source.revision}; pass other --sources")
    if isinstance(error, _NoHub):
        return DatasetError(f"{where}: the server is not a hub ({error}); check HF_ENDPOINT and the proxy")
    if isinstance(error, HfHubHTTPError):
        return DatasetError(f"{where} cannot be downloaded: the hub answers {_line(error)}. {kept}")
    if isinstance(error, OSError) and error.errno:
        return DatasetError(
            f"{where} ({file.bytes / 1e6:,.0f} MB) cannot be written: {error.strerror}; free space, or set "
            f"REFBENCH_HOME to another disk. {kept}"
        )
    return DatasetError(
        f"{where} cannot be downloaded: the hub is out of reach ({type(error).__name__}: {_line(error)}). Check the "
        f"network, HF_ENDPOINT and the proxy variables. {kept}"
    )


def _line(error: BaseException) -> str:
    return " ".join(str(error).split())[:300]
