"""Golden outputs: a model that computes something else than where it was saved is told by `spot-hf verify`, in one line."""

import copy
import hashlib
import json
import shutil
import tempfile
from pathlib import Path

import pytest
import torch
from random_weights import randomise
from safetensors.torch import load, load_file, save, save_file
from tiny import POSITION_KINDS, tiny_config, tiny_model
from tiny_networks import tiny_network
from tiny_texts import clip_tokenizer, siglip_tokenizer, zero_shot_model

from spot_hf import (
    SpotViTBackbone,
    SpotViTForImageClassification,
    SpotViTForPreTraining,
    SpotViTForSemanticSegmentation,
    SpotViTModel,
    verify_model,
    wrap_network,
)
from spot_hf.cli import main
from spot_hf.golden import GOLDEN_FILE, METADATA, golden_bytes, golden_images, golden_tokens


def test_the_images_are_the_same_everywhere():
    """By their digest: files refer to the rule, and not to its pixels."""
    images = golden_images(3, 224, 196)
    assert images.shape == (2, 3, 224, 196) and images.dtype == torch.float32
    digest = hashlib.sha256((images * 64 + 128).to(torch.uint8).numpy().tobytes()).hexdigest()
    assert digest.startswith("ece90d8f49930387")
    assert torch.equal((images * 64).round(), images * 64) and images.min() >= -2 and images.max() < 2
    assert (images.std(dim=(2, 3)) > 0.5).all()  # a picture in each channel
    for other in (images.flip(-1), images.flip(-2), images.flip(0)):
        assert ((images - other).abs().mean(dim=(1, 2, 3)) > 0.2).all()
    coordinates, scales = golden_tokens(9)
    assert coordinates.shape == (2, 9, 2) and scales.shape == (2, 9) and coordinates.dtype == scales.dtype == torch.float32
    assert len(coordinates.flatten(0, 1).unique(dim=0)) == 18 and coordinates.min() >= 0 and coordinates.max() < 1
    assert scales.min() == 1 and scales.max() == 2.5


PLACER = {"placer": {"grid_size": 3, "thumbnail_size": 16, "hidden_size": 16, "head": "heatmap"}}
CASES = {
    "classifier": (SpotViTForImageClassification, {}),
    "registers": (SpotViTForImageClassification, {"num_register_tokens": 2, "use_layer_scale": True, "pooling": "cls_mean"}),
    "swiglu": (SpotViTForImageClassification, {"use_swiglu_ffn": True, "pooling": "mean", "norm_after_pooling": True}),
    "not_square": (SpotViTForImageClassification, {"image_size": [24, 56], "num_channels": 1}),
    "merging": (SpotViTForImageClassification, {"merge_tokens": 0.5}),
    "tokens": (SpotViTForImageClassification, {"num_tokens": 4, "placement": "foveated_edge"}),
    "budgets": (SpotViTForImageClassification, {"num_tokens": [4, 9], "confidence": 0.7}),
    "placer": (SpotViTForImageClassification, PLACER),
    "learned": (SpotViTForImageClassification, {**PLACER, "num_tokens": 4, "placement": "learned"}),
    "official": (
        SpotViTForImageClassification,
        {"position_kernel_centers": "mesh", "position_kernel_unit": "pixels", "window_border": "zero"},
    ),
    # The last layer's positions matter to the mean of all tokens, and not to a class token alone.
    **{kind: (SpotViTForImageClassification, {**POSITION_KINDS[kind], "pooling": "mean"}) for kind in POSITION_KINDS},
    "attention_pooling": (SpotViTModel, {"use_class_token": False, "pooling": "attention"}),
    "norms": (
        SpotViTForImageClassification,
        {"use_pre_norm": True, "use_qk_norm": True, "use_attention_norm": True, "use_mlp_norm": True, "use_final_norm": False},
    ),
    "backbone": (SpotViTBackbone, {"out_indices": [0, 1, 2], "reshape_hidden_states": False}),
    "headless": (SpotViTModel, {"pooling": "cls_mean"}),
    "pretraining": (SpotViTForPreTraining, {"decoder_hidden_size": 24, "decoder_num_attention_heads": 3}),
    "segmentation": (SpotViTForSemanticSegmentation, {"segmentation_scores_per_side": 2, "segmentation_hidden_size": 24}),
}


def made(name: str) -> torch.nn.Module:
    if name == "cnn":
        return wrap_network(tiny_network())
    if name in ("clip", "siglip"):
        return zero_shot_model(name, siglip_tokenizer() if name == "siglip" else clip_tokenizer(Path(tempfile.mkdtemp())))
    model_class, changes = CASES[name]
    return randomise(model_class(tiny_config(**{"decoder_num_hidden_layers": 1, **changes})))


@pytest.mark.parametrize("name", [*CASES, "cnn", "clip", "siglip"])
@torch.no_grad()
def test_every_changed_weight_is_found(name, tmp_path):
    model = made(name)
    model.save_pretrained(tmp_path)
    assert (tmp_path / GOLDEN_FILE).stat().st_size < 100_000
    found = verify_model(str(tmp_path))
    assert found.equal and str(found).startswith(f"{tmp_path}: equal: largest difference ") and "the same here" in str(found)
    for parameter_name, parameter in model.named_parameters():
        if parameter_name.endswith(("k_proj.bias", "k_norm.bias")):  # the same for all of a query's scores: of no effect
            continue
        before = parameter.clone()
        parameter.add_(0.1 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)))
        assert not model.verify(str(tmp_path)).equal, parameter_name
        parameter.copy_(before)
    assert model.verify(str(tmp_path)).equal


@pytest.mark.parametrize(
    "change",
    [
        {"layer_norm_eps": 0.1},
        {"hidden_act": "gelu_pytorch_tanh"},
        {"num_attention_heads": 2},
        {"pooling": "mean"},
        {"position_kernel_sigma": 0.9},
        {"window_border": "zero"},
        {"window_spacing": 1.5},
        {"num_tokens": 4},
        {"num_hidden_layers": 1},
        {"num_hidden_layers": 3},
        {"image_size": 32, "position_grid_size": [4, 4]},
        {"id2label": {"0": "a", "1": "b"}, "label2id": {"a": 0, "b": 1}},
    ],
    ids=str,
)
def test_a_changed_config_is_found(change, tmp_path):
    made("classifier").save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, **change}))
    found = verify_model(str(tmp_path))
    assert not found.equal and "DIFFERENT" in str(found) and "\n" not in str(found)


def test_weights_that_are_initialised_anew_are_named(tmp_path, capsys):
    """What transformers does without an error where a tensor is missing, or has another name."""
    made("classifier").save_pretrained(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    lost = "spot_vit.layers.1.mlp.fc1.weight"
    tensors["spot_vit.layers.1.mlp.dense.weight"] = tensors.pop(lost)
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    assert main(["verify", str(tmp_path)]) == 1
    line = capsys.readouterr().out.strip()
    assert "\n" not in line and f"DIFFERENT: `{lost}` newly initialised" in line
    assert "`spot_vit.layers.1.mlp.dense.weight` of the weights, not of the model" in line


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_weights_of_other_dtypes_are_compared_in_float32(dtype, tmp_path):
    made("classifier").to(dtype).save_pretrained(tmp_path)
    assert verify_model(str(tmp_path)).equal
    loaded = SpotViTForImageClassification.from_pretrained(tmp_path, dtype=dtype)
    assert loaded.verify().equal and loaded.dtype == dtype


def test_rounded_weights_are_not_compared(tmp_path):
    made("classifier").save_pretrained(tmp_path)
    loaded = SpotViTForImageClassification.from_pretrained(tmp_path, dtype=torch.bfloat16)
    with pytest.raises(ValueError, match=r"`dtype` of the model must be float32, as it was saved.*got bfloat16"):
        loaded.verify()


def test_saving_leaves_a_model_in_training_as_it_is(tmp_path):
    """Its modes, its random draws, and what it computes: dropout is in no golden output."""
    model = made("classifier").train()
    model.spot_vit.layers[0].eval()
    modes, state = [one.training for one in model.modules()], torch.get_rng_state()
    model.save_pretrained(tmp_path)
    assert [one.training for one in model.modules()] == modes and torch.equal(torch.get_rng_state(), state)
    assert all(one.grad is None and one.requires_grad for one in model.parameters())
    assert verify_model(str(tmp_path)).equal


def test_a_forward_pass_in_mixed_precision_is_not_the_models(tmp_path):
    from accelerate import Accelerator

    model = made("classifier")
    prepared = Accelerator(mixed_precision="bf16", cpu=True).prepare(model)
    prepared.save_pretrained(tmp_path)
    assert verify_model(str(tmp_path)).equal


@pytest.mark.parametrize("name", ["classifier", "budgets", "pretraining", "segmentation", "backbone", "cnn", "clip"])
def test_a_config_that_asks_for_tuples(name, tmp_path):
    made(name).save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "return_dict": False}))
    assert verify_model(str(tmp_path)).equal
    model = made(name)
    model.config.return_dict = False
    assert model.verify(str(tmp_path)).equal


# ------------------------------------------------------------------------------------------ what is no other computation


def test_another_class_is_named(tmp_path):
    made("classifier").save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"those of a SpotViTForImageClassification; load it with that class.* SpotViTModel$"):
        SpotViTModel.from_pretrained(tmp_path).verify()


def test_of_a_backbone_the_maps_of_both_are_compared(tmp_path):
    made("backbone").save_pretrained(tmp_path)
    for indices, equal in {(0, 1, 2): True, (2,): True, (0, 2): True}.items():
        loaded = SpotViTBackbone.from_pretrained(tmp_path, out_indices=list(indices))
        assert loaded.verify().equal == equal, loaded.verify()
    found = loaded.verify()
    assert {key for key in found.differences if "maps" in key} == {
        f"{case}/feature_maps.{stage}" for case in ("default", "off_grid") for stage in ("stem", "stage2")
    }
    with torch.no_grad():
        loaded.spot_vit.layers[1].mlp.fc1.weight += 0.1
    assert not loaded.verify().equal
    made_of_one = randomise(SpotViTBackbone(tiny_config(out_indices=[1], reshape_hidden_states=False)))
    made_of_one.save_pretrained(tmp_path / "one")
    found = SpotViTBackbone.from_pretrained(tmp_path / "one", out_indices=[2]).verify()
    assert not found.equal and "no feature map is of a stage that the golden outputs have" in str(found)


@torch.no_grad()
def test_a_placer_whose_scores_are_nearly_the_same(tmp_path):
    """Which of them is highest hangs on the last bit, as of another processor."""
    model = made("learned")
    for head in (model.placer.scores.flat, model.placer.scores.place):
        head.weight.zero_()
        head.bias.fill_(1)
    model.placer.scores.flat.bias += 1e-6
    model.save_pretrained(tmp_path)
    images = golden_images(3, *model.config.image_height_width)
    before = model.place(images, 4)["coordinates"]
    model.placer.scores.flat.bias -= 2e-6
    assert not torch.equal(model.place(images, 4)["coordinates"], before)
    assert model.verify(str(tmp_path)).equal


@torch.no_grad()
def test_outputs_of_other_weights_are_told_from_other_computations(tmp_path):
    model = made("classifier")
    model.save_pretrained(tmp_path)
    model.config.layer_norm_eps = 0.1
    other = SpotViTForImageClassification.from_pretrained(tmp_path, layer_norm_eps=0.1).verify()
    assert "DIFFERENT: default/logits" in str(other) and not other.other_weights
    model = SpotViTForImageClassification.from_pretrained(tmp_path)
    model.classifier.bias += 1
    model.to(torch.float64)
    found = model.verify()
    assert found.other_weights and not found.equal
    assert str(found).startswith(f"{tmp_path}: OTHER WEIGHTS: golden outputs are of other weights") and "\n" not in str(found)
    # As a plain Trainer pushes: the weights, without their golden file.
    (tmp_path / "model.safetensors").unlink()
    save_file(model.float().state_dict(), tmp_path / "model.safetensors", metadata={"format": "pt"})
    assert "OTHER WEIGHTS" in str(verify_model(str(tmp_path)))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_weights_in_another_dtype_are_the_same_weights(dtype, tmp_path):
    made("classifier").to(dtype).save_pretrained(tmp_path)
    for loaded_as in (torch.float32, torch.float64):
        model = SpotViTForImageClassification.from_pretrained(tmp_path, dtype=loaded_as, layer_norm_eps=0.1)
        assert "DIFFERENT" in str(model.verify())


def as_first_written(name: str, content: bytes) -> bytes:
    """A golden file as the first version wrote it: without a digest, feature maps by number, and with what a placer chose."""
    tensors, outputs, numbers = load(content), {}, {}
    for key in ("inputs/coordinates", "inputs/window_scales"):
        outputs[key] = tensors[key]
    for case in ("default", "grid", "off_grid", "placed"):
        keys = [key for key in tensors if key.startswith(f"outputs/{case}/")]
        stages = [f"outputs/{case}/feature_maps.{stage}" for stage in ("stem", "stage1", "stage2")]
        for key in [*(key for key in stages if key in keys), *(key for key in keys if key not in stages)]:
            numbers[key] = len([one for one in numbers if one.startswith(f"outputs/{case}/feature_maps.")])
            outputs[f"outputs/{case}/feature_maps.{numbers[key]}" if key in stages else key] = tensors[key]
    if name in ("placer", "learned"):
        outputs["outputs/placed/coordinates"], outputs["outputs/placed/window_scales"] = torch.ones(2, 18), torch.ones(2, 9)
    if name == "learned":
        outputs["outputs/default/logits"] = torch.ones(2, 5)
    about = {key: value for key, value in about_of(content).items() if key != "weights"}
    return save(outputs, metadata={METADATA: json.dumps(about)})


def about_of(content: bytes) -> dict:
    return json.loads(json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])["__metadata__"][METADATA])


@pytest.mark.parametrize("name", ["classifier", "backbone", "placer", "learned"])
@torch.no_grad()
def test_files_of_the_first_version_are_compared_as_before(name, tmp_path):
    model = made(name)
    model.save_pretrained(tmp_path)
    (tmp_path / GOLDEN_FILE).write_bytes(as_first_written(name, (tmp_path / GOLDEN_FILE).read_bytes()))
    assert verify_model(str(tmp_path)).equal
    model.spot_vit.embeddings.patch_projection.weight *= 1.5
    found = model.verify(str(tmp_path))
    assert not found.equal and "DIFFERENT" in str(found)


def test_a_model_without_a_place_of_its_own(tmp_path, monkeypatch):
    made("classifier").save_pretrained(tmp_path)
    monkeypatch.chdir(tmp_path)
    for name in (None, ""):
        with pytest.raises(ValueError, match="`name` must be a directory or a Hub id, as the model was not loaded from one"):
            made("classifier").verify(name)
    assert made("classifier").verify(".").equal


def test_it_is_compared_with_the_folder_that_it_was_loaded_from(tmp_path):
    made("classifier").save_pretrained(tmp_path / "inner")
    tiny_model().save_pretrained(tmp_path)
    loaded = SpotViTForImageClassification.from_pretrained(tmp_path, subfolder="inner")
    assert loaded.verify().equal and copy.deepcopy(loaded).verify().equal
    loaded, _ = SpotViTForImageClassification.from_pretrained(tmp_path, subfolder="inner", output_loading_info=True)
    assert loaded.verify().equal


def test_adapters(tmp_path):
    peft = pytest.importorskip("peft")
    made("classifier").save_pretrained(tmp_path)
    model = SpotViTForImageClassification.from_pretrained(tmp_path)
    model.add_adapter(peft.LoraConfig(target_modules=["q_proj"], init_lora_weights=False))
    with pytest.raises(ValueError, match="golden outputs are of a model without adapters"):
        model.verify()
    model.save_pretrained(tmp_path / "adapter")
    assert not (tmp_path / "adapter" / GOLDEN_FILE).exists()


# ------------------------------------------------------------------------------------------------------- never a stale one


@torch.no_grad()
def test_what_is_saved_again_has_outputs_of_its_own(tmp_path):
    model = made("classifier")
    model.save_pretrained(tmp_path)
    first = (tmp_path / GOLDEN_FILE).read_bytes()
    model.classifier.bias += 1  # trained on
    assert not model.verify(str(tmp_path)).equal
    model.save_pretrained(tmp_path)
    assert verify_model(str(tmp_path)).equal and (tmp_path / GOLDEN_FILE).read_bytes() != first
    # As Trainer and Accelerate save: weights that were gathered, in the place of the model's own.
    weights = {name: tensor + 0.1 for name, tensor in model.state_dict().items()}
    model.save_pretrained(tmp_path, state_dict=weights)
    assert verify_model(str(tmp_path)).equal and not model.verify(str(tmp_path)).equal


def test_of_the_same_weights_the_file_is_the_same():
    assert golden_bytes(made("classifier")) == golden_bytes(made("classifier"))


class Asking(SpotViTForImageClassification):
    """A person's own class, whose forward pass needs more."""

    def forward(self, pixel_values, question):
        raise AssertionError


@pytest.mark.parametrize("way", ["a part of the weights", "other inputs", "quantised"])
def test_where_they_cannot_be_computed_none_are_left(way, tmp_path):
    made("classifier").save_pretrained(tmp_path)
    model = made("classifier")
    if way == "a part of the weights":
        model.save_pretrained(tmp_path, state_dict={"classifier.bias": torch.ones(5)})
    elif way == "other inputs":
        model.__class__ = Asking
        model.save_pretrained(tmp_path)
    else:
        model.spot_vit.layers[0].mlp.fc1.weight = torch.nn.Parameter(torch.ones(48, 32, dtype=torch.int8), requires_grad=False)
        model.save_pretrained(tmp_path)
    assert (tmp_path / "model.safetensors").is_file() and not (tmp_path / GOLDEN_FILE).exists()


def test_processes_that_do_not_write_leave_it(tmp_path, monkeypatch):
    monkeypatch.setenv("RANK", "1")
    made("classifier").save_pretrained(tmp_path)
    assert not (tmp_path / GOLDEN_FILE).exists()
    monkeypatch.delenv("RANK")
    made("classifier").save_pretrained(tmp_path, is_main_process=False)
    assert not (tmp_path / GOLDEN_FILE).exists()


def test_many_classes_make_no_large_file():
    assert len(golden_bytes(tiny_model(num_labels=21_841))) < 100_000


# ------------------------------------------------------------------------------------------------------------ the command


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    directory = tmp_path_factory.mktemp("saved") / "spot"
    made("classifier").save_pretrained(directory)
    return directory


def test_the_command_prints_one_line(saved, capsys):
    assert main(["verify", str(saved)]) == 0
    printed = capsys.readouterr()
    assert printed.out.startswith(f"{saved}: equal: ") and printed.out.count("\n") == 1 and not printed.err


def broken(directory, content: bytes | None) -> None:
    if content is None:
        (directory / GOLDEN_FILE).unlink()
    else:
        (directory / GOLDEN_FILE).write_bytes(content)


WHOLE = golden_bytes(made("classifier"))


def with_about(only: str = "", **changes) -> bytes:
    about = {key: value for key, value in {**about_of(WHOLE), **changes}.items() if value is not ...}
    tensors = {key: one for key, one in load(WHOLE).items() if key.startswith(only)}
    return save(tensors, metadata={METADATA: json.dumps(about)})


BROKEN = {
    "none": (None, "has no golden.safetensors to compare with"),
    "empty": (b"", "is broken"),
    "cut_off": (WHOLE[:-8], "is broken"),
    "cut_off_within_its_header": (WHOLE[:100], "is broken"),
    "nothing": (b"\0" * 100, "is broken"),
    "another_file": (b"\x1f\x8b" * 500, "is broken"),
    **{
        f"{key} is {value!r}": (with_about(**{key: value}), "is broken")
        for key, values in {
            "dtype": [None, "foo", "int64", 3, "Tensor"],
            "versions": [None, [], {"torch": 3}, {"torch": "2\n3"}],
            "model_class": [None, 3, "a\nb"],
            "image_size": [None, 3, [32], [32, "32"], [0, 32], [True, 32]],
            "num_channels": [None, "3", -1],
            "weights": [3, []],
        }.items()
        for value in values
        if (key, value) != ("weights", None)
    },
    "no dtype": (with_about(dtype=...), "is broken (KeyError: 'dtype')"),
    "no model_class": (with_about(model_class=...), "is broken (KeyError: 'model_class')"),
    "no versions": (with_about(versions=...), "is broken (KeyError: 'versions')"),
    "no rule": (with_about(rule=...), "is broken (KeyError: 'rule')"),
    "metadata_are_a_list": (save(load(WHOLE), metadata={METADATA: "[1]"}), "is broken"),
    "metadata_are_deep": (save(load(WHOLE), metadata={METADATA: "[" * 100_000}), "is broken"),
    "no_outputs": (with_about(only="inputs/"), "it holds no outputs"),
    "no_inputs": (with_about(only="outputs/"), "is broken (KeyError: 'inputs/coordinates')"),
    "too_large": (b"\0" * (2**24 + 1), "16777217 bytes"),
    "of_another_rule": (WHOLE.replace(b"waves-1", b"waves-2"), "is of another rule, 'waves-2'"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_one_line_where_there_is_nothing_to_compare_with(name, saved, tmp_path, capsys):
    content, words = BROKEN[name]
    shutil.copytree(saved, tmp_path / "spot")
    broken(tmp_path / "spot", content)
    assert main(["verify", str(tmp_path / "spot")]) == 1
    printed = capsys.readouterr()
    assert words in printed.err and printed.err.count("\n") == 1 and not printed.out


@pytest.mark.parametrize(
    "argv, status, words",
    [
        ([], 2, "MODEL"),
        (["nowhere"], 1, "`model` must be a directory or a Hub id"),
        (["alice/nothing"], 1, "Cannot find the requested files"),
        (["tiny_vit"], 2, "is a 'vit', not a SpotViT"),
    ],
)
def test_what_is_no_model(argv, status, words, tiny_vit, capsys):
    assert main(["verify", *(str(tiny_vit) if word == "tiny_vit" else word for word in argv)]) == status
    printed = capsys.readouterr().err
    assert words in printed and printed.count("\n") == 1


@pytest.mark.parametrize("size", [[10**9, 10**9], [64, 32]])
def test_images_have_the_size_of_the_models_config(size, saved, tmp_path, capsys):
    """Not that which a file asks for."""
    shutil.copytree(saved, tmp_path / "spot")
    broken(tmp_path / "spot", with_about(image_size=size))
    shape = [3, *about_of(WHOLE)["image_size"]]
    assert main(["verify", str(tmp_path / "spot")]) == 1
    line = capsys.readouterr().out
    assert f"DIFFERENT: images have the shape {shape}, those of the golden outputs {[3, *size]}" in line


@pytest.mark.parametrize(
    "error, words",
    [(AttributeError("'NoneType' has no\nsuch"), "AttributeError: 'NoneType' has no;"), (KeyError(), "KeyError;")],
    ids=str,
)
def test_code_that_breaks_is_one_line(error, words, saved, monkeypatch, capsys):
    def forward(self, *arguments, **options):
        raise error

    monkeypatch.setattr(SpotViTForImageClassification, "forward", forward)
    assert main(["verify", str(saved)]) == 1
    line = capsys.readouterr().out
    assert line.count("\n") == 1 and f"DIFFERENT: it does not run: {words}" in line


# ------------------------------------------------------------------------------------------------------------ remote code


def verify_by_remote_code(directory, tampered):
    """In a process without the package."""
    from transformers import AutoModelForImageClassification

    def found(name):
        model = AutoModelForImageClassification.from_pretrained(name, trust_remote_code=True)
        assert type(model).__module__.startswith("transformers_modules.")
        result = model.verify()
        return {"equal": result.equal, "line": str(result)}

    return {"whole": found(directory), "tampered": found(tampered)}


def test_without_the_package_a_model_tells_by_itself(saved, tmp_path, fresh_process):
    """The code of the repository, which is what its users run."""
    tampered = tmp_path / "tampered"
    shutil.copytree(saved, tampered)
    code = (tampered / "modeling_spot_vit.py").read_text()
    assert "self.head_dim**-0.5" in code
    (tampered / "modeling_spot_vit.py").write_text(code.replace("self.head_dim**-0.5", "self.head_dim**-0.4"))
    found = fresh_process(verify_by_remote_code, saved, tampered, without_spot_hf=True)
    assert found["whole"]["equal"] and not found["tampered"]["equal"]
    assert "DIFFERENT: " in found["tampered"]["line"]
