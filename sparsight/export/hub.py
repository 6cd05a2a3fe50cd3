"""Uploading an export."""

from __future__ import annotations

from pathlib import Path

from huggingface_hub import HfApi
from huggingface_hub.errors import HfHubHTTPError


def push(folder: Path, repo: str, *, private: bool) -> str:
    """Upload a folder to the Hugging Face hub, with the token that ``hf auth login`` or ``HF_TOKEN`` gave.

    Args:
        folder: A finished export.
        repo: Repository id; it is made if it is not there.
        private: Whether a repository that is made now can be seen by its owner alone.

    Returns:
        Address of the commit.

    Raises:
        RuntimeError: The hub refused; the folder is complete all the same.
    """
    api = HfApi()
    try:
        api.create_repo(repo, private=private, exist_ok=True)
        commit = api.upload_folder(
            repo_id=repo, folder_path=folder, commit_message=f"Export {folder.name} with Sparsight"
        )
    except HfHubHTTPError as error:
        raise RuntimeError(f"{folder} is complete, but could not be pushed to {repo}: {error}") from error
    return str(commit.commit_url)
