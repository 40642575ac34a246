"""What a source of images and texts has beside its encoder of images: text tower, projections, scale and bias of the logits,
and tokenizer. They stay as they are."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import AutoTokenizer

from .errors import ConversionError
from .sources import TOKENIZER_FILES, Source
from .transformers_families import ACTIVATIONS, PARTS_OF_TEXTS, read_both_configs


FIRST = "text_model.embeddings.token_embedding.weight"


@dataclass(frozen=True)
class Texts:
    """
    Attributes:
        fields (`dict`): of the zero-shot model's config.
        names (`list[str]`): of its parameters, in the source and in the model.
        tokenizer: the source's own.
    """

    fields: dict[str, Any]
    names: list[str]
    tokenizer: Any


def read_texts(source: Source) -> Texts | None:
    """
    What a source says of texts; `None` where it has one tower only, or a classifier on that.

    Raises:
        [`ConversionError`]: there is no text tower, or no tokenizer that it can have been trained with.
    """
    config = source.config or {}
    model_type = config.get("model_type")
    if model_type not in ACTIVATIONS or any(name.startswith("classifier.") for name in source.tensors):
        return None
    names = [name for name in source.tensors if name.startswith(PARTS_OF_TEXTS) and not name.endswith("position_ids")]
    if FIRST not in names:
        raise ConversionError(
            f"missing tensor `{FIRST}` in {source.name}: a {model_type!r} without a text tower classifies nothing. Give "
            "`num_labels` for a classifier on its encoder of images"
        )
    both = read_both_configs(source)
    text_config = both.text_config
    text_config.dtype = None  # the weights' own, as of the encoder of images
    tokenizer = _read_tokenizer(source)
    known = len(source.tensors[FIRST])
    if len(tokenizer) > known:
        raise ConversionError(
            f"the tokenizer of {source.name} has {len(tokenizer)} tokens, its text tower {known}: they do not belong together"
        )
    activation = ACTIVATIONS[model_type]
    of_texts, of_images = getattr(text_config, "projection_size", None), both.vision_config.hidden_size
    if activation == "sigmoid" and of_texts != of_images:
        raise ConversionError(f"text features of {source.name} are {of_texts} wide, those of images {of_images}")
    fields = {
        "text_config": text_config,
        "text_activation": activation,
        "projection_dim": both.projection_dim if activation == "softmax" else None,
    }
    return Texts(fields, names, tokenizer)


def _read_tokenizer(source: Source) -> Any:
    directory: Path | None = source.directory
    if directory is None or not any((directory / name).exists() for name in TOKENIZER_FILES):
        raise ConversionError(
            f"{source.name} holds no tokenizer, which a zero-shot model needs: none of {', '.join(TOKENIZER_FILES)}"
        )
    try:
        return AutoTokenizer.from_pretrained(directory, trust_remote_code=False)
    except Exception as error:  # whatever a tokenizer makes of a broken file, or of a package that it lacks
        lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
        raise ConversionError(f"cannot read the tokenizer of {source.name}: {lines[0]}") from None
