"""Uploads to the Hub, with errors that say what to do."""

from pathlib import Path

from huggingface_hub import HfApi
from huggingface_hub.errors import HfHubHTTPError, HFValidationError
from huggingface_hub.utils import validate_repo_id


def is_connection_error(error: Exception) -> bool:
    """Whether it is the HTTP client's own: which client that is, and so which class, changes with huggingface_hub."""
    return type(error).__module__.split(".")[0] in ("httpx", "httpx2", "httpcore", "httpcore2", "requests")


def check_repo_id(argument: str, repo_id: str) -> None:
    """`ValueError` that names the argument where `repo_id` can be no repository's."""
    try:
        validate_repo_id(repo_id)
    except HFValidationError:
        raise ValueError(f"`{argument}` must be a repository such as user/name; got {repo_id!r}") from None


def push_folder(folder: str | Path, repo_id: str, *, private: bool = False, message: str, repo_type: str = "model") -> str:
    """
    Uploads a folder in one commit, creating the repository where there is none. A README that is there stays.

    Args:
        folder (`str`): what to upload; it stays where it is.
        repo_id (`str`): such as `user/name`.
        private (`bool`): for a repository that is created.
        message (`str`): of the commit.
        repo_type (`str`): `"model"` or `"dataset"`.

    Returns:
        `str`: the commit's URL.

    Raises:
        `OSError`: the Hub refused, in one line.
    """
    api = HfApi()
    try:
        api.create_repo(repo_id, repo_type=repo_type, private=private, exist_ok=True)
        # A card that is there already may hold a person's own text.
        keep = ["README.md"] if api.file_exists(repo_id, "README.md", repo_type=repo_type) else None
        commit = api.upload_folder(
            folder_path=folder, repo_id=repo_id, repo_type=repo_type, commit_message=message, ignore_patterns=keep
        )
    except HfHubHTTPError as error:
        status = error.response.status_code if error.response is not None else "no answer"
        reason = (
            "log in with `hf auth login`, or set HF_TOKEN to a token that may write there"
            if status in (401, 403)
            else str(error)
        )
        raise OSError(
            f"the Hub refused to take {repo_id!r} ({status}): {reason.splitlines()[0]}; {folder} is complete"
        ) from None
    except Exception as error:
        if not isinstance(error, OSError) and not is_connection_error(error):
            raise
        raise OSError(f"could not push to {repo_id!r}: {error}; {folder} is complete") from None
    return str(commit.commit_url)
