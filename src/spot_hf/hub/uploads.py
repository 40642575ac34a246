"""Uploads to the Hub, that survive what happens on the way, with errors that say what to do."""

import hashlib
import logging
import re
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi
from huggingface_hub.errors import (
    EntryNotFoundError,
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
)
from huggingface_hub.hf_api import RepoFile
from huggingface_hub.utils import validate_repo_id
from tenacity import RetryCallState, Retrying, retry_if_exception, stop_after_attempt, wait_exponential_jitter

from ..coordinates.records import load_record
from ..coordinates.shards import SHARD_NAME, CoordinateDirectory, ShardFacts
from ..jobs.network import is_connection_error
from .cards import coordinates_card


logger = logging.getLogger(__name__)

# Too early, a conflict, another writer came first, too many requests, and a server in trouble: all of them pass.
TRANSIENT = (408, 409, 412, 425, 429, 500, 502, 503, 504)
ATTEMPTS = 8
FIRST_ATTEMPTS = 3  # to reach the Hub at all
LONGEST_WAIT = 60.0  # seconds
FILES_PER_COMMIT = 100  # what the Hub's documentation advises


def check_repo_id(argument: str, repo_id: str) -> None:
    """`ValueError` that names the argument where `repo_id` can be no repository's."""
    try:
        validate_repo_id(repo_id)
        named = "/" in repo_id  # the Hub creates a bare name for whoever asks, and then does not find it
    except HFValidationError:
        named = False
    if not named:
        raise ValueError(f"`{argument}` must be a repository such as user/name; got {repo_id!r}")


def check_push(push_to_hub: bool, argument: str, repo_id: str | None) -> None:
    """`ValueError` where the two options of a push do not go together; `argument` is the one that names the repository."""
    if push_to_hub and not repo_id:
        raise ValueError(f"`push_to_hub` needs `{argument}`, such as user/name; got none")
    if repo_id and not push_to_hub:
        raise ValueError(f"`{argument}` goes with `push_to_hub`; got {repo_id!r} alone")
    if repo_id:
        check_repo_id(argument, repo_id)


def push_folder(
    folder: str | Path,
    repo_id: str,
    *,
    private: bool = False,
    message: str,
    repo_type: str = "model",
    space_sdk: str | None = None,
    ignore: Sequence[str] = (),
    replace: Sequence[str] = (),
    is_temporary: bool = False,
) -> str:
    """
    Uploads a folder in one commit, creating the repository where there is none. A README that is there stays.

    Args:
        folder (`str`): what to upload; it stays where it is.
        repo_id (`str`): such as `user/name`.
        private (`bool`): for a repository that is created.
        message (`str`): of the commit.
        repo_type (`str`): `"model"`, `"dataset"` or `"space"`.
        space_sdk (`str`, *optional*): of a Space.
        ignore (`list[str]`): patterns of files that stay here.
        replace (`list[str]`): patterns of files that go from the repository, where they are not in the folder.
        is_temporary (`bool`): whether the folder goes when this fails: then an error does not name it.

    Returns:
        `str`: the commit's URL.

    Raises:
        `OSError`: the Hub refused, in one line.
    """
    api = HfApi()
    with _explained(repo_id, None if is_temporary else folder):
        _retry(
            lambda: api.create_repo(repo_id, repo_type=repo_type, space_sdk=space_sdk, private=private, exist_ok=True),
            FIRST_ATTEMPTS,
        )
        # A card that is there already may hold a person's own text.
        keep = ["README.md"] if _retry(lambda: _has_card(api, repo_id, repo_type)) else []
        commit = _retry(
            lambda: api.upload_folder(
                folder_path=folder,
                repo_id=repo_id,
                repo_type=repo_type,
                commit_message=message,
                ignore_patterns=[*keep, *ignore],
                delete_patterns=list(replace) or None,
            )
        )
    return str(commit.commit_url)


def _has_card(api: HfApi, repo_id: str, repo_type: str) -> bool:
    """Whether a repository has one that is not what the Hub writes into a new Space: ours says how a Space is served."""
    if repo_type != "space":
        return api.file_exists(repo_id, "README.md", repo_type=repo_type)
    return "custom_headers" in (_read_text(api, repo_id, "README.md", repo_type) or "")


def _read_text(api: HfApi, repo_id: str, name: str, repo_type: str, revision: str | None = None) -> str | None:
    """Of a file as it is there now; `None` where there is none."""
    with tempfile.TemporaryDirectory() as folder:
        try:
            path = api.hf_hub_download(
                repo_id, name, repo_type=repo_type, revision=revision, local_dir=folder, force_download=True
            )
        except LocalEntryNotFoundError:
            raise
        except EntryNotFoundError:
            return None
        return Path(path).read_text(encoding="utf-8")


# ------------------------------------------------------------------------------------------------ coordinate data sets


@dataclass(kw_only=True)
class PushArguments:
    output_dir: str = field(metadata={"help": "What `spot-hf oracle` wrote."})
    hub_dataset_id: str = field(
        metadata={"help": "Data set to push to, such as user/name. Log in first: `hf auth login`, or set HF_TOKEN."}
    )
    hub_private: bool = field(default=False, metadata={"help": "Create it as a private one."})
    license: str = field(default="cc-by-4.0", metadata={"help": "Licence of the coordinates, for a card that states none."})


def push_coordinates(
    output_dir: str | Path,
    repo_id: str,
    *,
    private: bool = False,
    license: str | None = "cc-by-4.0",
) -> str:
    """
    Publishes the finished run of a directory: its shards, records, pictures and card. Uploads what the repository lacks or has
    otherwise, and leaves other configs and a person's text on the card as they are. May be interrupted at any time and done
    again, and others may push other configs to the same repository meanwhile. Log in first, with `hf auth login`, or set
    `HF_TOKEN`; the token must be one that may write.

    Args:
        output_dir (`str`): what `spot-hf oracle` wrote; it stays as it is.
        repo_id (`str`): of a data set, such as `user/name`; created where there is none.
        private (`bool`): for a repository that is created.
        license (`str`, *optional*): for a card that states none.

    Returns:
        `str`: the URL of the data set.

    Raises:
        `ValueError`: the directory holds no finished run, or the repository has another split of its config, with other
            columns.
        `OSError`: the Hub refused, in one line.
    """
    check_repo_id("hub_dataset_id", repo_id)
    if (Path(output_dir) / "config.json").is_file():
        raise ValueError(
            f"`output_dir` {str(output_dir)!r} holds a model: this publishes coordinates. For a model, call "
            "`spot_hf.push_model(model, image_processor, repo_id)` in Python, or give `--push_to_hub` to what makes it"
        )
    push = _Push(CoordinateDirectory(output_dir), repo_id, license)
    with _explained(repo_id, output_dir):
        url = _retry(
            lambda: push.api.create_repo(repo_id, repo_type="dataset", private=private, exist_ok=True), FIRST_ATTEMPTS
        )
        # Every commit is planned on what is there by then: also after a conflict, and after a commit whose answer was lost.
        left = True
        while left:
            done, left = _retry(push.commit_next)
            if done:
                logger.info(done)
    return str(url)


def run_push(arguments: PushArguments) -> None:
    """`spot-hf push`: [`push_coordinates`] by its arguments."""
    url = push_coordinates(
        arguments.output_dir, arguments.hub_dataset_id, private=arguments.hub_private, license=arguments.license
    )
    logger.info("published at %s", url)


class _Push:
    """A run's files, and how the repository differs from them."""

    def __init__(self, run: CoordinateDirectory, repo_id: str, license: str | None):
        self.run, self.repo_id, self.license = run, repo_id, license
        self.api = HfApi()
        ledger = run.ledger
        if ledger.results is None:  # the last that a run writes
            raise ValueError(
                f"`output_dir` {str(run.directory)!r} holds a run that is not finished: go on with the same command"
            )
        split = ledger.parameters["dataset_split"]
        self.records = {(config, split): load_record(run.directory, config, split) for config in ledger.results}
        self.files = {path.relative_to(run.directory).as_posix(): path for path in self._files()}
        self.digests = {name: _Digest(path) for name, path in self.files.items()}

    def _files(self) -> Iterator[Path]:
        for (config, split), record in self.records.items():
            shards = list(self.run.shards(config, split).values())
            rows = sum(ShardFacts.read(path).num_images for path in shards)
            if rows != record.results.num_images:
                raise ValueError(
                    f"`output_dir` {str(self.run.directory)!r}: the shards of {config} {split} hold {rows} rows, its record "
                    f"says {record.results.num_images}: go on with the run, with the same command"
                )
            yield from shards
            yield self.run.directory / config / f"{split}.json"
            yield self.run.directory / config / f"{split}.png"

    def commit_next(self) -> tuple[str | None, bool]:
        """Makes one commit towards what is to be there. Says what it did, and whether anything is left to do."""
        head = self.api.repo_info(self.repo_id, repo_type="dataset").sha
        there = {
            entry.path: entry
            for entry in self.api.list_repo_tree(self.repo_id, recursive=True, revision=head, repo_type="dataset")
            if isinstance(entry, RepoFile)
        }
        existing = self._read("README.md", head) if "README.md" in there else None
        card = coordinates_card(
            existing if existing is not None else self._local_readme(),
            self.records,
            license=self.license,
            repo_id=self.repo_id,
        )
        changed = [name for name, digest in self.digests.items() if name not in there or not digest.equals(there[name])]
        left = max(0, len(changed) - FILES_PER_COMMIT)
        operations: list[Any] = [CommitOperationAdd(name, str(self.files[name])) for name in changed[:FILES_PER_COMMIT]]
        if not left:
            # The card comes with the last files: what it lists is complete.
            stale = [name for name in there if self._is_shard_of_this_run(name) and name not in self.files]
            operations += [CommitOperationDelete(name) for name in stale]
            if card != existing:
                operations.append(CommitOperationAdd("README.md", card.encode()))
        if not operations:
            return None, False
        names = ", ".join(dict.fromkeys(config for config, _ in self.records))
        # `parent_commit`: refused where another writer came first, whose card this one would undo.
        commit = self.api.create_commit(
            self.repo_id,
            operations,
            commit_message=f"Token coordinates: {names}",
            repo_type="dataset",
            parent_commit=head,
        )
        return f"pushed {len(operations)} files, {left} left: {commit.commit_url}", left > 0

    def _is_shard_of_this_run(self, name: str) -> bool:
        config, _, file = name.rpartition("/")
        match = SHARD_NAME.fullmatch(file)
        return match is not None and (config, match["split"]) in self.records

    def _local_readme(self) -> str | None:
        readme = self.run.directory / "README.md"
        return readme.read_text(encoding="utf-8") if readme.exists() else None

    def _read(self, name: str, revision: str | None) -> str | None:
        return _read_text(self.api, self.repo_id, name, "dataset", revision)


class _Digest:
    """A local file's size and hashes: as LFS counts them, and as git does."""

    def __init__(self, path: Path):
        content = path.read_bytes()
        self.size = len(content)
        self.sha256 = hashlib.sha256(content).hexdigest()
        self.blob = hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()

    def equals(self, entry: RepoFile) -> bool:
        return entry.lfs.sha256 == self.sha256 if entry.lfs is not None else entry.blob_id == self.blob


# ------------------------------------------------------------------------------------------------- errors and retries


def _retry(function: Callable[[], Any], attempts: int = ATTEMPTS) -> Any:
    """Calls it until it passes, as long as what goes wrong may pass; waits longer each time, or as long as the Hub says."""

    def wait(state: RetryCallState) -> float:
        cause = _cause(state.outcome.exception() if state.outcome else None)
        return max(backoff(state), _asked_to_wait(cause.response) if isinstance(cause, HfHubHTTPError) else 0.0)

    def tell(state: RetryCallState) -> None:
        reason = _reason(_cause(state.outcome.exception() if state.outcome else None))
        seconds = round(state.upcoming_sleep)
        logger.info("attempt %d of %d failed (%s); the next one in %d s", state.attempt_number, attempts, reason, seconds)

    backoff = wait_exponential_jitter(initial=0.5, max=LONGEST_WAIT)
    return Retrying(
        stop=stop_after_attempt(attempts), wait=wait, retry=retry_if_exception(_may_pass), before_sleep=tell, reraise=True
    )(function)


def _cause(error: BaseException | None) -> BaseException | None:
    """The answer of the Hub, or the lack of one, that is behind an error: the client hides some behind errors of its own."""
    while error is not None and not isinstance(error, HfHubHTTPError) and not is_connection_error(error):
        error = error.__cause__
    return error


def _may_pass(error: BaseException) -> bool:
    cause = _cause(error)
    return cause.response.status_code in TRANSIENT if isinstance(cause, HfHubHTTPError) else cause is not None


def _asked_to_wait(response: Any) -> float:
    """Seconds: as stated, or until the window of a limit that is used up has passed."""
    headers = response.headers
    stated = re.fullmatch(r"\d+", headers.get("Retry-After", "")) or re.search(r"(?<=r=0;t=)\d+", headers.get("RateLimit", ""))
    return min(float(stated[0]), LONGEST_WAIT) if stated else 0.0


def _reason(error: BaseException | None) -> str:
    """One line. What the Hub itself says where it does, or what the client makes of it."""
    status = f"{error.response.status_code}: " if isinstance(error, HfHubHTTPError) else ""
    lines = (getattr(error, "server_message", None) or str(error or "")).strip().splitlines()
    return status + (lines[0] if lines else type(error).__name__)


@contextmanager
def _explained(repo_id: str, folder: str | Path | None) -> Iterator[None]:
    """Turns what the client raises into an `OSError` of one line that says what to do, and that `folder` is complete."""
    left = "" if folder is None else f"; {folder} is complete"
    try:
        yield
    except Exception as error:
        cause = _cause(error)
        if isinstance(cause, HfHubHTTPError):
            reason = _reason(cause)
            if cause.response.status_code in (401, 403):
                reason += "; log in with `hf auth login`, or set HF_TOKEN to a token that may write there"
            raise OSError(f"the Hub refused to take {repo_id!r} ({reason}){left}") from None
        if cause is None and not isinstance(error, OSError):
            raise
        raise OSError(f"could not push to {repo_id!r}: {_reason(cause or error)}{left}") from None
