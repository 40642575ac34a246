"""Conversion: on the full grid every family gives its source's outputs, each tensor is accounted for, bad sources are refused.

Sources are tiny and random, saved by transformers itself, so that the files have the names that are on the Hub. Real
weights are at the end. Sources of timm are in test_conversion_timm.py.
"""

import json
import pickle
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from conversion_cases import CASES, CLASSES, POOLER, Case
from conversion_checks import (
    PROMISED,
    REACHED,
    assert_accounted,
    assert_verified,
    differences,
    edited,
    images,
    longer,
    names,
    refused,
    shorter,
    wider,
    without,
)
from PIL import Image
from random_weights import assert_every_parameter_matters, randomise
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import (
    AutoModel,
    AutoModelForImageClassification,
    BeitImageProcessor,
    BitImageProcessor,
    CLIPImageProcessor,
    DeiTImageProcessor,
    SiglipImageProcessor,
    ViTForImageClassification,
    ViTImageProcessor,
    ViTMAEForPreTraining,
    ViTMAEModel,
)
from transformers.models.auto.image_processing_auto import AutoImageProcessor
from transformers.utils import is_torchvision_available

from spot_hf import ConversionError, convert_checkpoint
from spot_hf.conversion.families import FAMILIES
from spot_hf.jobs.files import replaced_directory


@pytest.fixture(scope="module")
def source(tmp_path_factory) -> Callable[[str], Path]:
    """The directory of a case's source: random weights as transformers saves them."""
    saved: dict[str, Path] = {}

    def save(name: str) -> Path:
        if name not in saved:
            case, directory = CASES[name], tmp_path_factory.mktemp(name)
            randomise(case.model(case.config)).save_pretrained(directory)
            if case.image_processor is not None:
                case.image_processor.save_pretrained(directory)
            saved[name] = directory
        return saved[name]

    return save


@torch.no_grad()
def reference(case: Case, directory: Path, pixel_values: torch.Tensor) -> dict[str, torch.Tensor]:
    """What the source model says, loaded from its files."""
    model = case.model.from_pretrained(directory).eval()
    if case.has_classifier:
        return {"logits": model(pixel_values).logits}
    arguments = {}
    if isinstance(model, ViTMAEForPreTraining):
        model: ViTMAEModel = model.vit  # with nothing masked, and in order
        arguments = {
            "noise": torch.arange(model.embeddings.position_embeddings.shape[1] - 1).expand(len(pixel_values), -1).float()
        }
    outputs = (model.vit if hasattr(model, "vit") else model)(pixel_values, **arguments)
    return {"last_hidden_state": outputs.last_hidden_state} | ({"pooler_output": outputs.pooler_output} if case.pooler else {})


# ------------------------------------------------------------------------------------------------------------- parity


@pytest.mark.parametrize("name", CASES)
def test_the_full_grid_gives_the_sources_outputs(name, source, tmp_path):
    case, directory = CASES[name], source(name)
    report = convert_checkpoint(directory, tmp_path / "converted")
    auto_class = AutoModelForImageClassification if case.has_classifier else AutoModel
    converted = auto_class.from_pretrained(tmp_path / "converted").eval()
    pixel_values = images(*case.size)

    expected = reference(case, directory, pixel_values)
    # Float32's precision is relative: without a final norm, hidden states are as large as 10.
    reached = {key: REACHED * max(1, tensor.abs().max().item() / 2) for key, tensor in expected.items()}
    for model in (converted, report.model):
        assert all(found <= reached[key] for key, found in differences(expected, model, pixel_values).items())

    def outputs() -> torch.Tensor:
        found = converted(pixel_values)
        return torch.cat([found[key].flatten() for key in expected])

    assert_every_parameter_matters(converted, outputs, at_least=10 * PROMISED)

    assert_accounted(report, load_file(directory / "model.safetensors"))
    whole = ("pooler.", "decoder.", "post_layernorm.", "head.")
    skipped = {name.removeprefix("vision_model.") for name in report.skipped}
    skipped = {name if name.startswith(whole) else name.rpartition(".")[2] for name in skipped}
    if case.model is ViTMAEForPreTraining:
        assert "decoder.mask_token" in skipped and all(name.startswith("decoder.") for name in skipped)
    else:
        assert skipped == case.skipped
    assert report.missing == {}
    assert_verified(tmp_path / "converted")
    if case.has_classifier:
        assert converted.config.id2label == CLASSES["id2label"]
        assert converted.config.label2id == CLASSES["label2id"]


def test_a_table_that_the_source_interpolates_is_taken_at_the_recipes_size(source):
    """DINOv2's table has 10 × 10 cells, its images 4 × 4: the converted table has what the source uses there."""
    for name in ("dinov2", "registers"):
        config = convert_checkpoint(source(name)).model.config
        assert (list(config.position_grid_size), config.image_size) == ([4, 4], 32)
    config = convert_checkpoint(source("dinov2_not_square")).model.config
    assert (list(config.position_grid_size), list(config.image_size)) == ([3, 7], [24, 56])


def test_half_precision_is_taken_as_float32(source, tmp_path):
    model = ViTForImageClassification.from_pretrained(source("vit")).half()
    model.save_pretrained(tmp_path / "half")
    report = convert_checkpoint(tmp_path / "half")
    assert {parameter.dtype for parameter in report.model.parameters()} == {torch.float32}
    pixel_values = images()
    with torch.no_grad():
        expected = {"logits": model.float().eval()(pixel_values).logits}
    assert max(differences(expected, report.model, pixel_values).values()) <= REACHED


def test_a_source_without_classifier_gets_a_fresh_one(source):
    report = convert_checkpoint(source("dinov2_headless"), num_labels=5, seed=3)
    assert report.architecture == "SpotViTForImageClassification"
    assert set(report.missing) == {"classifier.weight", "classifier.bias"}
    assert report.model.config.pooling == "cls_mean"  # as in the family's own classifiers
    assert report.model.classifier.weight.shape == (5, 2 * 48)
    again = convert_checkpoint(source("dinov2_headless"), num_labels=5, seed=3)
    assert torch.equal(again.model.classifier.weight, report.model.classifier.weight)
    with pytest.raises(ValueError, match="`num_labels` is for a source without a classifier"):
        convert_checkpoint(source("vit"), num_labels=5)


# ------------------------------------------------------------------------------- files that came with papers' releases


class ReleasedViT(nn.Module):
    """A ViT written down again, under the names of the DeiT, DINO, MAE and DINOv2 releases (and timm's)."""

    def __init__(self, grid=4, width=128, depth=2, num_labels=7, mean_pooling=False, num_registers=0, dinov2=False):
        super().__init__()
        self.heads, self.mean_pooling, self.num_registers = width // 64, mean_pooling, num_registers
        self.cls_token = nn.Parameter(torch.empty(1, 1, width))
        self.pos_embed = nn.Parameter(torch.empty(1, 1 + grid * grid, width))
        if num_registers:
            self.register_tokens = nn.Parameter(torch.empty(1, num_registers, width))
        if dinov2:
            self.mask_token = nn.Parameter(torch.empty(1, width))
        self.patch_embed = nn.ModuleDict({"proj": nn.Conv2d(3, width, 8, stride=8)})
        self.blocks = nn.ModuleList(self.block(width, dinov2) for _ in range(depth))
        norm = nn.LayerNorm(width, eps=1e-6)
        self.norm, self.fc_norm = (None, norm) if mean_pooling else (norm, None)
        self.head = nn.Linear(width, num_labels) if num_labels else None

    @staticmethod
    def block(width: int, dinov2: bool) -> nn.ModuleDict:
        layers = {
            "norm1": nn.LayerNorm(width, eps=1e-6),
            "attn": nn.ModuleDict({"qkv": nn.Linear(width, 3 * width), "proj": nn.Linear(width, width)}),
            "norm2": nn.LayerNorm(width, eps=1e-6),
        }
        if not dinov2:
            mlp = {"fc1": nn.Linear(width, 2 * width), "fc2": nn.Linear(2 * width, width)}
            return nn.ModuleDict({**layers, "mlp": nn.ModuleDict(mlp)})
        mlp = {"w12": nn.Linear(width, 2 * 80), "w3": nn.Linear(80, width)}
        scales = {ls: nn.ParameterDict({"gamma": nn.Parameter(torch.empty(width))}) for ls in ("ls1", "ls2")}
        return nn.ModuleDict({**layers, **scales, "mlp": nn.ModuleDict(mlp)})

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        batch_size = len(pixel_values)
        x = self.patch_embed["proj"](pixel_values).flatten(2).mT
        x = torch.cat([self.cls_token.expand(batch_size, -1, -1), x], dim=1) + self.pos_embed
        if self.num_registers:
            x = torch.cat([x[:, :1], self.register_tokens.expand(batch_size, -1, -1), x[:, 1:]], dim=1)
        for block in self.blocks:
            qkv = block["attn"]["qkv"](block["norm1"](x)).unflatten(-1, (3, self.heads, -1))
            query, key, value = qkv.permute(2, 0, 3, 1, 4)  # each (batch_size, heads, tokens, 64)
            scores = (query @ key.mT / 8).softmax(dim=-1)
            attended = block["attn"]["proj"]((scores @ value).transpose(1, 2).flatten(2))
            x = x + (attended * block["ls1"]["gamma"] if "ls1" in block else attended)
            hidden, mlp = block["norm2"](x), block["mlp"]
            if "w12" in mlp:
                gate, up = mlp["w12"](hidden).chunk(2, dim=-1)
                x = x + mlp["w3"](nn.functional.silu(gate) * up) * block["ls2"]["gamma"]
            else:
                x = x + mlp["fc2"](nn.functional.gelu(mlp["fc1"](hidden)))
        if self.head is None:
            return self.norm(x)
        return self.head(self.fc_norm(x[:, 1:].mean(dim=1)) if self.mean_pooling else self.norm(x)[:, 0])


RELEASES = {
    "deit": (ReleasedViT(), lambda state: {"model": state}),
    "mae_fine_tuned": (ReleasedViT(mean_pooling=True), lambda state: {"model": state, "epoch": 99}),
    "mae_pre_trained": (
        ReleasedViT(num_labels=0),
        lambda state: {"model": {**state, "mask_token": torch.ones(1, 1, 9), "decoder_embed.weight": torch.ones(9, 128)}},
    ),
    "dino": (
        ReleasedViT(num_labels=0),
        lambda state: {
            "teacher": {f"backbone.{name}": tensor for name, tensor in state.items()} | {"head.mlp.0.bias": torch.ones(9)},
            "student": {f"module.backbone.{name}": torch.zeros_like(tensor) for name, tensor in state.items()},
        },
    ),
    "dinov2": (ReleasedViT(num_labels=0, num_registers=3, dinov2=True), lambda state: state),
    "bare_and_parallel": (
        ReleasedViT(depth=3),
        lambda state: {"state_dict": {f"module.{name}": tensor for name, tensor in state.items()}},
    ),
}


@pytest.mark.parametrize("name", RELEASES)
def test_a_released_file_without_config_gives_its_models_outputs(name, tmp_path):
    model, wrap = RELEASES[name]
    randomise(model)
    checkpoint = wrap(dict(model.state_dict()))
    torch.save(checkpoint, tmp_path / "released.pth")
    report = convert_checkpoint(tmp_path / "released.pth", tmp_path / "converted")
    pixel_values = images()
    with torch.no_grad():
        expected = {"last_hidden_state" if model.head is None else "logits": model(pixel_values)}
    assert max(differences(expected, report.model, pixel_values).values()) <= REACHED
    found = next((checkpoint[key] for key in ("model", "teacher", "state_dict") if key in checkpoint), checkpoint)
    assert_accounted(report, found)
    assert any("no preprocessing recipe" in note for note in report.notes)


# --------------------------------------------------------------------------------------------------- kinds of files


def as_bin(directory: Path, tensors: dict[str, torch.Tensor]) -> Path:
    torch.save(tensors, directory / "pytorch_model.bin")
    return directory


def as_bin_shards(directory: Path, tensors: dict[str, torch.Tensor]) -> Path:
    weight_map = {}
    for i, name in enumerate(tensors):
        weight_map[name] = f"pytorch_model-{i % 2 + 1:05}-of-00002.bin"
    for file in set(weight_map.values()):
        torch.save({name: tensors[name] for name in tensors if weight_map[name] == file}, directory / file)
    index = {"metadata": {}, "weight_map": weight_map}
    (directory / "pytorch_model.bin.index.json").write_text(json.dumps(index))
    return directory


def as_safetensors_shards(directory: Path, tensors: dict[str, torch.Tensor]) -> Path:
    model = ViTForImageClassification(CASES["vit"].config)
    model.load_state_dict(randomise(ViTForImageClassification(CASES["vit"].config)).state_dict())
    model.save_pretrained(directory, max_shard_size="100KB")
    assert len(list(directory.glob("*.safetensors"))) > 1 and not (directory / "model.safetensors").exists()
    return directory


def as_one_file(directory: Path, tensors: dict[str, torch.Tensor]) -> Path:
    save_file(tensors, directory / "model.safetensors")
    return directory / "model.safetensors"


@pytest.mark.parametrize("write", [as_bin, as_bin_shards, as_safetensors_shards, as_one_file])
def test_every_kind_of_file_is_read(write, source, tmp_path):
    directory = tmp_path / "source"
    directory.mkdir()
    (directory / "config.json").write_bytes((source("vit") / "config.json").read_bytes())
    tensors = load_file(source("vit") / "model.safetensors")
    report = convert_checkpoint(write(directory, tensors))
    assert_accounted(report, tensors)
    expected = convert_checkpoint(source("vit")).model.state_dict()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in report.model.state_dict().items())


SHARDS_OUTSIDE = [
    "../outside.safetensors",
    "shards/../../outside.safetensors",
    "{outside}",
    "..\\outside.safetensors",
    "C:/x.bin",
]


@pytest.mark.parametrize("shard", SHARDS_OUTSIDE)
def test_an_index_that_points_out_of_its_directory_is_refused(shard, source, tmp_path):
    """The file there is a good shard: it is not opened all the same."""
    directory = edited(source("vit"), tmp_path / "edited")
    (directory / "model.safetensors").rename(tmp_path / "outside.safetensors")
    shard = shard.format(outside=tmp_path / "outside.safetensors")
    weight_map = dict.fromkeys(load_file(source("vit") / "model.safetensors"), shard)
    (directory / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    message = refused(directory, tmp_path)
    assert repr(shard) in message and "must be below the directory of model.safetensors.index.json" in message


def as_shards_in_folders(directory: Path, tensors: dict[str, torch.Tensor]) -> dict[str, str]:
    """Two shards of the same name in two folders, and their index; returns its map."""
    weight_map = {name: f"{'ab'[i % 2]}/weights.safetensors" for i, name in enumerate(tensors)}
    for shard in set(weight_map.values()):
        (directory / shard).parent.mkdir()
        save_file({name: tensors[name] for name in tensors if weight_map[name] == shard}, directory / shard)
    (directory / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    return weight_map


def test_shards_in_folders_are_read(source, tmp_path):
    directory = edited(source("vit"), tmp_path / "edited")
    (directory / "model.safetensors").unlink()
    as_shards_in_folders(directory, load_file(source("vit") / "model.safetensors"))
    found = convert_checkpoint(directory).model.state_dict()
    expected = convert_checkpoint(source("vit")).model.state_dict()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in found.items())


def convert_shards(directory, weight_map):
    """In its process, with a Hub: pushes a source in shards, and others whose index names what is not there or not theirs."""
    import json
    import traceback

    from huggingface_hub import HfApi

    from spot_hf import ConversionError, convert_checkpoint

    api = HfApi()

    def push(name, index):
        api.create_repo(f"alice/{name}")
        api.upload_folder(folder_path=directory, repo_id=f"alice/{name}")
        content = json.dumps({"weight_map": index}).encode()
        api.upload_file(path_or_fileobj=content, path_in_repo="model.safetensors.index.json", repo_id=f"alice/{name}")

    def attempt(name, shard):
        push(name, {**weight_map, next(iter(weight_map)): shard})
        try:
            convert_checkpoint(f"alice/{name}")
        except ConversionError as error:
            return str(error)
        except Exception:
            return traceback.format_exc()

    push("in-folders", weight_map)
    converted, local = convert_checkpoint("alice/in-folders").model, convert_checkpoint(directory).model
    equal = all(tensor.equal(local.state_dict()[name]) for name, tensor in converted.state_dict().items())
    messages = [
        attempt("lost", "c/lost.safetensors"),
        attempt("outside", "../../../etc/passwd"),
        attempt("root", "/etc/passwd"),
    ]
    return {"equal": equal, "messages": messages}


def test_shards_in_folders_of_the_hub(source, tmp_path, hub, fresh_process):
    directory = edited(source("vit"), tmp_path / "edited")
    (directory / "model.safetensors").unlink()
    weight_map = as_shards_in_folders(directory, load_file(source("vit") / "model.safetensors"))
    result = fresh_process(convert_shards, str(directory), weight_map, hub=hub, token="hf_alice")
    assert result["equal"]
    lost, outside, root = result["messages"]
    assert lost == "`source_model` 'alice/lost' holds no c/lost.safetensors, which model.safetensors.index.json names"
    assert outside.startswith("model.safetensors.index.json names the file '../../../etc/passwd', which must be below")
    assert root.startswith("model.safetensors.index.json names the file '/etc/passwd', which must be below")


class Payload:
    """A pickle that writes a file where it is loaded."""

    def __init__(self, file: Path):
        self.file = file

    def __reduce__(self):
        return Path.touch, (self.file,)


@pytest.mark.parametrize("name", ["pytorch_model.bin", "weights.pth", "weights.pt"])
def test_a_pickle_that_needs_more_than_weights_is_refused(name, source, tmp_path):
    directory = tmp_path / "source"
    directory.mkdir()
    (directory / "config.json").write_bytes((source("vit") / "config.json").read_bytes())
    tensors = load_file(source("vit") / "model.safetensors")
    torch.save({**tensors, "payload": Payload(tmp_path / "executed")}, directory / name)
    message = refused(directory / name, tmp_path)
    assert "weights_only=True" in message and name in message
    assert not (tmp_path / "executed").exists()
    (directory / name).write_bytes(pickle.dumps(Payload(tmp_path / "executed"), protocol=2))
    assert name in refused(directory / name, tmp_path)
    assert not (tmp_path / "executed").exists()


# ------------------------------------------------------------------------------------------------------------ refusals


@pytest.mark.parametrize("change", [without, longer, shorter, wider])
@pytest.mark.parametrize(
    "name",
    ["vit", "deit_distilled", "dinov2_swiglu", "registers", "mae", "dinov3_gated", "clip_vision", "siglip_vision", "beit"],
)
def test_every_tensor_that_is_missing_or_misshapen_is_named(name, change, source, tmp_path):
    tensors = load_file(source(name) / "model.safetensors")
    used = convert_checkpoint(source(name)).used
    assert len(used) > 30
    for key in used:
        if re.search(r"layers?\.[02]\.", key):  # one layer stands for all
            continue
        changed = {k: change(tensor) if k == key else tensor for k, tensor in tensors.items()}
        changed = {k: tensor for k, tensor in changed.items() if tensor is not None}
        message = refused(edited(source(name), tmp_path / "edited", changed), tmp_path)
        assert message.startswith("missing tensor" if change is without else "wrong shape"), (key, message)
        assert names(message, key), (key, message)


@pytest.mark.parametrize(
    "unexpected",
    [
        "vit.encoder.layer.1.attention.gate.weight",
        "vit.encoder.layer.3.layernorm_before.weight",
        "vit.embeddings.norm.bias",
        "lm_head.weight",
    ],
)
def test_an_unexpected_tensor_is_named(unexpected, source, tmp_path):
    tensors = {**load_file(source("vit") / "model.safetensors"), unexpected: torch.ones(48)}
    message = refused(edited(source("vit"), tmp_path / "edited", tensors), tmp_path)
    assert unexpected.removeprefix("vit.") in message


def test_a_tensor_that_the_config_denies_is_named(source, tmp_path):
    message = refused(edited(source("vit"), tmp_path / "edited", qkv_bias=False), tmp_path)
    assert "unexpected tensor `vit.encoder.layer.0.attention.attention." in message


def test_two_tensors_for_one_parameter_are_named(source, tmp_path):
    tensors = load_file(source("vit") / "model.safetensors")
    doubled = {**tensors, "layernorm.weight": tensors["vit.layernorm.weight"] + 1}
    assert "`layernorm.weight`" in refused(edited(source("vit"), tmp_path / "edited", doubled), tmp_path)
    doubled = {**tensors, "cls_classifier.weight": tensors["classifier.weight"] + 1}
    message = refused(edited(source("vit"), tmp_path / "edited", doubled), tmp_path)
    assert "`cls_classifier.weight`" in message and "`classifier.weight`" in message


@pytest.mark.parametrize(
    "config",
    [
        {"num_hidden_layers": 4},
        {"num_hidden_layers": 2},
        {"hidden_size": 96},
        {"intermediate_size": 96},
        {"image_size": 40},
        {"image_size": [32, 40]},
        {"patch_size": 4},
        {"patch_size": [8, 4]},
        {"num_channels": 1},
        {"num_attention_heads": 5},
        {"hidden_act": "none such"},
        {"hidden_size": "wide"},
        {"model_type": "swin"},
        {"model_type": None},
        {"model_type": None, "architecture": "resnet50"},
    ],
    ids=str,
)
def test_a_config_that_is_not_the_tensors_is_refused(config, source, tmp_path):
    message = refused(edited(source("vit"), tmp_path / "edited", **config), tmp_path)
    assert "\n" not in message
    if "model_type" in config:
        assert f"is of no known family ({', '.join(FAMILIES)})" in message


UNREPRESENTABLE = {
    "siglip2": (
        "siglip_vision",
        {"model_type": "siglip2_vision_model"},
        "of model_type 'siglip2_vision_model' cannot be converted: its images keep their shape",
    ),
    "gated with another activation": ("dinov3_gated", {"hidden_act": "gelu"}, "`hidden_act` of a gated MLP must be silu"),
    "heads that rotary positions cannot divide": (
        "dinov3",
        {"num_attention_heads": 8},
        "with `rope_theta`, a head's width must be a multiple of 4",
    ),
    "a number that is none": ("dinov3", {"rope_theta": "much"}, "rope_theta"),
    "a part that is none": ("clip_classifier", {"vision_config": [1]}, "config.json of edited"),
    "BEiT that is not square": ("beit", {"image_size": [32, 40]}, "`image_size` must be square; got [32, 40]"),
}


@pytest.mark.parametrize(("name", "config", "message"), UNREPRESENTABLE.values(), ids=UNREPRESENTABLE.keys())
def test_what_no_spot_vit_computes_is_refused(name, config, message, source, tmp_path):
    found = refused(edited(source(name), tmp_path / "edited", **config), tmp_path)
    assert message in found and "\n" not in found


def test_what_was_converted_already_is_refused(source, tmp_path):
    message = refused(edited(source("vit"), tmp_path / "edited", model_type="spot_vit"), tmp_path)
    assert message == "'edited' was converted already: it is a 'spot_vit'"


BROKEN = {
    "no_weights": ({"model.safetensors": None}, "no model.safetensors"),
    "no_config": ({"config.json": None}, "no config.json"),
    "cut_off": ({"model.safetensors": b"\x10"}, "model.safetensors"),
    "config_is_no_json": ({"config.json": b"{"}, "config.json"),
    "config_is_a_list": ({"config.json": b"[]"}, "config.json"),
    "recipe_is_no_json": ({"preprocessor_config.json": b"{"}, "preprocessor_config.json"),
    "recipe_of_no_known_class": ({"preprocessor_config.json": b'{"image_processor_type": "X"}'}, "preprocessor_config.json"),
    "recipe_with_another_step": (
        {"preprocessor_config.json": b'{"image_processor_type": "MobileViTImageProcessor", "do_flip_channel_order": true}'},
        "`do_flip_channel_order`",
    ),
    "recipe_that_pads": (
        {"preprocessor_config.json": b'{"image_processor_type": "ViTImageProcessor", "do_pad": true}'},
        "`do_pad`",
    ),
    "recipe_of_remote_code": (
        {"preprocessor_config.json": b'{"image_processor_type": "X", "auto_map": {"AutoImageProcessor": "x.X"}}'},
        "preprocessor_config.json",
    ),
    "index_without_map": ({"model.safetensors": None, "model.safetensors.index.json": b"{}"}, "model.safetensors.index.json"),
    "index_of_lost_shards": (
        {"model.safetensors": None, "model.safetensors.index.json": b'{"weight_map": {"a": "lost.safetensors"}}'},
        "lost.safetensors",
    ),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_source_is_refused_by_the_files_name(name, source, tmp_path):
    changes, expected = BROKEN[name]
    directory = edited(source("vit"), tmp_path / "edited")
    for file, content in changes.items():
        (directory / file).unlink() if content is None else (directory / file).write_bytes(content)
    message = refused(directory, tmp_path)
    assert expected in message and "\n" not in message


def test_what_is_no_source_is_refused(tmp_path):
    assert "is neither a local path nor a repository" in refused(str(tmp_path / "absent"), tmp_path)
    assert "is no local path, and the Hub did not answer" in refused("nobody/nothing", tmp_path)  # offline, as tests are
    (tmp_path / "weights.h5").write_bytes(b"")
    assert "must be .safetensors, .bin, .pth or .pt; got weights.h5" in refused(tmp_path / "weights.h5", tmp_path)
    torch.save({"epoch": 3}, tmp_path / "weights.pth")
    assert "holds no tensors by name" in refused(tmp_path / "weights.pth", tmp_path)
    torch.save({"fc.weight": torch.ones(3, 3)}, tmp_path / "weights.pth")
    assert "of no known family" in refused(tmp_path / "weights.pth", tmp_path)
    with pytest.raises(ConversionError, match="`revision` goes with a Hub id"):
        convert_checkpoint(tmp_path, revision="main")


def test_an_output_directory_is_replaced_whole_or_not_at_all(source, tmp_path):
    output_dir = tmp_path / "converted"
    convert_checkpoint(source("vit"), output_dir)
    with pytest.raises(ValueError, match="is not empty"):
        convert_checkpoint(source("vit"), output_dir)
    (output_dir / "mine.txt").touch()
    before = sorted(output_dir.iterdir())
    with pytest.raises(ConversionError):
        convert_checkpoint(tmp_path / "absent", output_dir, overwrite_output_dir=True)
    with pytest.raises(KeyboardInterrupt), replaced_directory(output_dir, overwrite=True) as temporary:
        (temporary / "half.txt").touch()
        raise KeyboardInterrupt
    assert sorted(output_dir.iterdir()) == before and list(tmp_path.iterdir()) == [output_dir]
    convert_checkpoint(source("vit"), output_dir, overwrite_output_dir=True)
    assert not (output_dir / "mine.txt").exists() and (output_dir / "model.safetensors").exists()


# -------------------------------------------------------------------------------------------------------------- report


def test_the_report_is_written_beside_the_model(source, tmp_path):
    report = convert_checkpoint(source("vit_headless_with_pooler"), tmp_path / "converted")
    written = json.loads((tmp_path / "converted" / "conversion_report.json").read_text())
    assert written == report.to_dict()
    assert (written["family"], written["architecture"], written["num_parameters"]) == (
        "vit",
        "SpotViTModel",
        sum(parameter.numel() for parameter in report.model.parameters()),
    )
    assert written["used"]["encoder.layer.2.attention.output.dense.bias"] == "layers.2.attention.o_proj.bias"
    assert set(written["skipped"]) == POOLER
    assert "pooler.dense.weight: the source's tanh pooler" in report.summary()


def test_labels_that_do_not_fit_are_numbered(source, tmp_path):
    report = convert_checkpoint(edited(source("vit"), tmp_path / "edited", id2label={"0": "ant", "1": "bee"}, label2id=None))
    assert report.model.config.id2label == {i: f"LABEL_{i}" for i in range(7)}
    assert any("no names for the 7 labels" in note for note in report.notes)


# -------------------------------------------------------------------------------------------------------------- recipe

LEGACY_VIT = {
    "do_normalize": True,
    "do_resize": True,
    "feature_extractor_type": "ViTFeatureExtractor",
    "image_mean": [0.5, 0.5, 0.5],
    "image_std": [0.5, 0.5, 0.5],
    "resample": 2,
    "size": 32,
}
RECIPES = {
    "vit": ViTImageProcessor(size={"height": 32, "width": 32}, resample=3, image_mean=[0.4, 0.5, 0.6]).to_dict(),
    "vit_defaults": ViTImageProcessor().to_dict(),
    "vit_no_normalisation": ViTImageProcessor(size={"height": 32, "width": 32}, do_normalize=False).to_dict(),
    "vit_other_rescaling": ViTImageProcessor(size={"height": 32, "width": 32}, rescale_factor=1 / 127.5).to_dict(),
    "deit": DeiTImageProcessor(size={"height": 36, "width": 36}, crop_size={"height": 32, "width": 32}).to_dict(),
    "bit": BitImageProcessor(size={"shortest_edge": 37}, crop_size={"height": 32, "width": 32}, resample=3).to_dict(),
    "bit_not_square": BitImageProcessor(size={"shortest_edge": 37}, crop_size={"height": 24, "width": 32}).to_dict(),
    "clip": CLIPImageProcessor(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}).to_dict(),
    "siglip": SiglipImageProcessor(size={"height": 32, "width": 32}).to_dict(),
    "beit": BeitImageProcessor(size={"height": 36, "width": 36}, crop_size={"height": 32, "width": 32}).to_dict(),
    "legacy_vit": LEGACY_VIT,
    "legacy_vit_without_type": {k: v for k, v in LEGACY_VIT.items() if k not in ("feature_extractor_type", "resample")},
    "legacy_deit": {
        "crop_size": 32,
        "do_center_crop": True,
        "do_normalize": True,
        "do_resize": True,
        "feature_extractor_type": "DeiTFeatureExtractor",
        "image_mean": [0.485, 0.456, 0.406],
        "image_std": [0.229, 0.224, 0.225],
        "resample": 3,
        "size": 36,
    },
}


@pytest.fixture(scope="module")
def pictures() -> list[Image.Image]:
    generator = np.random.default_rng(0)
    coarse = [generator.integers(0, 256, (6, 6, 3), dtype=np.uint8) for _ in range(4)]
    sizes = [(61, 44), (40, 73), (32, 32), (29, 50)]
    return [Image.fromarray(one).resize(size, Image.Resampling.BICUBIC) for one, size in zip(coarse, sizes, strict=True)]


@pytest.mark.parametrize("name", RECIPES)
def test_the_image_processor_gives_the_sources_pixel_values(name, pictures, source, tmp_path):
    directory = edited(source("vit"), tmp_path / "edited")
    (directory / "preprocessor_config.json").write_text(json.dumps(RECIPES[name]))
    convert_checkpoint(directory, tmp_path / "converted")
    original = AutoImageProcessor.from_pretrained(directory)
    converted = AutoImageProcessor.from_pretrained(tmp_path / "converted")
    assert type(converted).__name__.startswith("SpotViT")
    for picture in pictures:
        expected = original(picture, return_tensors="pt")["pixel_values"]
        actual = converted(picture, return_tensors="pt")
        assert torch.equal(actual["pixel_values"], expected)
        assert list(actual) == ["pixel_values"]  # the model then uses its full grid


DINOV3_RECIPE = {  # as on the Hub
    "crop_size": None,
    "do_center_crop": None,
    "do_normalize": True,
    "do_rescale": True,
    "do_resize": True,
    "image_mean": [0.485, 0.456, 0.406],
    "image_processor_type": "DINOv3ViTImageProcessorFast",
    "image_std": [0.229, 0.224, 0.225],
    "resample": 2,
    "rescale_factor": 1 / 255,
    "size": {"height": 32, "width": 48},
}


def test_a_recipe_whose_class_needs_torchvision_is_read_all_the_same(source, tmp_path):
    directory = edited(source("dinov3"), tmp_path / "edited")
    (directory / "preprocessor_config.json").write_text(json.dumps(DINOV3_RECIPE))
    report = convert_checkpoint(directory)
    processor = report.image_processor
    assert (dict(processor.size), processor.resample, processor.do_center_crop) == ({"height": 32, "width": 48}, 2, False)
    assert list(processor.image_mean) == DINOV3_RECIPE["image_mean"]
    assert list(processor.image_std) == DINOV3_RECIPE["image_std"]
    assert report.model.config.image_height_width == (32, 48)
    assert any("rescales images before it resizes them" in note for note in report.notes)
    if not is_torchvision_available():
        lacking = {**DINOV3_RECIPE, "image_mean": None}
        (directory / "preprocessor_config.json").write_text(json.dumps(lacking))
        assert "lacks `image_mean`, which DINOv3ViTImageProcessorFast has by default" in refused(directory, tmp_path)


def test_without_a_recipe_there_is_a_usual_one_and_a_note(source):
    report = convert_checkpoint(source("deit"))
    assert any("no preprocessing recipe in the source" in note for note in report.notes)
    processor = report.image_processor
    assert (dict(processor.size)["shortest_edge"], dict(processor.crop_size)["height"]) == (36, 32)
    assert list(processor.image_mean) == [0.485, 0.456, 0.406]


def test_saved_defaults_of_the_image_processor(pictures, source, tmp_path):
    convert_checkpoint(source("vit"), tmp_path / "converted", num_tokens=5, placement="sobol")
    processor = AutoImageProcessor.from_pretrained(tmp_path / "converted")
    assert processor(pictures, return_tensors="pt")["coordinates"].shape == (4, 5, 2)
    assert processor.patch_size == 8
    with pytest.raises(ValueError, match="placement"):
        convert_checkpoint(source("vit"), placement="nowhere")
