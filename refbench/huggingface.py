"""Downloads from the Hugging Face hub, by huggingface_hub, into its usual cache.

It honours `HF_ENDPOINT`, `HF_HOME`, `HF_HUB_OFFLINE`, `HF_TOKEN` and the proxy variables, resumes a download that
was cut, and shows its own progress. Added here: a sha256 for every file, retries when the server fails, and
messages that say what to do. The only module that imports huggingface_hub.
"""

from __future__ import annotations

import time
from pathlib import Path

from huggingface_hub import get_hf_file_metadata, hf_hub_download, hf_hub_url
from huggingface_hub.errors import (
    FileMetadataError,
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    RemoteEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from refbench.catalogue import HubFile, HubSource
from refbench.errors import DatasetError
from refbench.progress import Progress
from refbench.storage import file_sha256

ATTEMPTS = 4
WAIT_SECONDS = 1.0
SHA256_LENGTH = 64


def fetch(source: HubSource, offline: bool, progress: Progress) -> Path:
    """Download what is not in the cache yet; returns the folder that holds the files under their paths.

    Args:
        offline: use the cache alone.

    Raises:
        DatasetError: the hub cannot be reached or refuses, the disk is full, or a file is not what its
            sha256 says; such a file is taken out of the cache. What was finished stays there.
    """
    root = None
    for done, file in enumerate(source.files):
        found = _download(source, file, offline)
        _check(source, file, found, offline)
        root = Path(str(found)[: -len(file.path)])
        progress("downloads", done + 1, len(source.files))
    if root is None:
        raise DatasetError(f"sources.toml names no file of {source.repo}")
    return root


def _download(source: HubSource, file: HubFile, offline: bool) -> Path:
    for attempt in range(ATTEMPTS):
        try:
            return Path(
                hf_hub_download(
                    source.repo, file.path, repo_type="dataset", revision=source.revision, local_files_only=offline
                )
            )
        except (GatedRepoError, RepositoryNotFoundError, RevisionNotFoundError, RemoteEntryNotFoundError) as error:
            # Asking again changes nothing.
            raise _failed(source, file, error, offline) from None
        except (HFValidationError, FileMetadataError) as error:
            raise _failed(source, file, error, offline) from None
        except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
            last = attempt + 1 == ATTEMPTS
            if last or offline or not _may_pass(error):
                raise _failed(source, file, error, offline) from None
        except Exception as error:  # noqa: BLE001 (httpx's errors share no base with the hub's; all are of the network)
            if attempt + 1 == ATTEMPTS:
                raise _failed(source, file, error, offline) from None
        time.sleep(WAIT_SECONDS * 2**attempt)
    raise AssertionError("unreachable")


def _may_pass(error: Exception) -> bool:
    """A server that fails or is out of reach may come back; a full disk or a refusal does not."""
    if isinstance(error, HfHubHTTPError):
        status = getattr(error.response, "status_code", 0)
        return status >= 500 or status in (408, 429)
    if isinstance(error, LocalEntryNotFoundError):
        return True
    # huggingface_hub reports a download of the wrong length as a plain OSError.
    return "Consistency check" in str(error)


def _check(source: HubSource, file: HubFile, path: Path, offline: bool) -> None:
    wanted, origin = file.sha256, "sources.toml"
    if not wanted and not offline:
        # Nobody published it; the hub states the sha256 of large files as their etag.
        url = hf_hub_url(source.repo, file.path, repo_type="dataset", revision=source.revision)
        try:
            etag = get_hf_file_metadata(url).etag or ""
        except Exception as error:  # noqa: BLE001 (as above)
            raise _failed(source, file, error, offline) from None
        wanted, origin = (etag, "the hub") if len(etag) == SHA256_LENGTH else ("", "")
    if not wanted:
        return
    found = file_sha256(path)
    if found != wanted:
        blob = path.resolve()
        path.unlink()
        blob.unlink(missing_ok=True)
        raise DatasetError(
            f"{file.path} of {source.repo} has the sha256 {found}, {origin} says {wanted}: it is damaged or another "
            "file. It is out of the cache again; run the same command to download it anew, and check the endpoint"
        )


def _failed(source: HubSource, file: HubFile, error: Exception, offline: bool) -> DatasetError:
    where = f"{file.path} of {source.repo}"
    if isinstance(error, GatedRepoError):
        return DatasetError(f"{where} is behind a form: accept its terms on the hub, then set HF_TOKEN")
    if isinstance(error, RepositoryNotFoundError):
        return DatasetError(f"the hub has no dataset {source.repo}, or it is private: then set HF_TOKEN")
    if isinstance(error, RevisionNotFoundError):
        return DatasetError(f"{source.repo} has no revision {source.revision}; pass other --sources")
    if isinstance(error, RemoteEntryNotFoundError):
        return DatasetError(f"{source.repo} holds no {file.path} at {source.revision}; pass other --sources")
    if isinstance(error, FileMetadataError):
        return DatasetError(f"{where}: what answers is no hub ({_line(error)}); check HF_ENDPOINT and the proxy")
    if isinstance(error, LocalEntryNotFoundError):
        if offline:
            return DatasetError(f"{where} is not in the cache, and --offline forbids downloading it")
        return DatasetError(
            f"{where} cannot be downloaded: the hub is out of reach ({_line(error.__cause__ or error)}). Check the "
            "network, HF_ENDPOINT and the proxy variables; what was finished is kept, the same command resumes"
        )
    if isinstance(error, OSError) and error.strerror and not isinstance(error, HfHubHTTPError):
        return DatasetError(
            f"{where} ({file.bytes / 1e6:,.0f} MB) cannot be written: {error.strerror}; free space or set HF_HOME to "
            "another disk. What was finished is kept, the same command resumes"
        )
    return DatasetError(
        f"{where} cannot be downloaded: {type(error).__name__}: {_line(error)}. What was finished is kept, the same "
        "command resumes"
    )


def _line(error: BaseException) -> str:
    return " ".join(str(error).split())[:300]
