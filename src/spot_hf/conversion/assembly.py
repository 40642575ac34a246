"""From a source's tensors to a SpotViT's parameters, part by part, with every name and shape checked."""

from fnmatch import fnmatchcase

import torch
from torch import nn

from ..configuration_spot_vit import SpotViTConfig
from ..modeling_spot_vit import SpotViTModel
from ..positions import interpolate_table, solve_kernel_weights
from .errors import ConversionError
from .families import BARE_PARAMETERS, FAMILIES, SKIPPED, detect_family
from .family import Family, count_layers
from .sources import Source, Tensors
from .transformers_families import PARTS_OF_TEXTS


NO_CLASSIFIER = "the source has no classifier"


def match_names(source: Source, family: Family) -> tuple[dict[str, str], dict[str, str]]:
    """`(source name → target, skipped source name → reason)`; a name that is in neither is an error."""
    num_layers = count_layers(source, family.layer_name)
    expected: dict[str, str] = {}
    for pattern, target in family.table.items():
        for i in range(num_layers) if "{i}" in pattern else [0]:
            name, to = pattern.format(i=i), target.format(i=i)
            if to.endswith(BARE_PARAMETERS):
                expected[name] = to
            else:
                expected.update({f"{name}.{kind}": f"{to}.{kind}" for kind in ("weight", "bias")})
    used, skipped, unexpected = {}, {}, []
    of_family = family.unused(source)
    for name in source.tensors:
        reasons = [{} if name in expected else SKIPPED, of_family]
        reason = next((why for each in reasons for pattern, why in each.items() if fnmatchcase(name, pattern)), None)
        if reason is not None:
            skipped[name] = reason
        elif name in expected:
            used[name] = expected[name]
        else:
            unexpected.append(source.file_names[name])
    if unexpected:
        more = f" and {len(unexpected) - 3} more" if len(unexpected) > 3 else ""
        raise ConversionError(
            f"unexpected tensor `{'`, `'.join(unexpected[:3])}`{more} in {source.name}: the family has no such part, so the "
            f"converted model would not compute what its source does"
        )
    doubled = [source.file_names[name] for name, target in used.items() if list(used.values()).count(target) > 1]
    if doubled:
        raise ConversionError(f"tensors `{'`, `'.join(doubled)}` in {source.name} stand for the same parameter")
    return used, skipped


# Modules that a source may hold as one.
FUSED = {"qkv": ("q_proj", "k_proj", "v_proj"), "kv": ("k_proj", "v_proj"), "gate_up_proj": ("gate_proj", "up_proj")}
# What timm calls SwiGLU's: as the layers of a perceptron.
TIMM_SWIGLU = {"fc1": "gate_up_proj", "fc2": "down_proj"}


class Assembly:
    """Turns a source's tensors, under the targets of its table, into the state of a SpotViT, part by part.

    `state` holds what is done and what is left; `origins` says for each key what it was made of, for messages.
    """

    def __init__(self, parts: Tensors, names: dict[str, str], config: SpotViTConfig, family: Family, source: Source):
        self.state, self.origins = dict(parts), dict(names)
        self.config, self.family, self.source = config, family, source

    def take(self, target: str, shape: tuple[int | None, ...]) -> torch.Tensor:
        """Removes a part from the state, and checks its shape; `None` is any size."""
        if target not in self.state:
            raise ConversionError(f"missing tensor `{_source_name(target, self.source)}` in {self.source.name}")
        tensor = self.state.pop(target)
        if len(shape) != tensor.ndim or any(b is not None and a != b for a, b in zip(tensor.shape, shape, strict=True)):
            expected = tuple("any" if size is None else size for size in shape)
            raise ConversionError(
                f"wrong shape of tensor `{self.origins[target]}` in {self.source.name}: expected {expected}, "
                f"got {tuple(tensor.shape)}"
            )
        return tensor

    def put(self, target: str, tensor: torch.Tensor, *parts: str) -> None:
        """Adds a parameter of the model that was made of `parts`."""
        self.origins[target] = " + ".join(dict.fromkeys(self.origins[part] for part in parts))
        self.state[target] = tensor.contiguous()

    def run(self, table_size: tuple[int, int]) -> None:
        """`table_size`: `(rows, columns)` of the position table as it lies in the source."""
        if self.family.position_channel:
            self.split_position_channel()
        else:
            self.add_table_and_prefix(table_size)
            self.flatten_patch_projection()
        self.rename_mlp()
        self.split_fused_projections()
        self.reorder_heads()
        if self.config.use_relative_position_bias:
            self.split_position_biases()
        self.add_biases()
        if self.config.pooling == "cls_distillation":
            self.join_heads()

    def split_position_channel(self) -> None:
        """SPoT's one projection of pixels and position kernel, into a projection of each. Class tokens have no position."""
        width, patch_size, channels = self.config.hidden_size, self.config.patch_size, self.config.num_channels
        self.state.pop("position_kernel_sigma")  # in the config
        name = "embeddings.patch_projection.weight"
        projection = self.take(name, (width, (channels + 1) * patch_size**2))
        pixels, positions = projection.split([channels * patch_size**2, patch_size**2], dim=1)
        self.put("embeddings.position_embeddings.weight", positions.T.unflatten(0, (patch_size, patch_size)), name)
        self.put(name, pixels, name)
        self.put("embeddings.prefix_tokens", self.take("cls_token", (1, 1, width)), "cls_token")

    def add_table_and_prefix(self, table_size: tuple[int, int]) -> None:
        """Class and register tokens with their own positions, and kernel weights that reproduce the position table."""
        config, width = self.config, self.config.hidden_size
        kinds = {"cls_token": int(config.use_class_token), self.extra_token(): config.num_register_tokens}
        kinds = {kind: count for kind, count in kinds.items() if count}
        for kind, tensor in self.state.items():
            # CLIP's have no axes of length 1.
            if kind in ("cls_token", "position_table") and "embeddings.class_embedding" in self.family.table:
                self.state[kind] = tensor.reshape((1,) * (3 - tensor.ndim) + tensor.shape)
        tokens = [self.take(kind, (1, count, width))[0] for kind, count in kinds.items()]
        prefix = torch.cat(tokens) if tokens else torch.zeros(0, width)
        if config.use_position_table:
            self.add_table(prefix, table_size, num_positions=len([kind for kind in kinds if kind != "register_tokens"]))
        if kinds:
            self.put("embeddings.prefix_tokens", prefix[None], *kinds)
        if not config.num_register_tokens and "register_tokens" in self.state:
            self.take("register_tokens", (1, 0, width))  # DINOv3 without any

    def add_table(self, prefix: torch.Tensor, table_size: tuple[int, int], num_positions: int) -> None:
        """Kernel weights; and the positions of tokens before the patches, of `num_positions` of them or as the family varies,
        which are added to `prefix` `(num_prefix_tokens, hidden_size)` in place."""
        config, (rows, columns) = self.config, table_size
        table = self.take("position_table", (1, None, config.hidden_size))[0]
        num_leading = len(table) - rows * columns
        positions = {num_positions}
        if self.family.varied_positions:
            positions = {0, len(prefix)} if "reg_token" in self.source.tensors else {0, *positions}
        if num_leading not in positions:
            before = f" and {' or '.join(map(str, sorted(positions)))} before them" if positions != {0} else ""
            raise ConversionError(
                f"wrong shape of tensor `{self.origins['position_table']}` in {self.source.name}: expected {rows} × {columns} "
                f"positions{before}, got {len(table)}"
            )
        prefix[:num_leading] += table[:num_leading]
        cells = table[num_leading:].unflatten(0, (rows, columns))
        cells = interpolate_table(cells, *config.position_rows_columns, **(config.position_interpolation or {}))
        weights = solve_kernel_weights(cells, config.position_kernel_sigma)
        self.put("embeddings.position_embeddings.weight", weights, "position_table")

    def extra_token(self) -> str:
        """Which kind of token stands between class token and patches."""
        distilled = "distillation_token" in self.state or self.config.pooling == "cls_distillation"
        has_registers = "register_tokens" in self.family.table.values()
        return "distillation_token" if distilled or not has_registers else "register_tokens"

    def flatten_patch_projection(self) -> None:
        """A convolution with the stride of its kernel is a linear map of patches."""
        config, name = self.config, "embeddings.patch_projection.weight"
        shape = (config.hidden_size, config.num_channels, config.patch_size, config.patch_size)
        self.put(name, self.take(name, shape).flatten(1), name)

    def rename_mlp(self) -> None:
        """timm calls the packed gates of SwiGLU `fc1`, as it does the first layer of a perceptron; DINOv3 calls a perceptron's
        layers as it does SwiGLU's."""
        names = TIMM_SWIGLU if self.config.use_swiglu_ffn else {"up_proj": "fc1", "down_proj": "fc2"}
        for old, new in names.items():
            for name in [name for name in self.state if name.startswith("layers.") and f".mlp.{old}." in name]:
                renamed = name.replace(f".mlp.{old}.", f".mlp.{new}.")
                self.origins[renamed] = self.origins[name]
                self.state[renamed] = self.state.pop(name)

    def split_fused_projections(self) -> None:
        for name in [name for name in self.state if name.rpartition(".")[0].endswith(tuple(FUSED))]:
            layer, fused, kind = name.rsplit(".", 2)
            targets = FUSED[fused]
            for target, chunk in zip(targets, self.state.pop(name).chunk(len(targets)), strict=False):
                self.put(f"{layer}.{target}.{kind}", chunk, name)

    def reorder_heads(self) -> None:
        """Of rotary positions that turn other pairs of a head's numbers than ours: the same pairs, in our order."""
        hidden_size, num_heads = self.config.hidden_size, self.config.num_attention_heads
        order = self.family.order_within_heads(self.source, hidden_size // num_heads)
        if order is None:
            return
        rows = (torch.arange(hidden_size).view(num_heads, -1)[:, order]).flatten()
        for name, tensor in self.state.items():
            for index, kinds in ((rows, (".q_proj", ".k_proj")), (order, (".q_norm", ".k_norm"))):
                if name.startswith("layers.") and name.rpartition(".")[0].endswith(kinds) and len(tensor) == len(index):
                    self.state[name] = tensor[index]

    def split_position_biases(self) -> None:
        """BEiT's table of a layer, or of all: displacements between patches, then three with the class token."""
        config = self.config
        rows, columns = config.position_rows_columns
        shape = ((2 * rows - 1) * (2 * columns - 1) + 3, config.num_attention_heads)
        shared = self.take("shared_position_bias_table", shape) if "shared_position_bias_table" in self.state else None
        for i in range(config.num_hidden_layers):
            layer = f"layers.{i}.attention"
            name = f"{layer}.position_bias_table" if shared is None else "shared_position_bias_table"
            table = self.take(name, shape) if shared is None else shared.clone()
            self.put(f"{layer}.position_bias.weight", table[:-3], name)
            self.put(f"{layer}.position_bias.prefix_weight", table[-3:], name)

    def add_biases(self) -> None:
        """Zeros, of modules that have none in the source."""
        projections = ("attention.q_proj", "attention.k_proj", "attention.v_proj")
        for module in self.family.without_bias(self.source):
            if module in projections and not self.config.qkv_bias:
                continue
            for weight in [name for name in self.state if name.endswith(f"{module}.weight")]:
                bias = f"{weight.removesuffix('weight')}bias"
                if bias not in self.state:
                    self.put(bias, torch.zeros(len(self.state[weight])), weight)

    def join_heads(self) -> None:
        """The mean of two linear heads is one linear head of both tokens."""
        width, num_labels = self.config.hidden_size, self.config.num_labels
        names = ("classifier", "distillation_classifier")
        weights = [self.take(f"{name}.weight", (num_labels, width)) / 2 for name in names]
        biases = [self.take(f"{name}.bias", (num_labels,)) / 2 for name in names]
        self.put("classifier.weight", torch.cat(weights, dim=1), *(f"{name}.weight" for name in names))
        self.put("classifier.bias", biases[0] + biases[1], *(f"{name}.bias" for name in names))


def load_state(model: nn.Module, state: Tensors, origins: dict[str, str], source: Source, fresh_head: bool) -> dict[str, str]:
    """Loads `state` into the model, checks every name and shape, and returns what stays newly initialised."""
    inner = "" if isinstance(model, SpotViTModel) else "spot_vit."
    state = {
        name if name.startswith(("classifier.", *PARTS_OF_TEXTS)) else inner + name: tensor for name, tensor in state.items()
    }
    expected = model.state_dict()
    missing = [name for name in expected if name not in state]
    fresh = {name: NO_CLASSIFIER for name in missing if fresh_head and name.startswith("classifier.")}
    lost = [name for name in missing if name not in fresh]
    if lost:
        more = f" and {len(lost) - 3} more" if len(lost) > 3 else ""
        wanted = "`, `".join(_source_name(name.removeprefix(inner), source) for name in lost[:3])
        raise ConversionError(f"missing tensor `{wanted}`{more} in {source.name}")
    for name, tensor in state.items():
        if name not in expected:
            raise ConversionError(
                f"unexpected tensor `{origins[name.removeprefix(inner)]}` in {source.name}: its config has no such part"
            )
        if tensor.shape != expected[name].shape:
            raise ConversionError(
                f"wrong shape of tensor `{origins[name.removeprefix(inner)]}` in {source.name}: "
                f"{tuple(tensor.shape)} where its config says {tuple(expected[name].shape)}"
            )
    model.load_state_dict({**expected, **state})
    return fresh


def _source_name(target: str, source: Source) -> str:
    """What a parameter is called in the source's files, for a message."""
    module, _, kind = target.rpartition(".")
    parent, _, leaf = module.rpartition(".")
    wholes = [whole for whole, parts in FUSED.items() if leaf in parts]
    wholes += [name for name, whole in TIMM_SWIGLU.items() if whole in (leaf, *wholes)]
    modules = [module, *(f"{parent}.{whole}" for whole in wholes)]
    layer = next((part for part in module.split(".") if part.isdecimal()), "0")
    family, candidates, elsewhere = FAMILIES[detect_family(source)], [], []
    for pattern, to in family.table.items():
        to = to.format(i=layer)
        is_whole = to in (target, *(f"{one}.{kind}" for one in modules))  # under its own name
        if not is_whole and to not in modules:
            continue
        pattern = pattern if is_whole else f"{pattern}.{kind}"
        candidates.append(pattern.format(i=layer))
        if any(pattern.format(i=i) in source.tensors for i in range(count_layers(source, family.layer_name))):
            elsewhere.append(candidates[-1])
    # Of several possible names, one that another layer has, or whose sibling is there: a bias has its weight.
    siblings = [name for name in candidates if any(one.startswith(name.rpartition(".")[0] + ".") for one in source.tensors)]
    return next(iter([*elsewhere, *siblings, *candidates, target]))
