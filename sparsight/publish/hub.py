"""Uploading an export."""

from __future__ import annotations

from itertools import islice
from pathlib import Path

from huggingface_hub import HfApi
from huggingface_hub.utils import HFValidationError, validate_repo_id

from sparsight.common.errors import ConfigurationError
from sparsight.publish.secrets import secrets_in

TOLD = 5  # places of secrets in a message


class PushFailed(ConfigurationError, RuntimeError):
    """An export is complete, and was not uploaded; the message says why, and how to go on."""


def check_repo(repo: str | None) -> None:
    """See that a repository could be called so, before anything is written.

    Raises:
        ConfigurationError: It could not.
    """
    try:
        if repo is not None:
            validate_repo_id(repo)
    except HFValidationError as error:
        raise ConfigurationError(f"push_to_hub {repo!r} is no repository id such as owner/name: {error}") from error


def push(folder: Path, repo: str, *, private: bool) -> str:
    """Upload a folder to the Hugging Face hub, with the token that ``hf auth login`` or ``HF_TOKEN`` gave.

    Args:
        folder: A finished export.
        repo: Repository id; it is made if it is not there.
        private: Whether a repository that is made now can be seen by its owner alone.

    Returns:
        Address of the commit.

    Raises:
        PushFailed: The folder holds what looks like a secret, the hub cannot be reached, or it refuses; the folder is
            complete all the same.
    """
    refuse_secrets(folder, repo)
    try:
        api = HfApi()
        api.create_repo(repo, private=private, exist_ok=True)
        commit = api.upload_folder(
            repo_id=repo, folder_path=folder, commit_message=f"Export {folder.name} with Sparsight"
        )
    except Exception as error:  # the client raises errors of its HTTP library, of the system and of its own
        again = f"hf upload {repo} {folder}{' --private' if private else ''}"
        raise PushFailed(
            f"{folder} is complete, but could not be pushed to {repo} ({_said(error)}). To push it once the hub "
            f"answers, logged in by `hf auth login`: {again}"
        ) from error
    return str(commit.commit_url)


def refuse_secrets(folder: Path, repo: str) -> None:
    """See that a folder's text files hold no keys and passwords.

    Raises:
        PushFailed: One looks like it; the message names file, line and key.
    """
    found = list(islice(secrets_in(folder), TOLD))
    if found:
        raise PushFailed(
            f"{folder} is complete, but was not pushed to {repo}, as it holds what looks like a secret: "
            f"{'; '.join(found)}. Take it out of that file, and of what it was written from"
        )


def would_go(folder: Path, repo: str) -> str:
    """What ``push`` would upload, a line for each file with its size in bytes.

    Raises:
        PushFailed: The folder holds what looks like a secret.
    """
    refuse_secrets(folder, repo)
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    sizes = [path.stat().st_size for path in files]
    rows = [f"{size:>15,}  {path.relative_to(folder)}" for path, size in zip(files, sizes, strict=True)]
    return "\n".join([f"would go to {repo}:", *rows, f"{sum(sizes):>15,}  bytes in {len(files)} files"])


def _said(error: Exception) -> str:
    """Kind and first line of an error."""
    return " ".join(f"{type(error).__name__}: {error}".split("\n\n")[0].split())[:300]
