"""Cards for the Hub, from what a model's config records and the templates in `hub_cards/`."""

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from huggingface_hub import ModelCard, ModelCardData

from .placement import PLACEMENTS


if TYPE_CHECKING:
    from .modeling_spot_vit import SpotViTPreTrainedModel


NOT_MEASURED = (
    "Nothing was measured on these weights when this card was written. They may have been trained since they were converted: "
    "then they no longer compute what their source does."
)
# Of a conversion alone, whose weights are the source's.
CONVERTED = (
    "On the full grid, a converted model's {what} equal its source's to 1e-4 in float32: the tests of `spot_hf` hold every "
    "family to that, on real weights and random ones. Accuracy was not measured on this checkpoint. {caveat}"
)
NEVER_SEEN_FEW = (
    "Weights that were only converted, and not fine-tuned with random placements, have never seen off-grid or few tokens: "
    "expect accuracy to fall steeply below about half of the full grid's tokens."
)
NEW_CLASSIFIER = "**The classifier is new and untrained**: the source has none. Train it before use."


def measured_by_conversion(family: str, has_classifier: bool, new_classifier: bool) -> str:
    """What a freshly converted model's card says was measured, and what not."""
    if family == "spot":
        return (
            "At any positions, its logits equal the released code's for each image alone to 1e-4 in float32, by the tests of "
            "`spot_hf`. Accuracy was not measured on this checkpoint."
        )
    what = "logits" if has_classifier and not new_classifier else "features"
    return CONVERTED.format(what=what, caveat=NEW_CLASSIFIER if new_classifier else NEVER_SEEN_FEW)


# `transformers.utils.hub.create_and_tag_model_card` puts this in.
EMPTY_DESCRIPTION = (
    "This is the model card of a 🤗 transformers model that has been pushed on the Hub. This model card has been "
    "automatically generated."
)


def write_model_card(
    model: "SpotViTPreTrainedModel",
    directory: str | Path,
    *,
    repo_id: str = "PATH_OR_REPO",
    num_tokens: int | None = None,
    placement: str | None = None,
    measured: str = NOT_MEASURED,
) -> Path | None:
    """
    Writes `README.md` into a saved model's directory, unless there is one: a person's own text stays. Only the empty
    template that transformers pushes where there is no card is replaced; its tags are kept.

    Args:
        model ([`SpotViTPreTrainedModel`]): the model that is saved there.
        directory (`str`): where.
        repo_id (`str`): what the examples load.
        num_tokens (`int`, *optional*), placement (`str`, *optional*): the saved defaults of the image processor.
        measured (`str`): Markdown on what was measured and what was not.

    Returns:
        `Path` of the card that was written, or `None`.
    """
    path = Path(directory) / "README.md"
    tags: list[str] = []
    if path.exists():
        if not _is_empty_template(path):
            return None
        tags = ModelCard.load(path).data.tags or []
    saved = (
        f"{num_tokens or 'all'} tokens, {placement or 'isotropic'}"
        if num_tokens or placement
        else "the full grid unless changed"
    )
    card = ModelCard.from_template(
        _card_data(model, tags),
        template_path=str(_template("model_card.md")),
        repo_id=repo_id,
        saved_placement=saved,
        measured=measured,
        **_fields(model),
    )
    card.save(path)
    return path


def _is_empty_template(path: Path) -> bool:
    """Whether it is the card of `push_to_hub` for a repository without one, with nothing filled in."""
    empty = ModelCard.from_template(ModelCardData(), model_description=EMPTY_DESCRIPTION).text
    return re.sub(r"\A---\n.*?\n---\n", "", path.read_text(encoding="utf-8"), flags=re.DOTALL).strip() == empty.strip()


def _template(name: str) -> Path:
    """`hub_cards/` lies inside an installed package, and at the top of a checkout (an editable install)."""
    here = Path(__file__).resolve().parent
    return next(folder / name for folder in (here / "hub_cards", here.parents[1] / "hub_cards") if folder.is_dir())


def _card_data(model: "SpotViTPreTrainedModel", tags: list[str]) -> ModelCardData:
    source = model.config.source_model or {}
    name = source.get("name")
    has_classifier = hasattr(model, "classifier")
    return ModelCardData(
        license=source.get("license"),
        library_name="transformers",
        pipeline_tag="image-classification" if has_classifier else "image-feature-extraction",
        tags=["vision", "spot", "sparse-tokens", "custom_code", *tags],
        # Only a Hub id is a link that the Hub can follow.
        base_model=name if name and name.count("/") == 1 else None,
    )


def _fields(model: "SpotViTPreTrainedModel") -> dict[str, Any]:
    config = model.config
    source = config.source_model or {}
    has_classifier = hasattr(model, "classifier")
    height, width = config.image_height_width
    rows, columns = height // config.patch_size, width // config.patch_size
    few = max(1, rows * columns // 4)
    title = f"SpotViT from {source['name']}" if source.get("name") else "SpotViT"
    return {
        "title": title,
        "source": f"`{source['name']}`" if source.get("name") else "not converted: trained as a SpotViT",
        "revision": f"`{source['revision']}`" if source.get("revision") else "a local copy" if source.get("name") else "none",
        "family": source.get("family") or "spot_vit",
        "license": source.get("license") or "not stated by the source: ask there before you share this",
        "architecture": type(model).__name__,
        "num_parameters": f"{sum(p.numel() for p in model.parameters()) / 1e6:.1f} M",
        "num_layers": config.num_hidden_layers,
        "hidden_size": config.hidden_size,
        "patch_size": config.patch_size,
        "grid": f"{rows} × {columns}",
        "num_cells": rows * columns,
        "image_size": f"{height} × {width}",
        "has_classifier": has_classifier,
        "auto_class": "AutoModelForImageClassification" if has_classifier else "AutoModel",
        "few": few,
        "placements": ", ".join(f"`{name}`" for name in PLACEMENTS),
    }
