"""Convolutional classifiers of transformers and timm → SpotCNN: the network as it is, and its classifier beside it.

Of a network, nothing has to be known but that its last feature map has one cell for 32 × 32 pixels, and that its logits are a
linear map of its pooled feature. Both are tried out rather than listed.
"""

import copy
from dataclasses import dataclass, field
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from torch import nn
from transformers import (
    MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING,
    AutoConfig,
    AutoModel,
    AutoModelForImageClassification,
    PreTrainedModel,
    TimmWrapperConfig,
)
from transformers.utils import is_timm_available

from ..configuration_spot_cnn import STRIDE, SpotCNNConfig
from ..modeling_spot import SpotPreTrainedModel
from ..modeling_spot_cnn import SpotCNNForImageClassification, SpotCNNModel
from .errors import ConversionError
from .families import find_family, unknown_family
from .recipes import timm_recipe
from .sources import Source, Tensors


PROBE = 2 * STRIDE, 3 * STRIDE  # height and width of an image that a network is tried with
# Of the largest logit, by which those of source and result may differ: the same operations, summed up in another order.
TOLERANCE = 1e-4
ANOTHER_CLASSIFIER = "a SpotCNN has a linear classifier on the network's pooled feature; that of {name} is another"


@dataclass
class LoadedNetwork:
    """A source's own class with its weights: whether these have a classifier, the names in its files, and what became of
    them."""

    network: PreTrainedModel
    has_classifier: bool = True
    used: dict[str, str] = field(default_factory=dict)

    @property
    def linear(self) -> nn.Linear | None:
        """The last linear layer of its classifier."""
        timm_model = getattr(self.network, "timm_model", None)
        classifier = timm_model.get_classifier() if timm_model is not None else getattr(self.network, "classifier", None)
        modules = classifier.modules() if isinstance(classifier, nn.Module) else []
        return next((one for one in reversed([*modules]) if isinstance(one, nn.Linear)), None)

    @property
    def classifier(self) -> Tensors:
        """Its classifier under SpotCNN's names; nothing without one."""
        if not self.has_classifier:
            return {}
        if self.linear is None:
            raise ConversionError(ANOTHER_CLASSIFIER.format(name=type(self.network).__name__))
        weight, bias = self.linear.weight.data, self.linear.bias
        return {"classifier.weight": weight, "classifier.bias": weight.new_zeros(len(weight)) if bias is None else bias.data}


def wrap_network(network: PreTrainedModel, **config: Any) -> SpotCNNForImageClassification:
    """
    A SpotCNN around a classifier that is in memory.

    Args:
        network (`PreTrainedModel`): an image classifier of transformers, or `TimmWrapperForImageClassification`: of stride 32,
            with a linear classifier on its pooled feature. Is not changed, and shares no weights with the result.
        config: further fields of [`SpotCNNConfig`], such as `patch_size` and `image_size`.

    Returns:
        [`SpotCNNForImageClassification`], in eval mode: on the full grid it gives the network's logits.

    Raises:
        [`ConversionError`]: a network of another kind.
    """
    if isinstance(network, SpotPreTrainedModel):
        raise ConversionError(f"`network` must be a classifier of transformers' or timm's; {type(network).__name__} is ours")
    labels = {"id2label": dict(network.config.id2label), "label2id": dict(network.config.label2id or {})}
    described = describe_network(network.config, **{**labels, **config})
    return assemble_network(LoadedNetwork(network), described, with_classifier=True)  # type: ignore[return-value]


def describe_network(network_config: Any, **config: Any) -> SpotCNNConfig:
    """The configuration of a SpotCNN around such a network; [`ConversionError`] where it is of another stride, or no
    convolutional network."""
    network_config = copy.deepcopy(network_config)
    network_config.num_labels, network_config.dtype = 0, None  # the classifier is SpotCNN's own, and so is the dtype
    name = getattr(network_config, "architecture", network_config.model_type)
    shape = _size(PROBE)
    try:
        with torch.device("meta"):  # shapes alone
            network = AutoModel.from_config(network_config).eval()
            first = next((module for module in network.modules() if isinstance(module, nn.Conv2d)), None)
            num_channels = 3 if first is None else first.in_channels
            outputs = network(torch.zeros(1, num_channels, *PROBE))
            features, pooled = outputs.last_hidden_state, outputs.pooler_output
    except Exception as error:  # whatever a network does not like about its config, or about an image's size
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ConversionError(
            f"a SpotCNN needs a network for images of any size; of {shape} pixels {name!r} says: {reason}"
        ) from None
    if features.ndim != 4 or pooled is None:
        got = tuple(features.shape)
        raise ConversionError(f"a SpotCNN needs a network that pools a feature map; {name!r} gives {got} of {shape} pixels")
    cells = tuple(side // STRIDE for side in PROBE)
    if tuple(features.shape[2:]) != cells:
        raise ConversionError(
            f"a SpotCNN needs a network of stride {STRIDE}, with {_size(cells)} cells for {shape} pixels; {name!r} has "
            f"{_size(features.shape[2:])}"
        )
    described = {"hidden_size": pooled.flatten(1).shape[1], "num_channels": num_channels, **config}
    try:
        return SpotCNNConfig(network_config=network_config, **described)
    except StrictDataclassError as error:
        raise ValueError(str(error.__cause__ or error).strip().splitlines()[-1].strip()) from None


def assemble_network(
    loaded: LoadedNetwork, config: SpotCNNConfig, with_classifier: bool
) -> SpotCNNForImageClassification | SpotCNNModel:
    """The model with a network's weights, and those of its classifier, where it has one; [`ConversionError`] where its logits
    are then not the network's."""
    network = loaded.network
    model = (SpotCNNForImageClassification if with_classifier else SpotCNNModel)(config).eval()
    inner = model.base_model.network
    own, prefix = network.state_dict(), f"{network.base_model_prefix}."
    inner.load_state_dict({name: own[name if name in own else prefix + name] for name in inner.state_dict()})
    if not (loaded.has_classifier and isinstance(model, SpotCNNForImageClassification)):
        return model
    weights = {name.removeprefix("classifier."): tensor for name, tensor in loaded.classifier.items()}
    if weights["weight"].shape != model.classifier.weight.shape:
        raise ConversionError(ANOTHER_CLASSIFIER.format(name=type(network).__name__))
    model.classifier.load_state_dict(weights)
    size = [max(side, config.patch_size) for side in PROBE]
    pixel_values = torch.randn(1, config.num_channels, *size, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = copy.deepcopy(network).float().cpu().eval()(pixel_values).logits
        logits = model.classifier(model.base_model(pixel_values).pooler_output)
    if not (logits - expected).abs().max() <= TOLERANCE * max(1.0, expected.abs().max().item()):
        raise ConversionError(ANOTHER_CLASSIFIER.format(name=type(network).__name__))
    return model


def _size(size: Any) -> str:
    return " × ".join(map(str, size))


# ------------------------------------------------------------------------------------------------------------ from sources


def name_architecture(source: Source, architecture: str) -> None:
    """Of a file of weights without a config: that it is timm's network of that name, and its recipe."""
    if source.config is not None:
        raise ValueError(f"`architecture` is for a file without a config; {source.name!r} has one; got {architecture!r}")
    if not is_timm_available():
        raise ConversionError(f"`architecture` {architecture!r} of {source.name!r} needs timm, which is not installed")
    from timm.models import get_pretrained_cfg, is_model

    if not is_model(architecture):
        raise ValueError(f"`architecture` must be a network of timm's; got {architecture!r}")
    found: Any = get_pretrained_cfg(architecture)
    described = {} if found is None else found.to_dict()
    named = described.get("classifier")
    named = named[0] if isinstance(named, (list, tuple)) else named  # of several, as of a distilled one
    classifiers = [name for name in (f"{named}.weight", "_fc.weight") if name in source.tensors]
    if not classifiers:
        raise ConversionError(f"missing tensor `{named}.weight` in {source.name}")
    num_classes = len(source.tensors[classifiers[0]])
    source.config = {"architecture": architecture, "num_classes": num_classes, "pretrained_cfg": described}
    source.recipe = timm_recipe(described, source.notes)


def is_network(source: Source) -> bool:
    """Whether it says that it is an image classifier of transformers or a network of timm, and is no ViT that we know."""
    config = source.config or {}
    model_type = config.get("model_type")
    if find_family(source) is not None:
        return False
    if model_type in ("spot_vit", "spot_cnn"):
        raise ConversionError(f"{source.name!r} was converted already: it is a {model_type!r}")
    if model_type in (None, "timm_wrapper"):
        return isinstance(config.get("architecture"), str)
    try:
        return type(AutoConfig.for_model(model_type)) in MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING
    except (KeyError, ValueError):
        return False


def read_network_config(source: Source) -> Any:
    """Transformers' configuration of a source for which [`is_network`] is true; [`ConversionError`] where it is none of a
    convolutional network of stride 32."""
    config = dict(source.config or {})
    try:
        if config.get("model_type") not in (None, "timm_wrapper"):
            network_config = AutoConfig.for_model(**config)
        elif is_timm_available():
            network_config = TimmWrapperConfig.from_dict(config)
            given = network_config.model_args or {}  # transformers passes `num_classes` on by itself
            network_config.model_args = {name: value for name, value in given.items() if name != "num_classes"}
        else:
            raise ConversionError(f"{config['architecture']!r} is timm's, which is not installed")
        describe_network(network_config)
    except (ConversionError, TypeError, ValueError, StrictDataclassError) as error:
        reason = str(error.__cause__ or error).strip().splitlines()[-1].strip()
        raise ConversionError(f"{unknown_family(source)}. {reason}") from None
    return network_config


def default_size(network_config: Any) -> tuple[int, int]:
    """`(height, width)` of the images that a network without a recipe is for."""
    size = getattr(network_config, "image_size", None) or 224
    return (size, size) if isinstance(size, int) else (size[0], size[1])


def load_network(source: Source, network_config: Any) -> LoadedNetwork:
    """[`ConversionError`] where tensors are missing, unknown or of another shape, but for a missing classifier."""
    with torch.device("meta"):
        empty = AutoModelForImageClassification.from_config(network_config)
    names = {name: name for name in source.file_names.values()}
    if "_conv_stem.weight" in names:
        names = as_timm_calls(list(names), list(empty.timm_model.state_dict()), source.name)
    tensors = {names[file_name]: source.tensors[name] for name, file_name in source.file_names.items()}
    network, report = type(empty).from_pretrained(
        None,
        config=network_config,
        state_dict={name: one.float() if one.is_floating_point() else one for name, one in tensors.items()},
        dtype=torch.float32,
        output_loading_info=True,
        ignore_mismatched_sizes=True,
    )
    for name, saved, expected in sorted(report["mismatched_keys"]):
        raise ConversionError(
            f"wrong shape of tensor `{name}` in {source.name}: {tuple(saved)} where its config says {tuple(expected)}"
        )
    loaded = LoadedNetwork(network.eval())
    parameters = [] if loaded.linear is None else list(loaded.linear.parameters())
    of_classifier = {name for name, one in network.named_parameters() if any(one is other for other in parameters)}
    # How many batches a norm has seen is for training alone, and not in every file.
    missing = {name for name in report["missing_keys"] if not name.endswith(".num_batches_tracked")}
    unexpected = set(report["unexpected_keys"])
    if of_classifier and of_classifier <= missing:
        loaded.has_classifier, missing = False, missing - of_classifier
    for kind, lost in (("missing", sorted(missing)), ("unexpected", sorted(unexpected))):
        if lost:
            more = f" and {len(lost) - 1} more" if len(lost) > 1 else ""
            raise ConversionError(f"{kind} tensor `{lost[0]}`{more} in {source.name}")
    with torch.device("meta"):
        inner = AutoModel.from_config(network_config).state_dict()  # what a SpotCNN has
    own, prefix = network.state_dict(), f"{network.base_model_prefix}."
    for file_name, short in names.items():
        name = short if short in own else prefix + short
        kept = name if name in inner else name.removeprefix(prefix)
        loaded.used[file_name] = f"classifier.{name.rsplit('.')[-1]}" if name in of_classifier else f"network.{kept}"
    return loaded


# What the package `efficientnet_pytorch` and its relatives call the parts of a block with and without an expansion.
EXPANDED = {
    "_expand_conv": "conv_pw", "_bn0": "bn1", "_depthwise_conv": "conv_dw", "_bn1": "bn2", "_project_conv": "conv_pwl",
    "_bn2": "bn3", "_se_reduce": "se.conv_reduce", "_se_expand": "se.conv_expand",
}  # fmt: skip
NOT_EXPANDED = {**EXPANDED, "_bn1": "bn1", "_project_conv": "conv_pw", "_bn2": "bn2"}
AROUND_BLOCKS = {"_conv_stem": "conv_stem", "_bn0": "bn1", "_conv_head": "conv_head", "_bn1": "bn2", "_fc": "classifier"}


def as_timm_calls(names: list[str], names_of_timm: list[str], source_name: str) -> dict[str, str]:
    """From the names of `efficientnet_pytorch` to timm's, which numbers the blocks of an EfficientNet within its stages."""
    blocks = sorted({tuple(map(int, name.split(".")[1:3])) for name in names_of_timm if name.startswith("blocks.")})
    known = {}
    for name in names:
        first, *parts = name.split(".")
        try:
            if first == "_blocks":
                number, part, *rest = parts
                table = EXPANDED if f"_blocks.{number}._expand_conv.weight" in names else NOT_EXPANDED
                known[name] = ".".join(["blocks", *map(str, blocks[int(number)]), table[part], *rest])
            else:
                known[name] = ".".join([AROUND_BLOCKS[first], *parts])
        except (KeyError, IndexError, ValueError):
            raise ConversionError(f"unexpected tensor `{name}` in {source_name}") from None
    return known
