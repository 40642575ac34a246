"""Checkpoints that people already have → SpotViT: reads the source, assembles a model and its image processor, and writes them
with a card and a report.

One rename table per family (`families.py`); tensors are read by the names in the checkpoint's files (`sources.py`), so that no
class of the source model is needed, and become parameters part by part (`assembly.py`).
"""

import json
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from transformers.utils import is_timm_available

from ..configuration_spot_cnn import SpotCNNConfig
from ..configuration_spot_vit import SpotViTConfig
from ..hub.cards import measured_by_conversion
from ..hub.models import save_model
from ..hub.uploads import check_push, push_folder
from ..hub.verification import verify_model
from ..image_processing_spot_vit import SpotViTImageProcessor
from ..jobs.files import CONVERSION_REPORT, check_output_dir, replaced_directory
from ..modeling_spot_vit import SpotViTForImageClassification, SpotViTModel, SpotViTPreTrainedModel
from ..placement import check_placement
from ..zero_shot_spot_vit import SpotViTForZeroShotImageClassification
from .arguments import ConversionArguments, ConvertArguments
from .assembly import NO_CLASSIFIER, Assembly, load_state, match_names
from .errors import ConversionError
from .families import FAMILIES, detect_family
from .family import Family
from .networks import (
    assemble_network,
    default_size,
    describe_network,
    is_network,
    load_network,
    name_architecture,
    read_network_config,
)
from .recipes import default_recipe, recipe_size, timm_pretrained_cfg
from .report import ConversionReport
from .sources import Source, Tensors, load_source
from .texts import read_texts


logger = logging.getLogger(__name__)


def convert_checkpoint(
    source_model: str,
    output_dir: str | Path | None = None,
    *,
    revision: str | None = None,
    token: str | None = None,
    num_tokens: int | None = None,
    placement: str | None = None,
    image_size: int | Sequence[int] | None = None,
    num_labels: int | None = None,
    num_attention_heads: int | None = None,
    architecture: str | None = None,
    patch_size: int | None = None,
    seed: int = 0,
    overwrite_output_dir: bool = False,
    repo_id: str | None = None,
) -> ConversionReport:
    """
    Converts a Vision Transformer's checkpoint, such as ViT's, DINOv3's, CLIP's or SigLIP's, into a SpotViT that gives the same
    outputs on the full grid, or one of the released SPoT checkpoints into one that gives the same logits everywhere; and a
    convolutional classifier of stride 32, of transformers or timm, into a SpotCNN that gives the same logits on the full grid.

    Args:
        source_model (`str`): a Hub id, a local directory, or a file of weights.
        output_dir (`str`, *optional*): where to write the model, image processor, remote code, card and
            `conversion_report.json`; nothing is written without it, or on an error.
        revision (`str`, *optional*): branch, tag or commit of a Hub id.
        token (`str`, *optional*): of the Hub.
        num_tokens (`int`, *optional*), placement (`str`, *optional*): saved defaults of the image processor; the full grid
            where neither is given.
        image_size (`int` or `[height, width]`, *optional*): of the images in pixels, where not the source's: the model's
            position table is interpolated as the source's own class does with `interpolate_pos_encoding=True`, and the image
            processor makes images of that size.
        num_labels (`int`, *optional*): gives a source without a classifier a freshly initialised one.
        num_attention_heads (`int`, *optional*): of a file without a config, where they are not 64 wide.
        architecture (`str`, *optional*): timm's name of a convolutional network, of a file without a config.
        patch_size (`int`, *optional*): of a convolutional network, pixels of a window's side, a multiple of 32.
        seed (`int`): of that initialisation.
        overwrite_output_dir (`bool`): replace what is in `output_dir`.
        repo_id (`str`, *optional*): the name under which the card's examples load the result; that of `output_dir` by default.

    Returns:
        [`ConversionReport`], with `model` and `image_processor`.

    Raises:
        [`ConversionError`]: the source cannot be had, is of no known family, or lacks a tensor, has one too many or one of
            a wrong shape. `ValueError`: another argument is wrong.
    """
    arguments = ConversionArguments(
        revision=revision,
        num_tokens=num_tokens,
        placement=placement,
        image_size=list(image_size) if isinstance(image_size, Sequence) else None if image_size is None else [image_size],
        num_labels=num_labels,
        num_attention_heads=num_attention_heads,
        architecture=architecture,
        patch_size=patch_size,
        seed=seed,
        overwrite_output_dir=overwrite_output_dir,
    )
    arguments.check()
    if output_dir is not None:
        check_output_dir(output_dir, overwrite_output_dir, inputs=[source_model])
    source = load_source(source_model, revision, token)
    if num_attention_heads is not None and source.config is not None:
        raise ValueError(f"`num_attention_heads` is for a file without a config; {source.name!r} has one")
    source.num_attention_heads = num_attention_heads
    if architecture is not None:
        name_architecture(source, architecture)
    report = _convert(source, arguments)
    if output_dir is not None:
        with replaced_directory(output_dir, overwrite_output_dir, inputs=[source_model]) as temporary:
            _write(report, temporary, repo_id or Path(output_dir).resolve().name)  # no path of this machine
        report.output_dir = str(output_dir)
    return report


def run_conversion(arguments: ConvertArguments) -> ConversionReport:
    """`spot-hf convert`: [`convert_checkpoint`] by its arguments; and the push, where one is asked for."""
    check_push(arguments.push_to_hub, "hub_model_id", arguments.hub_model_id)
    report = convert_checkpoint(
        arguments.source_model, arguments.output_dir, repo_id=arguments.hub_model_id, **arguments.conversion()
    )
    logger.info(report.summary())
    if arguments.hub_model_id is not None:
        url = push_folder(
            arguments.output_dir,
            arguments.hub_model_id,
            private=arguments.hub_private,
            message=f"SpotViT converted from {report.source_model}",
        )
        logger.info("pushed to   %s", url)
    return report


def _convert(source: Source, arguments: ConversionArguments) -> ConversionReport:
    if is_network(source):
        return _convert_network(source, arguments)
    if arguments.patch_size is not None:
        raise ValueError(f"`patch_size` is for convolutional networks; {source.name!r} is none; got {arguments.patch_size}")
    family_name = detect_family(source)
    family = FAMILIES[family_name]
    notes = list(source.notes)
    described = family.describe(source)
    arguments.check_image_size(described["patch_size"])
    used, skipped = match_names(source, family)
    texts = None if arguments.num_labels is not None else read_texts(source)
    if texts is not None:
        described.update(texts.fields)
        used.update({name: name for name in texts.names})
        skipped = {name: reason for name, reason in skipped.items() if name not in used}
    parts = {target: source.tensors[name].float() for name, target in used.items()}
    has_head = any(target.startswith("classifier.") for target in parts)
    if has_head and arguments.num_labels is not None:
        raise ValueError(
            f"`num_labels` is for a source without a classifier; {source.name!r} has one of "
            f"{parts['classifier.weight'].shape[0]} labels; got {arguments.num_labels}"
        )
    described.update(_describe_labels(source, parts, arguments.num_labels, notes))
    if not has_head and arguments.num_labels is not None and family_name.startswith("dinov2"):
        described["pooling"] = "cls_mean"  # what the family's own classifiers see
    config = _build_config(described, source, family_name)
    table_size = config.position_rows_columns  # of the table as it lies in the source
    _set_image_size(config, source, family, arguments.height_width, notes)
    image_processor = _build_image_processor(source, config, arguments, notes)

    names = {target: source.file_names[name] for name, target in used.items()}
    assembly = Assembly(parts, names, config, family, source)
    assembly.run(table_size)
    with torch.random.fork_rng():
        torch.manual_seed(arguments.seed)
        with_classifier = has_head or arguments.num_labels is not None
        headless = SpotViTModel if texts is None else SpotViTForZeroShotImageClassification
        model: SpotViTPreTrainedModel = (SpotViTForImageClassification if with_classifier else headless)(config)
    missing = load_state(model, assembly.state, assembly.origins, source, fresh_head=with_classifier and not has_head)
    used = {source.file_names[name]: target for name, target in used.items()}
    skipped = {source.file_names[name]: reason for name, reason in skipped.items()}
    tokenizer = None if texts is None else texts.tokenizer
    return _report(source, family_name, model, image_processor, used, skipped, missing, notes, tokenizer)


def _convert_network(source: Source, arguments: ConversionArguments) -> ConversionReport:
    """Of a convolutional classifier: its network as it is, and its classifier beside it."""
    notes, network_config = list(source.notes), read_network_config(source)
    height, width = arguments.height_width or recipe_size(source.recipe) or default_size(network_config)
    family = network_config.model_type
    config = describe_network(
        network_config,
        image_size=height if height == width else [height, width],
        source_model={"name": source.name, "revision": source.revision, "family": family, "license": source.license},
        **({} if arguments.patch_size is None else {"patch_size": arguments.patch_size}),
    )
    arguments.check_image_size(config.patch_size)
    if arguments.num_tokens is not None:
        config.check_token_count(arguments.num_tokens, height, width)
    if height % config.patch_size or width % config.patch_size:
        notes.append(
            f"{height} × {width} pixels are no whole windows of {config.patch_size}: without coordinates the network sees all "
            "of them, as the source does; windows on the grid leave out the last rows and columns"
        )
    loaded = load_network(source, network_config)
    if loaded.has_classifier and arguments.num_labels is not None:
        raise ValueError(
            f"`num_labels` is for a source without a classifier; {source.name!r} has one of "
            f"{loaded.network.config.num_labels} labels; got {arguments.num_labels}"
        )
    labels = _describe_labels(source, loaded.classifier, arguments.num_labels, notes)
    for name, value in labels.items():
        setattr(config, name, value)
    image_processor = _build_image_processor(source, config, arguments, notes)
    with torch.random.fork_rng():
        torch.manual_seed(arguments.seed)
        model = assemble_network(loaded, config, with_classifier=bool(labels))
    new = ("classifier.weight", "classifier.bias") if labels and not loaded.has_classifier else ()
    return _report(source, family, model, image_processor, loaded.used, {}, dict.fromkeys(new, NO_CLASSIFIER), notes)


def _report(
    source: Source,
    family: str,
    model: Any,
    image_processor: SpotViTImageProcessor,
    used: dict[str, str],
    skipped: dict[str, str],
    missing: dict[str, str],
    notes: list[str],
    tokenizer: Any = None,
) -> ConversionReport:
    return ConversionReport(
        source_model=source.name,
        revision=source.revision,
        family=family,
        model_type=(source.config or {}).get("model_type"),
        license=source.license,
        architecture=type(model).__name__,
        num_parameters=sum(parameter.numel() for parameter in model.parameters()),
        used=used,
        skipped=skipped,
        missing=missing,
        notes=notes,
        model=model.eval(),
        image_processor=image_processor,
        tokenizer=tokenizer,
    )


def _describe_labels(source: Source, parts: Tensors, num_labels: int | None, notes: list[str]) -> dict[str, Any]:
    """`id2label` for the classifier's rows: the source's, timm's for ImageNet, or numbered."""
    if num_labels is None:
        heads = [part for name, part in parts.items() if name.startswith("classifier.")]
        if not heads:
            return {}
        num_labels = heads[0].shape[0]
    config = source.config or {}
    id2label = {int(i): str(label) for i, label in (config.get("id2label") or {}).items()}
    pretrained = timm_pretrained_cfg(config)
    label_names = config.get("label_names") or pretrained.get("label_names")
    if not id2label and label_names:
        descriptions = config.get("label_descriptions") or pretrained.get("label_descriptions") or {}
        numbered = label_names.items() if isinstance(label_names, dict) else enumerate(label_names)
        id2label = {int(i): str(descriptions.get(name, name)) for i, name in numbered}
    if not id2label and num_labels == 1000 and config.get("architecture") and is_timm_available():
        from timm.data import ImageNetInfo

        id2label = dict(enumerate(ImageNetInfo().label_descriptions()))
    if sorted(id2label) != list(range(num_labels)):
        notes.append(f"no names for the {num_labels} labels in the source: they are numbered")
        id2label = {i: f"LABEL_{i}" for i in range(num_labels)}
    return {"id2label": id2label, "label2id": {label: i for i, label in id2label.items()}}


def _set_image_size(
    config: SpotViTConfig, source: Source, family: Family, height_width: tuple[int, int] | None, notes: list[str]
) -> None:
    """The images that the model is for: of the size that was asked for, else of that of the source's recipe where the source
    interpolates its table to that, else of that in the source's config."""
    if config.use_relative_position_bias and height_width not in (None, config.image_height_width):
        raise ValueError(
            f"`image_size` must be that of the source, as the relative positions of {source.name!r} are for that size; got "
            f"{list(height_width or ())}, and the source has {list(config.image_height_width)}"
        )
    if height_width is None:
        height_width = (family.follows_recipe and recipe_size(source.recipe)) or config.image_height_width
    config.position_interpolation = dict(family.interpolation) if family.interpolation else None
    (rows, columns), (height, width) = config.position_rows_columns, height_width
    config.set_image_size(height, width)
    if config.position_source_grid_size is not None:
        notes.append(
            f"the position table was interpolated from {rows} × {columns} to {height // config.patch_size} × "
            f"{width // config.patch_size}, as the source does for images of {height} × {width} pixels"
        )


def _build_config(described: dict[str, Any], source: Source, family_name: str) -> SpotViTConfig:
    source_model = {"name": source.name, "revision": source.revision, "family": family_name, "license": source.license}
    try:
        return SpotViTConfig(**described, source_model=source_model)
    except (TypeError, ValueError, StrictDataclassError) as error:
        reason = str(error.__cause__ or error).strip().splitlines()[-1].strip()
        raise ConversionError(f"config.json of {source.name}: {reason}") from None


def _build_image_processor(
    source: Source, config: SpotViTConfig | SpotCNNConfig, arguments: ConversionArguments, notes: list[str]
) -> SpotViTImageProcessor:
    """With the source's recipe, or a usual one, for images of the size that was asked for."""
    num_tokens, placement = arguments.num_tokens, arguments.placement
    if num_tokens is not None or placement is not None:
        height, width = arguments.height_width or recipe_size(source.recipe) or config.image_height_width
        num_cells = (height // config.patch_size) * (width // config.patch_size)
        check_placement(placement or "isotropic", num_tokens, num_cells)
    recipe = source.recipe
    if recipe is None:
        notes.append("no preprocessing recipe in the source: short side to size / 0.875, bicubic, ImageNet mean and std")
        recipe = default_recipe(*config.image_height_width)
    image_processor = SpotViTImageProcessor(**recipe, patch_size=config.patch_size, num_tokens=num_tokens, placement=placement)
    return image_processor if arguments.height_width is None else image_processor.resized(*arguments.height_width)


def _write(report: ConversionReport, directory: Path, repo_id: str) -> None:
    """The model with its code and card, the image processor and the report."""
    new_classifier = bool(report.missing)
    measured = measured_by_conversion(
        report.family,
        hasattr(report.model, "classifier"),
        new_classifier=new_classifier,
        has_texts=report.tokenizer is not None,
    )
    save_model(report.model, report.image_processor, directory, tokenizer=report.tokenizer, repo_id=repo_id, measured=measured)
    # What is on the disk, as a user loads it, and not only what is in memory.
    found = verify_model(str(directory))
    found.name = "read again from the disk"
    if not found.equal:
        raise ConversionError(f"{report.source_model!r} was converted, but what was written computes something else: {found}")
    report.verification = str(found)
    (directory / CONVERSION_REPORT).write_text(json.dumps(report.to_dict(), indent=2) + "\n", encoding="utf-8")


__all__ = ["ConversionReport", "convert_checkpoint"]
