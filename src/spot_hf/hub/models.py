"""Publishing a model that was made in Python."""

import tempfile
from pathlib import Path
from typing import Any

from ..handler import REQUIREMENTS
from ..placement import BUILT_IN
from .cards import write_model_card
from .loading import MODEL_CLASSES
from .uploads import check_repo_id, push_folder


REQUIREMENTS_FILE = "requirements.txt"  # what an endpoint of the Hub installs before it runs `handler.py`
TIMM = "timm>=1.0.11"


def push_model(
    model: Any,
    image_processor: Any,
    repo_id: str,
    *,
    tokenizer: Any = None,
    private: bool = False,
    commit_message: str = "SpotViT",
    measured: str | None = None,
) -> str:
    """
    Publishes a model as a repository that anyone loads: weights, config, image processor, the code and the pipeline for
    `trust_remote_code=True`, and a card. In one commit; a README that is there stays.

    Log in first, with `hf auth login` in a shell or `huggingface_hub.login()` in Python, or set `HF_TOKEN`; the token must be
    one that may write.

    Args:
        model ([`SpotViTPreTrainedModel`]): to be published. One with adapters has to be merged first.
        image_processor ([`SpotViTImageProcessor`]): its image processor.
        repo_id (`str`): such as `user/name`; created where there is none.
        tokenizer (*optional*): of a zero-shot model, which needs it.
        private (`bool`, *optional*, defaults to `False`): for a repository that is created.
        commit_message (`str`, *optional*).
        measured (`str`, *optional*): Markdown for the card, on what was measured and what was not.

    Returns:
        `str`: the commit's URL.

    Raises:
        `ValueError`: no SpotViT, or one with adapters; no image processor of one, or no tokenizer; a name that no repository
            can have.
        `OSError`: the Hub refused, in one line.
    """
    check_repo_id("repo_id", repo_id)
    check_whole_model(model, "model")
    if not hasattr(image_processor, "to_model_frame"):
        raise ValueError(f"`image_processor` must be a SpotViT's; got {type(image_processor).__name__}")
    if image_processor.placement not in (None, *BUILT_IN):
        raise ValueError(
            f"`image_processor` must have a built-in placement saved, or none, to be loaded elsewhere; got "
            f"{image_processor.placement!r}"
        )
    if hasattr(model, "text_model") and not callable(tokenizer):
        raise ValueError(f"`tokenizer` is needed by a zero-shot model: that of its source; got {type(tokenizer).__name__}")
    with tempfile.TemporaryDirectory() as folder:
        save_model(model, image_processor, folder, tokenizer=tokenizer, repo_id=repo_id, measured=measured)
        return push_folder(folder, repo_id, private=private, message=commit_message, is_temporary=True)


def save_model(
    model: Any,
    image_processor: Any,
    directory: str | Path,
    *,
    repo_id: str,
    tokenizer: Any = None,
    measured: str | None = None,
) -> None:
    """Writes a whole model into a directory: weights, config, code, image processor, card, what an endpoint of the Hub has to
    install, and, where given, the tokenizer."""
    # Before the model is saved, which writes a card that knows less where there is none.
    Path(directory).mkdir(parents=True, exist_ok=True)
    write_model_card(
        model,
        directory,
        repo_id=repo_id,
        num_tokens=image_processor.num_tokens,
        placement=image_processor.placement,
        **({} if measured is None else {"measured": measured}),
    )
    model.save_pretrained(directory)
    image_processor.save_pretrained(directory)
    if tokenizer is not None:
        tokenizer.save_pretrained(directory)
    network = getattr(model.config, "network_config", None)  # of a SpotCNN
    needs = [*REQUIREMENTS, *([TIMM] if getattr(network, "model_type", None) == "timm_wrapper" else [])]
    path = Path(directory) / REQUIREMENTS_FILE
    if not path.exists():
        path.write_text("".join(f"{one}\n" for one in needs), encoding="utf-8")


def check_whole_model(model: Any, argument: str) -> None:
    """`ValueError` where it is no SpotViT, or one with adapters of PEFT."""
    if hasattr(model, "merge_and_unload"):
        raise ValueError(f"`{argument}` has adapters: merge it first, with `merge_and_unload()`; got {type(model).__name__}")
    if getattr(getattr(model, "config", None), "model_type", None) not in MODEL_CLASSES:
        raise ValueError(f"`{argument}` must be a SpotViT; got {type(model).__name__}")
