"""CLIP, MetaCLIP 2 and SigLIP with their texts: logits of the source's own class, tokenizer and recipe; bad sources."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from conversion_checks import assert_verified
from safetensors.torch import load_file, save_file
from tiny import pictures
from tiny_texts import LABELS, SOURCES, reference_logits, save_source
from transformers import (
    AutoModelForZeroShotImageClassification,
    AutoTokenizer,
    CLIPImageProcessor,
    CLIPProcessor,
    Siglip2Tokenizer,
    SiglipModel,
    ZeroShotImageClassificationPipeline,
    pipeline,
)

from spot_hf import ConversionError, SpotViTForImageClassification, SpotZeroShotImageClassificationPipeline, convert_checkpoint
from spot_hf.cli import main


TEXTS = ["a photo of a cat", "dog", "an eel."]
# Sizes of images and patches: whole patches, and a rest that the source leaves out.
SIZES = {"whole patches": {"image_size": 28}, "a rest": {"image_size": 31}, "one patch": {"image_size": 9, "patch_size": 9}}


@pytest.fixture(scope="module", params=list(SOURCES))
def source(request, tmp_path_factory) -> tuple[str, Path]:
    return request.param, save_source(tmp_path_factory.mktemp(request.param) / "source", request.param)


def logits_of(directory, pixel_values, texts=TEXTS, **inputs) -> torch.Tensor:
    """Of what was written: model and tokenizer."""
    model = AutoModelForZeroShotImageClassification.from_pretrained(directory).eval()
    tokens = AutoTokenizer.from_pretrained(directory)(texts, return_tensors="pt", **model.config.text_padding)
    with torch.no_grad():
        return model(pixel_values=pixel_values, **inputs, **tokens).logits_per_image


def padding_of(family):
    return {"padding": "max_length" if family == "siglip" else True, "max_length": 16, "truncation": True}


@pytest.mark.parametrize("changes", SIZES.values(), ids=SIZES)
@pytest.mark.parametrize("family", SOURCES)
def test_logits_per_image_are_the_sources_on_the_full_grid(family, changes, tmp_path):
    source = save_source(tmp_path / "source", family, **changes)
    report = convert_checkpoint(source, tmp_path / "out")
    size = changes["image_size"]
    images = torch.randn(3, 3, size, size, generator=torch.Generator().manual_seed(1))
    expected = reference_logits(source, TEXTS, images, **padding_of(family))
    # Float32, in another order of operations. A hundredth of what texts and images differ by.
    torch.testing.assert_close(logits_of(tmp_path / "out", images), expected, rtol=0, atol=1e-5)
    assert expected.diff(dim=1).abs().min() > 1e-3 and (size < 10 or expected.diff(dim=0).abs().max() > 1e-2)
    assert_verified(tmp_path / "out")
    assert report.family == family and report.architecture == "SpotViTForZeroShotImageClassification"
    assert report.skipped == report.missing == {} and set(report.used) == set(load_file(source / "model.safetensors"))


def test_the_source_in_half_precision(source, tmp_path):
    """Its weights, and none of its precision."""
    import transformers

    family, directory = source
    model = transformers.AutoModel.from_pretrained(directory, dtype=torch.bfloat16)
    half = tmp_path / "source"
    shutil.copytree(directory, half)
    model.save_pretrained(half)
    convert_checkpoint(half, tmp_path / "out")
    assert {tensor.dtype for tensor in load_file(tmp_path / "out" / "model.safetensors").values()} == {torch.float32}
    assert "bfloat16" not in (tmp_path / "out" / "config.json").read_text()
    transformers.AutoModel.from_pretrained(half).float().save_pretrained(half)
    images = torch.randn(1, 3, 31, 31)
    expected = reference_logits(half, TEXTS, images, **padding_of(family))
    torch.testing.assert_close(logits_of(tmp_path / "out", images), expected, rtol=0, atol=1e-5)


def test_the_stock_pipeline_says_of_pictures_what_it_says_of_the_source(source, tmp_path):
    """Recipe, tokenizer and scores as one: of SigLIP, by our pipeline, which the directory names."""
    family, directory = source
    convert_checkpoint(directory, tmp_path / "out")
    asked = {"candidate_labels": LABELS, "hypothesis_template": "a {}"}
    size = {"max_length": 16} if family == "siglip" else {}  # of SigLIP, the stock pipeline knows 64 alone
    theirs = pipeline("zero-shot-image-classification", model=str(directory))
    ours = pipeline("zero-shot-image-classification", model=str(tmp_path / "out"), trust_remote_code=True)
    assert (type(ours) is ZeroShotImageClassificationPipeline) is (family != "siglip")
    images = [one.resize((60, 45)) for one in pictures(2)]
    for image in images:
        expected = theirs.postprocess(theirs.forward(theirs.preprocess(image, tokenizer_kwargs=size, **asked)))
        found = {one["label"]: one["score"] for one in ours(image, **asked)}
        # Pixels are cut, scaled and normalized in another order: 1e-4 of a score.
        assert found == pytest.approx({one["label"]: one["score"] for one in expected}, abs=1e-4)


def test_saved_defaults_and_another_image_size(source, tmp_path):
    family, directory = source
    report = convert_checkpoint(directory, tmp_path / "out", num_tokens=5, placement="center", image_size=42)
    assert report.image_processor.num_tokens == 5 and report.model.config.image_size == 42
    model = SOURCES[family][1].from_pretrained(directory).eval()
    images = torch.randn(2, 3, 42, 42, generator=torch.Generator().manual_seed(1))
    tokens = report.tokenizer(TEXTS, return_tensors="pt", **padding_of(family))
    with torch.no_grad():
        expected = model(pixel_values=images, interpolate_pos_encoding=True, **tokens).logits_per_image
        found = report.model.eval()(pixel_values=images, **tokens).logits_per_image
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)
    saved = pipeline(
        "spot-zero-shot-image-classification",
        model=str(tmp_path / "out"),
        pipeline_class=SpotZeroShotImageClassificationPipeline,
    )
    assert len(saved(pictures(1)[0], LABELS, return_coordinates=True)["coordinates"]) == 5


def test_siglip_2_of_a_fixed_resolution(tmp_path):
    """Is a `siglip` in its config; only its tokenizer is another, which pads on the left and has a mask."""
    source = save_source(tmp_path / "source", "siglip")
    tokens = ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>", "▁", *"abcdeghlnoprt"]
    vocab = {token: number for number, token in enumerate(tokens)}
    for file in source.glob("tokenizer*"):
        file.unlink()
    Siglip2Tokenizer(vocab=vocab, merges=[]).save_pretrained(source)
    convert_checkpoint(source, tmp_path / "out")
    assert type(AutoTokenizer.from_pretrained(tmp_path / "out")) is Siglip2Tokenizer
    images = torch.randn(2, 3, 31, 31)
    expected = reference_logits(source, TEXTS, images, **padding_of("siglip"))
    torch.testing.assert_close(logits_of(tmp_path / "out", images), expected, rtol=0, atol=1e-5)


def test_buffers_of_old_files_are_skipped(tmp_path):
    source = save_source(tmp_path / "source")
    tensors = load_file(source / "model.safetensors")
    for tower, count in (("text_model", 16), ("vision_model", 17)):
        tensors[f"{tower}.embeddings.position_ids"] = torch.arange(count)[None]
    save_file(tensors, source / "model.safetensors", metadata={"format": "pt"})
    report = convert_checkpoint(source)
    assert {name.rpartition(".")[2] for name in report.skipped} == {"position_ids"} and len(report.skipped) == 2


def test_the_recipe_of_a_processor_of_images_and_texts(tmp_path):
    """As transformers 5 saves it: in `processor_config.json`."""
    source = save_source(tmp_path / "source")
    (source / "preprocessor_config.json").unlink()
    size = {"height": 31, "width": 31}
    processor = CLIPImageProcessor(size={"shortest_edge": 40}, crop_size=size, image_mean=[0.1, 0.2, 0.3])
    CLIPProcessor(processor, AutoTokenizer.from_pretrained(source)).save_pretrained(source)
    assert not (source / "preprocessor_config.json").exists()
    report = convert_checkpoint(source)
    assert list(report.image_processor.image_mean) == [0.1, 0.2, 0.3]
    assert report.image_processor.size["shortest_edge"] == 40


def test_a_classifier_on_the_encoder_of_images_alone(tmp_path):
    source = save_source(tmp_path / "source")
    for file in source.glob("tokenizer*"):
        file.unlink()
    report = convert_checkpoint(source, num_labels=7)
    assert type(report.model) is SpotViTForImageClassification and report.model.config.text_config is None
    assert {name.split(".")[0] for name in report.skipped} == {
        "text_model", "text_projection", "visual_projection", "logit_scale",
    }  # fmt: skip


def test_what_is_written_is_verified(source, tmp_path, capsys):
    """Of images and of texts: either's weights matter."""
    convert_checkpoint(source[1], tmp_path / "out")
    assert main(["verify", str(tmp_path / "out")]) == 0
    weights = tmp_path / "out" / "model.safetensors"
    tensors = load_file(weights)
    for name in ("spot_vit.layers.1.mlp.fc2.bias", "text_model.encoder.layers.1.mlp.fc2.bias", "logit_scale"):
        save_file({**tensors, name: 1.5 * tensors[name]}, weights, metadata={"format": "pt"})
        assert main(["verify", str(tmp_path / "out")]) == 1, name


# ---------------------------------------------------------------------------------------------------------- bad sources


def without(prefix):
    def change(source):
        tensors = load_file(source / "model.safetensors")
        kept = {name: tensor for name, tensor in tensors.items() if not name.startswith(prefix)}
        assert len(kept) < len(tensors)
        save_file(kept, source / "model.safetensors", metadata={"format": "pt"})

    return change


def without_tokenizer(source):
    for name in ("tokenizer.json", "tokenizer_config.json", "vocab.json", "merges.txt"):
        (source / name).unlink(missing_ok=True)


def broken_tokenizer(source):
    without_tokenizer(source)
    (source / "tokenizer.json").write_text("{")


def larger_tokenizer(source):
    tokenizer = AutoTokenizer.from_pretrained(source)
    tokenizer.add_tokens(["<extra>"])
    tokenizer.save_pretrained(source)


def unknown_text_tower(source):
    config = json.loads((source / "config.json").read_text())
    config["text_config"]["num_attention_heads"] = 7
    (source / "config.json").write_text(json.dumps(config))


def wide_texts(source):
    model = SiglipModel.from_pretrained(source)
    model.text_model.head = torch.nn.Linear(24, 30)
    model.config.text_config.projection_size = 30
    model.save_pretrained(source)


BAD = {
    "no text tower": ("clip", without("text_model."), "missing tensor `text_model.embeddings.token_embedding.weight`"),
    "no layer of it": ("clip", without("text_model.encoder.layers.1.mlp"), "missing tensor `text_model.encoder.layers.1.mlp"),
    "no projection": ("clip", without("text_projection"), "missing tensor `text_projection.weight` in source"),
    "no bias of logits": ("siglip", without("logit_bias"), "missing tensor `logit_bias` in source"),
    "no tokenizer": ("clip", without_tokenizer, "source holds no tokenizer, which a zero-shot model needs: none of tokenizer"),
    "no tokenizer of SigLIP": ("siglip", without_tokenizer, "source holds no tokenizer"),
    "a broken tokenizer": ("clip", broken_tokenizer, "cannot read the tokenizer of source: "),
    "another tokenizer": (
        "clip",
        larger_tokenizer,
        "the tokenizer of source has .* tokens, its text tower .*: they do not",
    ),
    "a wrong config": ("clip", unknown_text_tower, "config.json of source: .*multiple of the number of attention heads"),
    "texts of another width": ("siglip", wide_texts, "text features of source are 30 wide, those of images 36"),
}


@pytest.mark.parametrize(("family", "change", "message"), BAD.values(), ids=BAD)
def test_a_bad_source_is_one_line_and_nothing_is_written(family, change, message, tmp_path, capsys):
    source = save_source(tmp_path / "source", family)
    change(source)
    with pytest.raises(ConversionError, match=message) as caught:
        convert_checkpoint(source, tmp_path / "out")
    assert "\n" not in str(caught.value)
    capsys.readouterr()  # progress bars of what was saved
    assert main(["convert", "--source_model", str(source), "--output_dir", str(tmp_path / "out")]) == 1
    assert capsys.readouterr().err.strip() == f"spot-hf convert: error: {caught.value}"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["source"]
