"""Uploads to the Hub, with errors that say what to do."""

from pathlib import Path

from huggingface_hub import HfApi
from huggingface_hub.errors import HfHubHTTPError, HFValidationError


def push_folder(folder: str | Path, repo_id: str, *, private: bool = False, message: str, repo_type: str = "model") -> str:
    """
    Uploads a folder in one commit, creating the repository where there is none.

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
        commit = api.upload_folder(folder_path=folder, repo_id=repo_id, repo_type=repo_type, commit_message=message)
    except HFValidationError as error:
        raise ValueError(f"--hub_model_id must be a repository such as user/name; {error}") from None
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
    except OSError as error:
        raise OSError(f"could not push to {repo_id!r}: {error}; {folder} is complete") from None
    return str(commit.commit_url)
