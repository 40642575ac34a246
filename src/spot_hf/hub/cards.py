"""Cards for the Hub, from the templates in `hub_cards/`: of models, by what a config records, and of coordinate data sets, by
the records of the runs that found them."""

import re
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import datasets
from datasets.info import DatasetInfosDict
from datasets.utils.metadata import MetadataConfigs
from huggingface_hub import DatasetCard, DatasetCardData, ModelCard, ModelCardData, SpaceCardData
from jinja2 import Template

from ..coordinates.records import Record
from ..coordinates.schema import describe_objective
from ..data.digits import DIGITS
from ..data.masks import SEGMENTATION
from ..jobs.versions import public_command
from ..placement import BUILT_IN


if TYPE_CHECKING:
    from ..modeling_spot_vit import SpotViTPreTrainedModel


NOT_MEASURED = (
    "Nothing was measured on these weights when this card was written. They may have been trained since they were converted: "
    "then they no longer compute what their source does."
)
# Of a conversion alone, whose weights are the source's.
CONVERTED = (
    "On the full grid, a converted model's {what} equal its source's to 1e-4 of their size in float32: the tests of `spot_hf` "
    "hold every family to that on random weights, ViT and DeiT also on real ones. Accuracy was not measured on this "
    "checkpoint. {caveat}"
)
NEVER_SEEN_FEW = (
    "Weights that were only converted, and not fine-tuned with random placements, have never seen off-grid or few tokens: "
    "expect accuracy to fall steeply below about half of the full grid's tokens."
)
# By the name of a model's head: the task on the Hub, and the class that loads it.
TASKS = {
    "classifier": ("image-classification", "AutoModelForImageClassification"),
    "decode_head": ("image-segmentation", "AutoModelForSemanticSegmentation"),
    "text_model": ("zero-shot-image-classification", "AutoModelForZeroShotImageClassification"),
    "": ("image-feature-extraction", "AutoModel"),
}
NEW_CLASSIFIER = "**The classifier is new and untrained**: the source has none. Train it before use."


def measured_by_conversion(family: str, has_classifier: bool, new_classifier: bool, has_texts: bool = False) -> str:
    """What a freshly converted model's card says was measured, and what not."""
    if family == "spot":
        return (
            "At any positions, its logits equal the released code's for each image alone to 1e-4 in float32, by the tests of "
            "`spot_hf`. Accuracy was not measured on this checkpoint."
        )
    what = "logits per image" if has_texts else "logits" if has_classifier and not new_classifier else "features"
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
    package = Path(__file__).resolve().parents[1]
    return next(folder / name for folder in (package / "hub_cards", package.parents[1] / "hub_cards") if folder.is_dir())


def _head(model: "SpotViTPreTrainedModel") -> str:
    """Which of `TASKS` the model has a head for."""
    return next((name for name in TASKS if name and hasattr(model, name)), "")


def _card_data(model: "SpotViTPreTrainedModel", tags: list[str]) -> ModelCardData:
    source = model.config.source_model or {}
    name = source.get("name")
    return ModelCardData(
        license=source.get("license"),
        library_name="transformers",
        pipeline_tag=TASKS[_head(model)][0],
        tags=["vision", "spot", "sparse-tokens", "custom_code", *tags],
        # Only a Hub id is a link that the Hub can follow.
        base_model=name if name and name.count("/") == 1 else None,
    )


# By the type in a config: what a model is called, and what it is.
KINDS = {
    "spot_vit": ("SpotViT", "A Vision Transformer whose patch tokens sit at continuous, subpixel positions"),
    "spot_cnn": ("SpotCNN", "A convolutional network that sees an image through windows at continuous, subpixel positions"),
}


def _size(config: Any) -> str:
    if config.model_type == "spot_vit":
        return f"{config.num_hidden_layers} layers, width {config.hidden_size}, patch {config.patch_size}"
    network = config.network_config
    return (
        f"`{getattr(network, 'architecture', network.model_type)}`, width {config.hidden_size}, windows of {config.patch_size}"
    )


def _few(config: Any, num_cells: int) -> int:
    """A number of tokens for an example: at most a quarter of the grid's, and one that the model can have."""
    for count in range(max(1, num_cells // 4), 1, -1):
        try:
            config.check_token_count(count, *config.image_height_width)
        except ValueError:
            continue
        return count
    return 1


def _fields(model: "SpotViTPreTrainedModel") -> dict[str, Any]:
    config = model.config
    source = config.source_model or {}
    head = _head(model)
    height, width = config.image_height_width
    rows, columns = height // config.patch_size, width // config.patch_size
    kind, introduction = KINDS[config.model_type]
    title = f"{kind} from {source['name']}" if source.get("name") else kind
    return {
        "title": title,
        "introduction": introduction,
        "source": f"`{source['name']}`" if source.get("name") else f"not converted: trained as a {kind}",
        "revision": f"`{source['revision']}`" if source.get("revision") else "a local copy" if source.get("name") else "none",
        "family": source.get("family") or config.model_type,
        "license": source.get("license") or "not stated by the source: ask there before you share this",
        "architecture": type(model).__name__,
        "num_parameters": f"{sum(p.numel() for p in model.parameters()) / 1e6:.1f} M",
        "size": _size(config),
        "grid": f"{rows} × {columns}",
        "num_cells": rows * columns,
        "image_size": f"{height} × {width}",
        "head": head,
        "model_type": config.model_type,
        "is_sigmoid": head == "text_model" and config.text_activation == "sigmoid",
        "auto_class": TASKS[head][1],
        "few": _few(config, rows * columns),
        "placements": ", ".join(f"`{name}`" for name in BUILT_IN),
    }


# ------------------------------------------------------------------------------------------------- results on a model card


# ------------------------------------------------------------------------------------------------ coordinate data sets

SECTION = (
    "<!-- spot_hf: {name}: generated; what you write outside of such lines stays -->\n{text}\n<!-- spot_hf: end of {name} -->"
)
SECTION_FOUND = r"<!-- spot_hf: {name}: generated;.*?<!-- spot_hf: end of {name} -->"
SPLIT_SECTIONS = re.compile(r"<!-- spot_hf: (.+) (\S+): generated;")
GENERAL = "use"
TAGS = ["spot", "token-coordinates", "vision", "sparse-tokens"]


def coordinates_card(
    existing: str | None,
    records: Mapping[tuple[str, str], Record],
    *,
    license: str | None = None,
    repo_id: str = "DIR_OR_REPO",
) -> str:
    """
    The README of a coordinate data set: brings one up to date, or makes one.

    Args:
        existing (`str`, *optional*): the README that is there. What a person wrote into it stays, and so do other configs.
        records (`dict`): `(config, split)` → the record of its run, as `CONFIG/SPLIT.json` holds it.
        license (`str`, *optional*): of the coordinates; that of the existing README stays.
        repo_id (`str`): what the examples load.

    Returns:
        `str`: Markdown, with the `configs` and `dataset_info` that `load_dataset` reads and verifies.

    Raises:
        `ValueError`: a config's splits have different columns, which `load_dataset` could not read.
    """
    existing = existing or ""
    card = DatasetCard(existing if existing.startswith("---") else f"---\n{{}}\n---\n{existing}")
    data: Any = card.data
    text = card.text.strip()
    configs, infos = MetadataConfigs.from_dataset_card_data(data), DatasetInfosDict.from_dataset_card_data(data)
    for (config, split), record in records.items():
        _add_split(configs, infos, config, split, record)
        text = with_section(text, f"{config} {split}", _render("coordinates_config.md", _config_fields(config, split, record)))
    # At the end, in this order, whether or not they were there: an update that changes nothing is the same text.
    data.pop("configs", None)
    data.pop("dataset_info", None)
    sizes = [split.num_examples for info in infos.values() for split in (info.splits or {}).values()]
    _describe_data(data, sizes, license, [record.parameters for record in records.values()])
    MetadataConfigs(configs).to_dataset_card_data(data)
    DatasetInfosDict(infos).to_dataset_card_data(data)

    # The example is of the first config, whoever pushes: two writers do not undo each other's.
    config, split = min(SPLIT_SECTIONS.findall(text))
    if (config, split) in records:
        parameters = records[config, split].parameters
        segments = parameters.get("task") == SEGMENTATION
        # Only a classifier has predictions; the objective `feature` serves models without a head, too.
        has_classifier = not segments and (
            parameters["objective"] != "feature" or bool(records[config, split].results.num_labelled)
        )
        candidates = parameters.get("candidate_labels")  # of a zero-shot model
        kind = "ImageClassification" if candidates is None else "ZeroShotImageClassification"
        head = "SemanticSegmentation" if segments else kind
        general = {
            "repo_id": repo_id,
            "config": config,
            "split": split,
            "model": _path_or_id(parameters["model"]),
            "auto_class": f"AutoModelFor{head}" if has_classifier or segments else "AutoModel",
            "has_classifier": has_classifier and candidates is None,
            "segments": segments,
            "candidate_labels": candidates,
            "hypothesis_template": parameters.get("hypothesis_template"),
            "label_mapping": parameters.get("label_mapping"),
            "source": _path_or_id(parameters["dataset_name"]),
            "load_images": _load_images(*records[config, split].source, split),
            "license": data.get("license"),
        }
        text = with_section(text, GENERAL, _render("coordinates_card.md", general), first=True)
    return f"---\n{data.to_yaml()}\n---\n\n{text}\n"


def _path_or_id(name: str) -> str:
    """What a reader of the card loads: of what lay in a local directory, the record knows the name alone."""
    return name if name == DIGITS or name.count("/") == 1 else f"PATH/TO/{name}"


def _load_images(name: str, config: str | None, split: str) -> str:
    """The expression that loads the images of a source."""
    if name == DIGITS:
        return f'load_digits()["{split}"]'
    words = [f'"{_path_or_id(name)}"', *([f'"{config}"'] if config else []), f'split="{split}"']
    where = "" if name.count("/") == 1 else "  # your own copy: they lay in a local directory"
    return f"load_dataset({', '.join(words)}){where}"


def _add_split(configs: MetadataConfigs, infos: DatasetInfosDict, config: str, split: str, record: Record) -> None:
    """Enters a split into `configs` and `dataset_info`, and keeps the config's other splits."""
    files = {one["split"]: one["path"] for one in configs.get(config, {}).get("data_files", [])}
    files[split] = f"{config}/{split}-*.parquet"
    data_files = [{"split": name, "path": path} for name, path in files.items()]
    configs[config] = {**configs.get(config, {}), "data_files": data_files}
    features = record.dataset_features
    info = infos.get(config, datasets.DatasetInfo(features=features))
    others = {name: one for name, one in (info.splits or {}).items() if name != split}
    if others and info.features != features:
        raise ValueError(
            f"the config {config!r} has a split {next(iter(others))!r} with other columns than {split!r}: give the new run "
            "another `run_name`, or run it as the other was run"
        )
    results = record.results
    here = datasets.SplitInfo(name=split, num_bytes=results.num_bytes, num_examples=results.num_images)
    splits = datasets.splits.SplitDict({**(info.splits or {}), split: here})  # in the order in which they came
    info = datasets.DatasetInfo(features=features, splits=splits)
    info.dataset_size = sum(one.num_bytes for one in info.splits.values())
    info.download_size = results.download_size if not others else None
    infos[config] = info


def _describe_data(data: DatasetCardData, sizes: list[int], license: str | None, runs: list[dict[str, Any]]) -> None:
    """Metadata by which the Hub finds a data set; what a person has set stays. `runs`: their parameters."""
    if not data.get("license") and license:
        data["license"] = license
    data["tags"] = list(dict.fromkeys([*(data.get("tags") or []), *TAGS]))
    data["task_categories"] = data.get("task_categories") or sorted({
        "image-segmentation" if one.get("task") == SEGMENTATION else "image-classification" for one in runs
    })  # fmt: skip
    sources = [one["dataset_name"] for one in runs]
    hub_sources = [name for name in sources if name.count("/") == 1]  # only a Hub id is a link that the Hub can follow
    if hub_sources:
        data["source_datasets"] = list(dict.fromkeys([*(data.get("source_datasets") or []), *hub_sources]))
    total = sum(sizes)
    names = ["n<1K", "1K<n<10K", "10K<n<100K", "100K<n<1M", "1M<n<10M", "10M<n<100M"]
    data["size_categories"] = [names[min(len(names) - 1, sum(total >= 10**k for k in range(3, 8)))]]


def _config_fields(config: str, split: str, record: Record) -> dict[str, Any]:
    parameters, results = record.parameters, record.results
    return {
        **parameters,
        "config": config,
        "split": split,
        "objective_description": describe_objective(parameters),
        "segments": parameters.get("task") == SEGMENTATION,
        "num_images": results.num_images,
        "num_failed": len(results.failed),
        "mean_steps": results.num_steps / max(1, results.num_images),
        "before": results.accuracy_before,
        "after": results.accuracy_after,
        "losses": results.loss_per_step,
        "picture": f"{config}/{split}.png",
        "device": record.device,
        "versions": ", ".join(f"{name} {version}" for name, version in record.versions.items()),
        "command": public_command(shlex.split(record.command)) if record.command else None,
    }


def _render(template: str, fields: dict[str, Any]) -> str:
    return Template(_template(template).read_text(encoding="utf-8")).render(**fields).strip()


def with_section(text: str, name: str, section: str, first: bool = False) -> str:
    """Replaces a generated section of a Markdown text, or adds it: at the top, or at the end."""
    section = SECTION.format(name=name, text=section)
    pattern = re.compile(SECTION_FOUND.format(name=re.escape(name)), re.DOTALL)
    if pattern.search(text):
        return pattern.sub(lambda _: section, text, count=1)
    return "\n\n".join(part for part in ([section, text] if first else [text, section]) if part)


def space_card(page: Mapping[str, Any], headers: Mapping[str, str]) -> str:
    """
    The README of a static Space with the page of `spot-hf demo`.

    Args:
        page: its `site.json`.
        headers: of HTTP, with which the Space is served.
    """
    data = SpaceCardData(
        title=f"{page['title']}: few tokens",
        sdk="static",
        app_file="index.html",
        emoji="\N{DIRECT HIT}",
        colorFrom="yellow",
        colorTo="pink",
        pinned=False,
        short_description="Drag a Vision Transformer's tokens",
        tags=["spot", "vision-transformer"],
        models=[page["url"].removeprefix("https://huggingface.co/")] if page["url"] else None,
        custom_headers={name.lower(): value for name, value in headers.items()},
    )
    return f"---\n{data}\n---\n\n{_render('demo_card.md', dict(page))}\n"
