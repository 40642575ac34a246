"""The families of checkpoints that become a SpotViT: one table of names and one description each.

A table maps the source's names to SpotViT's, with `{i}` for the layer. A few targets are not parameters of the model but
parts of one, put together by `assembly.py`: `cls_token`, `distillation_token`, `register_tokens`, `position_table`, `qkv`,
`gate_up_proj`, `position_bias_table`, the two heads of distilled DeiT, and the position channel of the released SPoT
checkpoints.
"""

from .errors import ConversionError
from .sources import Source
from .spot_family import SPOT_FAMILY
from .timm_families import TIMM_FAMILIES
from .transformers_families import REFUSED, TRANSFORMERS_FAMILIES


# Parameters of their own, by the end of their names; every other entry of a table is a module with a weight and a bias.
BARE_PARAMETERS = (
    "cls_token", "distillation_token", "register_tokens", "position_table", "position_kernel_sigma", ".scale",
    "position_bias_table", ".probe", ".weight", ".bias",
)  # fmt: skip


# Tensors that are skipped, by patterns of their names, and why.
SKIPPED = {
    "pooler.*": "the source's tanh pooler: no classifier of the family uses it",
    "embeddings.mask_token": "mask token of pre-training",
    "mask_token": "mask token of pre-training",
    "decoder.*": "decoder of masked pre-training: the encoder alone is converted",
    "decoder_*": "decoder of masked pre-training: the encoder alone is converted",
    "head.mlp.*": "projection head of DINO pre-training",
    "head.last_layer.*": "projection head of DINO pre-training",
    "dino_head.*": "projection head of DINO pre-training",
}


FAMILIES = {**TRANSFORMERS_FAMILIES, **TIMM_FAMILIES, "spot": SPOT_FAMILY}


def detect_family(source: Source) -> str:
    """Name of the source's family in `FAMILIES`, or [`ConversionError`]."""
    family = find_family(source)
    if family is not None:
        return family
    raise ConversionError(unknown_family(source))


def find_family(source: Source) -> str | None:
    """The same, or none."""
    model_type = (source.config or {}).get("model_type")
    if model_type in TRANSFORMERS_FAMILIES:
        return model_type
    if model_type is None and {"tokenizer._n_sigma", "embedder.emb.weight"} <= set(source.tensors):
        return "spot"
    attention = {"blocks.0.attn.qkv.weight", "blocks.0.attn.q_proj.weight"}
    if model_type in (None, "timm_wrapper") and attention & set(source.tensors):
        return "timm"
    return None


def unknown_family(source: Source) -> str:
    """What to say of a source that is of none."""
    config = source.config or {}
    model_type = config.get("model_type")
    if model_type in REFUSED:
        return f"`source_model` {source.name!r} of model_type {model_type!r} cannot be converted: {REFUSED[model_type]}"
    found = (
        f"model_type {model_type!r}"
        if model_type
        else f"architecture {config.get('architecture')!r}"
        if config
        else "no config.json"
    )
    some = ", ".join(sorted(source.tensors)[:3])
    return (
        f"`source_model` {source.name!r} is of no known family ({', '.join(FAMILIES)}); found {found} and "
        f"{len(source.tensors)} tensors such as {some}"
    )
