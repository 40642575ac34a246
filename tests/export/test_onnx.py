"""ONNX files: one for any number of images and tokens and any size of image, equal to PyTorch, and run as the model is."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tiny import POSITION_KINDS, random_coordinates, random_images, tiny_model, tiny_processor
from transformers import pipeline

from spot_hf import (
    SpotImageClassificationPipeline,
    SpotViTForImageClassification,
    SpotViTForSemanticSegmentation,
    SpotViTModel,
    convert_checkpoint,
)
from spot_hf.cli import main


onnx = pytest.importorskip("onnx", reason="the extra onnx is not installed")
pytest.importorskip("onnxscript", reason="the extra onnx is not installed")
pytest.importorskip("onnxruntime", reason="the extra onnx is not installed")

from spot_hf.export import OnnxSpotViT, export_model, quantization  # noqa: E402
from spot_hf.export.graph import rename_external_data  # noqa: E402
from spot_hf.export.quantization import BLOCK_SIZE  # noqa: E402
from spot_hf.export.runtime import open_session  # noqa: E402


pytestmark = pytest.mark.export

# Sums in another order, through a few layers and up to 768 terms; logits here are of the order of 10 at the most.
TOLERANCE = {"rtol": 0, "atol": 1e-4}
LARGE = {"image_size": 224, "patch_size": 16}


def real(name, request, tmp_path_factory):
    directory = tmp_path_factory.mktemp(name)
    report = convert_checkpoint(str(request.getfixturevalue(name)), directory / "model")
    return report.model, report.image_processor


def rotary(request, tmp_path_factory):
    return tiny_model(**LARGE, **POSITION_KINDS["rotary"]), None


def segmentation(request, tmp_path_factory):
    return tiny_model(model_class=SpotViTForSemanticSegmentation, **LARGE, segmentation_scores_per_side=2), None


MODELS = {
    "vit": lambda *one: real("vit_tiny", *one),
    "deit": lambda *one: real("deit_tiny", *one),
    "rotary": rotary,
    "segmentation": segmentation,
}


@pytest.fixture(scope="module", params=MODELS)
def exported(request, tmp_path_factory) -> tuple[torch.nn.Module, Path]:
    model, image_processor = MODELS[request.param](request, tmp_path_factory)
    directory = tmp_path_factory.mktemp("exported")
    export_model(model, directory, image_processor=image_processor)
    return model.eval(), directory


@torch.no_grad()
def test_one_file_gives_the_logits_of_pytorch(exported):
    model, directory = exported
    in_onnx = OnnxSpotViT.from_pretrained(directory)
    for num_tokens in (1, 25, 49, 196):
        for batch_size in (1, 7):
            for size in (224, 320):
                inputs = {
                    "pixel_values": random_images(batch_size, size, size, seed=num_tokens),
                    "coordinates": random_coordinates(batch_size, num_tokens, seed=batch_size),
                }
                expected, found = model(**inputs), in_onnx(**inputs)
                assert type(found).__name__.endswith(type(expected).__name__.removeprefix("SpotViT"))
                torch.testing.assert_close(found.logits, expected.logits, **TOLERANCE)
    whole = random_images(2, 224, 320)  # without coordinates, all cells of the grid
    torch.testing.assert_close(in_onnx(whole).logits, model(whole).logits, **TOLERANCE)


def test_the_graph_is_of_common_operators(exported):
    """GridSample's kernels are partial in browsers; so are operators of other domains than ONNX's own."""
    _, directory = exported
    model = onnx.load(directory / "onnx" / "model.onnx")
    operators = {node.op_type for node in model.graph.node}
    assert "GatherElements" in operators
    assert not operators & {"GridSample", "Loop", "If", "Scan"}
    assert {one.domain for one in model.opset_import} == {""} and not model.functions
    assert [one.name for one in model.graph.input] == ["pixel_values", "coordinates"]
    assert [one.name for one in model.graph.output] == ["logits"]
    axes = [[axis.dim_param or axis.dim_value for axis in one.type.tensor_type.shape.dim] for one in model.graph.input]
    assert axes == [["batch_size", 3, "height", "width"], ["batch_size", "num_tokens", 2]]


@pytest.fixture(scope="module")
def encoder(tmp_path_factory) -> tuple[SpotViTModel, Path]:
    """Without a classifier, with all inputs."""
    model = tiny_model(model_class=SpotViTModel, **POSITION_KINDS["relative"], pooling="cls_mean")
    directory = tmp_path_factory.mktemp("encoder")
    export_model(model, directory, with_mask=True, with_window_scales=True)
    return model, directory


@torch.no_grad()
def test_features_masks_and_window_scales(encoder):
    """Also of images with odd sides, and of windows larger than the image; padding's own features are anything."""
    model, directory = encoder
    in_onnx = OnnxSpotViT.from_pretrained(directory)
    assert in_onnx.input_names == ["pixel_values", "coordinates", "coordinates_mask", "window_scales"]
    for batch_size, num_tokens, height, width in ((1, 1, 48, 48), (2, 9, 49, 51), (3, 4, 8, 200), (5, 30, 131, 77)):
        mask = torch.rand(batch_size, num_tokens, generator=torch.Generator().manual_seed(3)) < 0.6
        mask[:, 0] = True
        scales = 2 ** (6 * torch.rand(batch_size, num_tokens, generator=torch.Generator().manual_seed(4)) - 1)
        inputs = {
            "pixel_values": random_images(batch_size, height, width),
            "coordinates": random_coordinates(batch_size, num_tokens),
        }
        for more in ({"coordinates_mask": mask, "window_scales": scales}, {"window_scales": scales}, {}):
            expected, found = model(**inputs, **more), in_onnx(**inputs, **more)
            torch.testing.assert_close(found.pooler_output, expected.pooler_output, **TOLERANCE)
            kept = mask if "coordinates_mask" in more else torch.ones_like(mask)
            kept = torch.cat([kept.new_ones(batch_size, model.config.num_prefix_tokens), kept], dim=1)
            torch.testing.assert_close(found.last_hidden_state[kept], expected.last_hidden_state[kept], **TOLERANCE)


def test_weights_beside_a_graph_are_named_as_on_the_hub(tmp_path):
    """As torch leaves them where they are large: `torch.onnx.export` alone knows how large."""
    path = tmp_path / "model.onnx"
    program = torch.onnx.export(torch.nn.Linear(32, 32), (torch.ones(2, 32),), dynamo=True, verbose=False)
    program.save(path, external_data=True)
    expected = open_session(path).run(None, {"input": np.ones((2, 32), np.float32)})[0]
    rename_external_data(path)
    assert {one.name for one in tmp_path.iterdir()} == {"model.onnx", "model.onnx_data"}
    assert np.array_equal(open_session(path).run(None, {"input": np.ones((2, 32), np.float32)})[0], expected)


def test_int8_weights_beside_a_graph_are_named_likewise(tmp_path, monkeypatch):
    path, smaller = tmp_path / "model.onnx", tmp_path / "model_quantized.onnx"
    program = torch.onnx.export(torch.nn.Linear(64, 64, bias=False), (torch.ones(2, 3, 64),), dynamo=True, verbose=False)
    program.save(path)
    monkeypatch.setattr(quantization, "LARGEST_FILE", 100)  # bytes
    quantization.quantize_int8(path, smaller)
    assert {one.name for one in tmp_path.iterdir()} == {"model.onnx", "model_quantized.onnx", "model_quantized.onnx_data"}
    inputs = {open_session(path).get_inputs()[0].name: np.ones((2, 3, 64), np.float32)}
    expected, found = open_session(path).run(None, inputs)[0], open_session(smaller).run(None, inputs)[0]
    # Of 64 weights below 1/8, each rounded to 1/127 of that; of inputs that are all 1, nothing is rounded.
    np.testing.assert_allclose(found, expected, rtol=0, atol=64 / 8 / 127)


@torch.no_grad()
def test_a_model_that_places_evenly_by_itself(tmp_path):
    """Its windows cover the image: the graph takes their scales, asked or not."""
    model = tiny_model(num_tokens=9)
    export_model(model, tmp_path, image_processor=tiny_processor())
    in_onnx, images = OnnxSpotViT.from_pretrained(tmp_path), random_images(2)
    torch.testing.assert_close(in_onnx(images).logits, model(images).logits, **TOLERANCE)


# ------------------------------------------------------------------------------------------------- by the command line


@pytest.fixture(scope="module")
def digits_model(tmp_path_factory) -> Path:
    """Of ten classes, which places by itself, in looks."""
    names = {number: str(number) for number in range(10)}
    model = tiny_model(
        id2label=names,
        label2id={name: number for number, name in names.items()},
        placer={"thumbnail_size": 16, "head": "heatmap", "hidden_size": 8},
        placement="learned",
        num_tokens=[4, 9],
        confidence=[0.3],
        num_labels=10,
    )
    directory = tmp_path_factory.mktemp("digits") / "model"
    model.save_pretrained(directory)
    tiny_processor().save_pretrained(directory)
    return directory


@pytest.fixture(scope="module")
def written(digits_model, tmp_path_factory) -> Path:
    directory = tmp_path_factory.mktemp("written") / "onnx"
    command = ["export", "--model", str(digits_model), "--output_dir", str(directory), "--quantize", "int8", "float16"]
    command += ["--dataset_name", "digits", "--max_samples", "40", "--num_tokens", "9", "36", "--labels_by_number"]
    assert main(command) == 0
    return directory


def test_files_are_where_the_hub_expects_them(written, digits_model):
    files = {path.relative_to(written).as_posix() for path in written.rglob("*") if path.is_file()}
    graphs = {f"onnx/{name}.onnx" for name in ("model", "model_quantized", "model_fp16", "placer")}
    assert files == {*graphs, "config.json", "preprocessor_config.json", "export_report.json", "README.md"}
    config = json.loads((written / "config.json").read_text())
    assert config["transformers.js_config"] == {"dtype": "q8", "device_config": {"webgpu": {"dtype": "fp32"}}}
    assert "auto_map" not in config
    assert config["num_tokens"] == [4, 9] and config["confidence"] == [0.3]  # the thresholds
    assert "auto_map" not in json.loads((written / "preprocessor_config.json").read_text())
    assert "OnnxSpotViT" in (written / "README.md").read_text()


def test_the_report_has_differences_and_accuracy(written):
    report = json.loads((written / "export_report.json").read_text())
    assert max(report["differences"]["float32"].values()) < report["tolerance"] == 1e-4
    assert len(report["differences"]["float32"]) == 4
    measured = report["measured"]
    assert measured["num_images"] == 40 and measured["split"]["dataset_name"] == "digits"
    for count in ("9", "36"):
        figures = measured["num_tokens"][count]
        assert list(figures) == ["pytorch", "onnx float32", "onnx int8", "onnx float16"]
        assert figures["pytorch"]["agreement"] == figures["onnx float32"]["agreement"] == 1
        assert figures["onnx float32"]["accuracy"] == figures["pytorch"]["accuracy"]
        assert figures["onnx float16"]["agreement"] >= 0.95
    assert report["files"]["onnx/model.onnx"] == (written / "onnx/model.onnx").stat().st_size


def test_int8_is_of_the_weights_of_layers_alone(written, digits_model):
    """In blocks, with products in int8; positions and attention stay float32."""
    graph = onnx.load(written / "onnx" / "model_quantized.onnx").graph
    nodes = [node for node in graph.node if any("position_embeddings" in one.value for one in node.metadata_props)]
    assert any(node.op_type == "MatMul" for node in nodes) and not any(node.op_type == "MatMulNBits" for node in nodes)
    smaller = [node for node in graph.node if node.op_type == "MatMulNBits"]
    config = SpotViTForImageClassification.from_pretrained(digits_model).config
    assert len(smaller) == 1 + 6 * config.num_hidden_layers  # patches; queries, keys, values, outputs, two of the MLP
    for node in smaller:
        values = {one.name: one.i for one in node.attribute}
        assert (values["bits"], values["block_size"], values["accuracy_level"]) == (8, BLOCK_SIZE, 4)
    weights = {one.name for one in graph.initializer}
    products = [node for node in graph.node if node.op_type == "MatMul" and node not in nodes]
    assert len(products) == 2 * config.num_hidden_layers and not any(weights & set(node.input) for node in products)


def test_int8_does_not_depend_on_batch_mates(written):
    """One scale for a whole batch would: a mate with values 1,000 times as large leaves nothing of an image."""
    in_onnx = OnnxSpotViT.from_pretrained(written, quantize="int8")
    images, coordinates = random_images(3), random_coordinates(3, 9)
    images[1] *= 1000
    together = in_onnx(images, coordinates=coordinates).logits
    for number in range(3):
        alone = in_onnx(images[number, None], coordinates=coordinates[number, None]).logits[0]
        # Float32 sums in another order, and what that rounds otherwise to 8 bits, of logits of the order of 1.
        torch.testing.assert_close(together[number], alone, rtol=0, atol=1e-3)


@torch.no_grad()
def test_a_model_that_places_by_itself_does_so_in_onnx_runtime(written, digits_model):
    model = SpotViTForImageClassification.from_pretrained(digits_model).eval()
    in_onnx = OnnxSpotViT.from_pretrained(written)
    images = random_images(3)
    # The positions of a flat density are computed in float64, those of the placer's scores are as close as these: 1e-5.
    for name, value in model.place(images, 9).items():
        torch.testing.assert_close(in_onnx.place(images, 9)[name], value, rtol=0, atol=1e-4)
    for num_tokens in (9, [4, 9]):
        torch.testing.assert_close(
            in_onnx(images, num_tokens=num_tokens).logits, model(images, num_tokens=num_tokens).logits, **TOLERANCE
        )
    with pytest.raises(ValueError, match="`pixel_values` must be of 48 × 48 pixels for the exported placer; got 56 × 48"):
        in_onnx.place(random_images(2, 56, 48), 9)


@pytest.mark.parametrize("arguments", [{"num_tokens": 9}, {"num_tokens": 9, "placement": "sobol"}, {}])
def test_the_pipeline_gives_what_pytorch_gives(written, digits_model, arguments):
    images = [Image.fromarray(np.random.default_rng(seed).integers(0, 256, (50, 60, 3), np.uint8)) for seed in range(5)]
    processor = tiny_processor(num_tokens=None if arguments else 25, placement=None if arguments else "isotropic")
    given = {"top_k": 10, "return_coordinates": True, "batch_size": 2, **arguments}
    expected = SpotImageClassificationPipeline(
        model=SpotViTForImageClassification.from_pretrained(digits_model).eval(), image_processor=processor
    )(images, **given)
    in_onnx = OnnxSpotViT.from_pretrained(written, num_threads=1)
    found = pipeline("spot-image-classification", model=in_onnx, image_processor=processor)(images, **given)
    for one, other in zip(found, expected, strict=True):
        assert one["coordinates"] == other["coordinates"]
        assert [row["label"] for row in one["predictions"]] == [row["label"] for row in other["predictions"]]
        scores, other_scores = ([row["score"] for row in each["predictions"]] for each in (one, other))
        assert np.allclose(scores, other_scores, rtol=0, atol=1e-5)


@torch.no_grad()
def test_looks_and_masks_without_a_mask_in_the_graph(written, digits_model):
    model = SpotViTForImageClassification.from_pretrained(digits_model).eval()
    in_onnx = OnnxSpotViT.from_pretrained(written)
    inputs = {"pixel_values": random_images(4), "coordinates": random_coordinates(4, 13)}
    for more in (
        {"num_tokens": [4, 9], "confidence": 0.5},
        {"coordinates_mask": torch.arange(13) < torch.tensor([[13], [5], [1], [5]])},
    ):
        expected, found = model(**inputs, **more), in_onnx(**inputs, **more)
        torch.testing.assert_close(found.logits, expected.logits, **TOLERANCE)
        assert ("num_tokens" in found) == ("num_tokens" in more)
        if "num_tokens" in more:
            assert found.num_tokens.equal(expected.num_tokens)


def test_classify_in_onnx_runtime(written, digits_model, photos, capsys):
    answers = []
    for options in (["--model", str(digits_model)], ["--model", str(written), "--runtime", "onnx"]):
        assert main(["classify", *photos, "--num_tokens", "16", "--placement", "isotropic", "--json", *options]) == 0
        answers.append(json.loads(capsys.readouterr().out))
    for one, other in zip(*answers, strict=True):
        assert [row["label"] for row in one["predictions"]] == [row["label"] for row in other["predictions"]]
    command = ["classify", *photos, "--num_tokens", "16", "--placement", "isotropic"]
    assert main([*command, "--model", str(written), "--runtime", "onnx", "--quantize", "int8"]) == 0


def test_benchmark_of_both_runtimes(digits_model, capsys):
    command = ["benchmark", "--model", str(digits_model), "--runtime", "onnx", "--num_tokens", "4", "9", "--repeats", "1"]
    assert main([*command, "--batch_size", "2", "--num_threads", "1"]) == 0
    table = capsys.readouterr().out
    assert all(f"| {name} {count} |" in table for name in ("spot", "onnx", "onnx int8") for count in (4, 9))
    assert "to PyTorch" in table


def test_a_model_exports_into_its_own_directory(digits_model, tmp_path):
    """Nothing of it is lost, and the code stays named."""
    model = SpotViTForImageClassification.from_pretrained(digits_model)
    model.config.placer, model.placer, model.config.placement = None, None, "isotropic"
    model.save_pretrained(tmp_path)
    tiny_processor().save_pretrained(tmp_path)
    before = {path.name for path in tmp_path.iterdir()}
    card = (tmp_path / "README.md").read_text()
    assert main(["export", "--model", str(tmp_path), "--output_dir", str(tmp_path)]) == 0
    assert {path.name for path in tmp_path.iterdir()} == {*before, "onnx", "export_report.json"}
    assert "auto_map" in json.loads((tmp_path / "config.json").read_text())
    assert "auto_map" in json.loads((tmp_path / "preprocessor_config.json").read_text())
    assert (tmp_path / "README.md").read_text() == card
    assert SpotViTForImageClassification.from_pretrained(tmp_path).verify().equal
    OnnxSpotViT.from_pretrained(tmp_path)
