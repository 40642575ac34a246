"""A converted model as someone finds it who has transformers and not this package: `trust_remote_code=True` on a directory.

The first process loads what `convert_checkpoint` wrote, the second what the first saved again.
"""

import json
from pathlib import Path

import pytest
from tiny import nearly
from transformers.utils import is_torchvision_available


CODE = {
    "configuration_spot_vit.py",
    "frames.py",
    "drawing.py",
    "foveation.py",
    "budgets.py",
    "merging.py",
    "placer.py",
    "image_processing_spot_vit.py",
    "input_checks.py",
    "modeling_spot_vit.py",
    "pipeline_spot_vit.py",
    "placement.py",
    "positions.py",
    "pretraining_spot_vit.py",
    "segmentation_maps.py",
    "segmentation_pipeline.py",
    "segmentation_spot_vit.py",
    "zero_shot_pipeline.py",
    "zero_shot_spot_vit.py",
    "batch_feature.py",
    "configuration_spot.py",
    "modeling_spot.py",
    "golden.py",
    "backbone_spot_vit.py",
    "version.py",
    "decoding.py",
    "windows.py",
    "handler.py",
}


@pytest.fixture(scope="module")
def converted(tiny_vit, photos, tmp_path_factory) -> tuple[Path, Path]:
    """A directory written by `convert_checkpoint`, and a file of what the package itself computes from it."""
    import copy

    import torch
    from PIL import Image
    from safetensors.torch import save_file
    from transformers import pipeline

    from spot_hf import convert_checkpoint

    directory = tmp_path_factory.mktemp("converted") / "model"
    report = convert_checkpoint(str(tiny_vit), directory, num_tokens=7, placement="isotropic")
    model, image_processor = report.model, report.image_processor
    images = [Image.open(photo) for photo in photos]
    inputs = image_processor(images, return_tensors="pt")
    with torch.no_grad():
        tensors = {
            **inputs,
            "logits": model(**inputs).logits,
            "full_grid_logits": model(inputs["pixel_values"]).logits,
            "pooler_output": model.spot_vit(**inputs).pooler_output,
        }
    classifier = pipeline("spot-image-classification", model=model, image_processor=image_processor)
    predictions = {
        "saved": classifier(photos),
        "center": classifier(photos, num_tokens=5, placement="center", return_coordinates=True),
    }
    model, smaller = copy.deepcopy(model), image_processor.resized(16, 24)
    model.resize_position_embeddings(16, 24)
    with torch.no_grad():
        tensors["resized_logits"] = model(smaller(images, placement="grid", return_tensors="pt")["pixel_values"]).logits
    tensors = {name: tensor.contiguous() for name, tensor in tensors.items()}
    save_file(tensors, directory.parent / "expected.safetensors")
    (directory.parent / "expected.json").write_text(json.dumps(predictions))
    return directory, directory.parent


def load(directory, expected, photos, save_to):
    """In the new process: loads all there is, compares it with what the package computed, saves it again."""
    import copy

    import torch
    from PIL import Image
    from safetensors.torch import load_file
    from transformers import AutoConfig, AutoModel, AutoModelForImageClassification, pipeline
    from transformers.models.auto.image_processing_auto import AutoImageProcessor

    def aligned(model):
        """Weights lie in memory as in their file; matrix products round by their operands' alignment. Copies are aligned."""
        for parameter in model.parameters():
            parameter.data = parameter.data.clone()
        return model

    tensors = load_file(f"{expected}/expected.safetensors")
    remote = {"trust_remote_code": True}
    model = aligned(AutoModelForImageClassification.from_pretrained(directory, **remote))
    encoder = aligned(AutoModel.from_pretrained(directory, **remote))
    image_processor = AutoImageProcessor.from_pretrained(directory, **remote)
    config = AutoConfig.from_pretrained(directory, **remote)
    inputs = image_processor([Image.open(photo) for photo in photos], return_tensors="pt")
    with torch.no_grad():
        computed = {
            **inputs,
            "logits": model(**inputs).logits,
            "full_grid_logits": model(inputs["pixel_values"]).logits,
            "pooler_output": encoder(**inputs).pooler_output,
        }
    spot = pipeline("spot-image-classification", model=directory, **remote)
    stock = pipeline("image-classification", model=directory, **remote)
    aligned(spot.model), aligned(stock.model)

    resized, smaller = copy.deepcopy(model), image_processor.resized(16, 24)
    resized.resize_position_embeddings(16, 24)
    pixel_values = smaller([Image.open(photo) for photo in photos], placement="grid", return_tensors="pt")["pixel_values"]
    with torch.no_grad():
        computed["resized_logits"] = resized(pixel_values).logits

    seen = {}
    half = pipeline("image-classification", model=directory, dtype=torch.bfloat16, **remote)
    half.model.register_forward_pre_hook(
        lambda module, args, kwargs: seen.update({name: str(tensor.dtype) for name, tensor in kwargs.items()}),
        with_kwargs=True,
    )
    spot.save_pretrained(save_to)
    return {
        "modules": [type(one).__module__ for one in (model, encoder, image_processor, config, spot)],
        "classes": [type(one).__name__ for one in (model, encoder, image_processor, config, spot, stock)],
        "differences": {name: (computed[name] - tensor).abs().max().item() for name, tensor in tensors.items()},
        "spot": spot(photos),
        "stock": stock(photos),
        "center": spot(photos, num_tokens=5, placement="center", return_coordinates=True),
        "half": half(photos),
        "half_inputs": seen,
    }


@pytest.fixture(scope="module")
def saved(tmp_path_factory) -> list[Path]:
    return [tmp_path_factory.mktemp("saved") / str(i) for i in range(2)]


@pytest.fixture(scope="module")
def loaded(converted, photos, saved, fresh_process):
    directory, expected = converted
    return fresh_process(load, directory, expected, photos, saved[0], without_spot_hf=True)


@pytest.fixture(scope="module")
def reloaded(loaded, converted, photos, saved, fresh_process):
    return fresh_process(load, saved[0], converted[1], photos, saved[1], without_spot_hf=True)


PROCESSES = ["loaded", "reloaded"]


@pytest.mark.parametrize("process", PROCESSES)
def test_all_code_is_the_repositorys(process, request):
    result = request.getfixturevalue(process)
    assert all(module.startswith("transformers_modules.") for module in result["modules"]), result["modules"]
    assert result["classes"] == [
        "SpotViTForImageClassification",
        "SpotViTModel",
        "SpotViTImageProcessor" if is_torchvision_available() else "SpotViTImageProcessorPil",
        "SpotViTConfig",
        "SpotImageClassificationPipeline",
        "ImageClassificationPipeline",
    ]


@pytest.mark.parametrize("process", PROCESSES)
def test_inputs_and_outputs_are_the_packages_bit_for_bit(process, request):
    result = request.getfixturevalue(process)
    # The same operations in the same order, on one thread and aligned memory: no rounding differs.
    assert result["differences"] == dict.fromkeys(
        ["pixel_values", "coordinates", "logits", "full_grid_logits", "pooler_output", "resized_logits"], 0.0
    )


@pytest.mark.parametrize("process", PROCESSES)
def test_pipelines_predict_as_the_packages(process, converted, request):
    result = request.getfixturevalue(process)
    expected = json.loads((converted[1] / "expected.json").read_text())
    assert result["spot"] == expected["saved"] and result["stock"] == nearly(expected["saved"])
    assert result["center"] == expected["center"]


@pytest.mark.parametrize("process", PROCESSES)
def test_stock_pipeline_in_bfloat16_keeps_coordinates_in_float32(process, request):
    result = request.getfixturevalue(process)
    assert result["half_inputs"] == {"pixel_values": "torch.bfloat16", "coordinates": "torch.float32"}
    for half, full in zip(result["half"], result["stock"], strict=True):
        scores = {one["label"]: one["score"] for one in full}
        # bfloat16 has 8 bits: 0.4% per operation, a few percent of a logit of order 1 through two layers.
        assert {one["label"]: one["score"] for one in half} == pytest.approx(scores, abs=0.05)


def test_saving_what_was_loaded_gives_the_same_files(converted, loaded, reloaded, saved):
    first, second, third = (directory_contents(directory) for directory in (converted[0], *saved))
    # Written by the installed package alone: remote code has neither a report nor templates of cards.
    for name in ("conversion_report.json", "README.md", "requirements.txt"):
        first.pop(name)
    assert set(first) == {*CODE, "config.json", "golden.safetensors", "model.safetensors", "preprocessor_config.json"}
    assert first == second == third


def directory_contents(directory: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in directory.iterdir()}


def test_saved_files_refer_to_the_code_beside_them(loaded, saved):
    config = json.loads((saved[0] / "config.json").read_text())
    recipe = json.loads((saved[0] / "preprocessor_config.json").read_text())
    references = [*config["auto_map"].values(), *recipe["auto_map"]["AutoImageProcessor"].values()]
    references += [entry["impl"] for entry in config["custom_pipelines"].values()]
    assert len(references) == 10
    for reference in references:
        module, name = reference.split(".")  # no `user/name--` before it
        assert f"class {name}(" in (saved[0] / f"{module}.py").read_text()


# --------------------------------------------------------------------------------------------------- masked pre-training


def load_for_pretraining(directory, inputs):
    """In the new process: the model with its decoder, and the encoder alone."""
    import torch
    from safetensors.torch import load_file
    from transformers import AutoModel, AutoModelForPreTraining

    inputs = load_file(inputs)
    model = AutoModelForPreTraining.from_pretrained(directory, trust_remote_code=True)
    encoder = AutoModel.from_pretrained(directory, trust_remote_code=True)
    with torch.no_grad():
        loss = model(**inputs).loss.item()
        pooled = encoder(inputs["pixel_values"]).pooler_output[0].tolist()
    return {"module": type(model).__module__, "loss": loss, "pooled": pooled}


def test_a_pretrained_model_and_its_encoder(fresh_process, tmp_path):
    import torch
    from safetensors.torch import save_file
    from tiny import random_images, tiny_model

    from spot_hf import SpotViTForPreTraining

    model = tiny_model(model_class=SpotViTForPreTraining, decoder_hidden_size=24, decoder_num_attention_heads=3)
    model.save_pretrained(tmp_path / "model")
    inputs = {"pixel_values": random_images(1), "noise": torch.rand(1, 36, generator=torch.Generator().manual_seed(0))}
    save_file(inputs, tmp_path / "inputs.safetensors")
    with torch.no_grad():
        loss = model(**inputs).loss.item()
        pooled = model.spot_vit(inputs["pixel_values"]).pooler_output[0].tolist()
    loaded = fresh_process(load_for_pretraining, tmp_path / "model", tmp_path / "inputs.safetensors", without_spot_hf=True)
    assert loaded["module"].startswith("transformers_modules.")
    # Weights lie elsewhere in memory: matrix products may round otherwise.
    assert loaded["loss"] == pytest.approx(loss, rel=1e-5) and loaded["pooled"] == pytest.approx(pooled, abs=1e-4)


# ------------------------------------------------------------------------------------------------ convolutional networks


def load_network(directory, inputs, photos, save_to):
    """In the new process: all there is of a SpotCNN, saved again."""
    import torch
    from safetensors.torch import load_file
    from transformers import AutoModel, AutoModelForImageClassification, pipeline
    from transformers.models.auto.image_processing_auto import AutoImageProcessor

    inputs = load_file(inputs)
    model = AutoModelForImageClassification.from_pretrained(directory, trust_remote_code=True)
    headless = AutoModel.from_pretrained(directory, trust_remote_code=True)
    processor = AutoImageProcessor.from_pretrained(directory, trust_remote_code=True)
    with torch.no_grad():
        logits, pooled = model(**inputs).logits.tolist(), headless(**inputs).pooler_output.tolist()
    spot = pipeline("spot-image-classification", model=directory, trust_remote_code=True)
    stock = pipeline("image-classification", model=directory, trust_remote_code=True)
    answers = {"spot": spot(photos), "stock": stock(photos), "placed": spot(photos, num_tokens=6, placement="center")}
    spot.save_pretrained(save_to)
    return {
        "modules": [type(one).__module__ for one in (model, headless, processor, spot)],
        "logits": logits,
        "pooled": pooled,
    } | answers


def test_a_convolutional_network(photos, fresh_process, tmp_path):
    import torch
    from safetensors.torch import save_file
    from tiny import random_coordinates, random_images
    from tiny_networks import save_network
    from transformers import pipeline

    from spot_hf import convert_checkpoint

    directory = tmp_path / "model"
    report = convert_checkpoint(save_network(tmp_path / "source"), directory, num_tokens=4, placement="isotropic")
    inputs = {"pixel_values": random_images(2, 96, 96), "coordinates": random_coordinates(2, 9)}
    save_file(inputs, tmp_path / "inputs.safetensors")
    with torch.no_grad():
        logits, pooled = report.model(**inputs).logits.tolist(), report.model.base_model(**inputs).pooler_output.tolist()
    classifier = pipeline("spot-image-classification", model=report.model, image_processor=report.image_processor)
    of_the_package = {"spot": classifier(photos), "placed": classifier(photos, num_tokens=6, placement="center")}
    own = CODE - {"configuration_spot_vit.py", "modeling_spot_vit.py", "positions.py", "placer.py", "pretraining_spot_vit.py"}
    own -= {"segmentation_spot_vit.py", "segmentation_pipeline.py", "zero_shot_spot_vit.py", "zero_shot_pipeline.py"}
    own -= {"backbone_spot_vit.py"}
    own |= {"configuration_spot_cnn.py", "modeling_spot_cnn.py"}
    for number in range(2):
        assert {file.name for file in directory.glob("*.py")} == own
        save_to = tmp_path / f"saved{number}"
        found = fresh_process(load_network, directory, tmp_path / "inputs.safetensors", photos, save_to, without_spot_hf=True)
        assert all(module.startswith("transformers_modules.") for module in found["modules"])
        # Weights lie elsewhere in memory: matrix products may round otherwise.
        assert torch.tensor(found["logits"]).sub(torch.tensor(logits)).abs().max() <= 1e-5
        assert torch.tensor(found["pooled"]).sub(torch.tensor(pooled)).abs().max() <= 1e-5
        assert found["spot"] == nearly(of_the_package["spot"]) and found["stock"] == nearly(of_the_package["spot"])
        assert found["placed"] == nearly(of_the_package["placed"])
        directory = save_to
