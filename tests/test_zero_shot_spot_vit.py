"""The zero-shot model: what it computes, whatever its text tower; and a classifier among texts."""

import pytest
import torch
from huggingface_hub.errors import StrictDataclassError
from tiny import random_coordinates, random_images
from tiny_texts import LABELS, SOURCES, tokenizer_of, zero_shot_config, zero_shot_model
from transformers import AutoConfig, AutoModel, AutoModelForZeroShotImageClassification

from spot_hf import SpotViTConfig, SpotViTForZeroShotImageClassification, SpotViTModel
from spot_hf.placement import grid


FAMILIES = list(SOURCES)
TEXTS = ["a photo of a cat", "dog", "an eel."]


@pytest.fixture(scope="module", params=FAMILIES)
def made(request, tmp_path_factory):
    """A family, its tokenizer and a model."""
    tokenizer = tokenizer_of(request.param, tmp_path_factory.mktemp("tokenizer"))
    return request.param, tokenizer, zero_shot_model(request.param, tokenizer)


def texts_of(model, tokenizer, texts=TEXTS):
    return tokenizer(texts, return_tensors="pt", **model.config.text_padding)


@torch.no_grad()
def test_logits_are_scaled_cosines_of_projected_features(made):
    family, tokenizer, model = made
    images, texts = random_images(2), texts_of(model, tokenizer)
    outputs = model(pixel_values=images, **texts)
    pooled, text = model.spot_vit(images).pooler_output, model.text_model(**texts).pooler_output
    if family == "siglip":
        assert model.visual_projection is model.text_projection is None and not hasattr(model.config, "projection_size")
    else:
        pooled, text = pooled @ model.visual_projection.weight.T, text @ model.text_projection.weight.T
        assert model.logit_bias is None
    expected = torch.nn.functional.cosine_similarity(pooled[:, None], text[None], dim=-1) * model.logit_scale.exp()
    expected = expected + (model.logit_bias if family == "siglip" else 0)
    # Logits of the order of 10, in float32, in another order of operations.
    torch.testing.assert_close(outputs.logits_per_image, expected, rtol=0, atol=1e-5)
    assert torch.equal(outputs.logits_per_text, outputs.logits_per_image.T)
    assert outputs.image_embeds.norm(dim=-1).sub(1).abs().max() < 1e-6 and outputs.image_embeds.shape[0] == 2
    assert outputs.text_embeds.shape[0] == 3 and outputs.loss is None
    # Other texts get other logits, far beyond the tolerance.
    assert outputs.logits_per_image.diff(dim=1).abs().min() > 1e-3


@torch.no_grad()
def test_features_are_named_and_returned_as_transformers_does(made):
    _, tokenizer, model = made
    images, coordinates, texts = random_images(2), random_coordinates(2, 5), texts_of(model, tokenizer)
    of_images = model.get_image_features(images, coordinates=coordinates)
    of_texts = model.get_text_features(**texts)
    outputs = model(pixel_values=images, coordinates=coordinates, **texts)
    for features, embeds in ((of_images, outputs.image_embeds), (of_texts, outputs.text_embeds)):
        pooled = features.pooler_output
        torch.testing.assert_close(pooled / pooled.norm(dim=-1, keepdim=True), embeds, rtol=0, atol=1e-6)
    prefix = model.config.num_prefix_tokens
    assert of_images.last_hidden_state.shape == (2, prefix + 5, 32)
    assert of_texts.last_hidden_state.shape == (3, texts["input_ids"].shape[1], 24)
    as_tuple = model(pixel_values=images, coordinates=coordinates, return_dict=False, **texts)
    assert torch.equal(as_tuple[0], outputs.logits_per_image) and isinstance(as_tuple[-1], tuple)


@torch.no_grad()
def test_tokens_as_they_are_given_or_placed(made):
    _, tokenizer, model = made
    images, texts = random_images(2), texts_of(model, tokenizer)
    full = model(pixel_values=images, **texts).logits_per_image
    on_grid = model(pixel_values=images, coordinates=grid(48, 48, 8)[None], **texts).logits_per_image
    torch.testing.assert_close(on_grid, full, rtol=0, atol=1e-5)
    few = model(pixel_values=images, num_tokens=5, **texts).logits_per_image
    assert torch.equal(few, model(pixel_values=images, **model.place(images, 5), **texts).logits_per_image)
    assert (few - full).abs().max() > 1e-3
    # Padding never matters, nor do batch mates.
    coordinates, mask = random_coordinates(2, 6), torch.tensor([[1] * 6, [1] * 4 + [0] * 2])
    ragged = model(pixel_values=images, coordinates=coordinates, coordinates_mask=mask, **texts).logits_per_image
    alone = model(pixel_values=images[1:], coordinates=coordinates[1:, :4], **texts).logits_per_image
    torch.testing.assert_close(ragged[1:], alone, rtol=0, atol=1e-5)


def test_the_models_own_number_of_tokens(made, tmp_path):
    family, tokenizer, _ = made
    model = zero_shot_model(family, tokenizer, num_tokens=5)
    images, texts = random_images(2), texts_of(model, tokenizer)
    with torch.no_grad():
        placed = model(pixel_values=images, **model.place(images, 5), **texts).logits_per_image
        assert torch.equal(model(pixel_values=images, **texts).logits_per_image, placed)


@torch.no_grad()
def test_losses(made):
    family, tokenizer, model = made
    images, texts = random_images(3), texts_of(model, tokenizer)
    outputs = model(pixel_values=images, return_loss=True, **texts)
    logits = outputs.logits_per_image.double()
    if family == "siglip":
        terms = [
            -torch.nn.functional.logsigmoid(logits[i, j] if i == j else -logits[i, j]) for i in range(3) for j in range(3)
        ]
        expected = sum(terms) / 3
    else:
        expected = -(logits.log_softmax(0).diagonal().mean() + logits.log_softmax(1).diagonal().mean()) / 2
    assert outputs.loss.item() == pytest.approx(expected.item(), rel=1e-5)
    with pytest.raises(ValueError, match="`return_loss` needs one text per image; got 2 images and 3 texts"):
        model(pixel_values=images[:2], return_loss=True, **texts)


def test_gradients_reach_coordinates_and_both_towers(made):
    _, tokenizer, model = made
    coordinates = random_coordinates(3, 5).requires_grad_()
    model(
        pixel_values=random_images(3), coordinates=coordinates, return_loss=True, **texts_of(model, tokenizer)
    ).loss.backward()
    assert coordinates.grad.abs().max() > 0
    missing = [name for name, parameter in model.named_parameters() if parameter.grad is None]
    model.zero_grad()
    assert missing == []


@torch.no_grad()
def test_what_is_saved_is_loaded(made, tmp_path):
    family, tokenizer, model = made
    model.save_pretrained(tmp_path)
    images, texts = random_images(2), texts_of(model, tokenizer)
    loaded, report = AutoModelForZeroShotImageClassification.from_pretrained(tmp_path, output_loading_info=True)
    assert type(loaded) is SpotViTForZeroShotImageClassification and not any(report.values())
    assert torch.equal(
        loaded(pixel_values=images, **texts).logits_per_image, model(pixel_values=images, **texts).logits_per_image
    )
    config = AutoConfig.from_pretrained(tmp_path)
    assert config.text_config.model_type == f"{family}_text_model" and config.patch_size == 8
    assert config.to_dict()["text_config"] == model.config.to_dict()["text_config"]
    assert set(config.custom_pipelines) == {"spot-zero-shot-image-classification"} | (
        {"zero-shot-image-classification"} if family == "siglip" else set()
    )
    tower = AutoModel.from_pretrained(tmp_path)
    assert type(tower) is SpotViTModel
    assert torch.equal(tower(images).pooler_output, model.spot_vit(images).pooler_output)


def test_new_weights_are_initialised(made):
    family, tokenizer, _ = made
    model = SpotViTForZeroShotImageClassification(zero_shot_config(family, tokenizer, logit_scale_init_value=1.5))
    assert model.logit_scale.item() == 1.5
    assert model.logit_bias is None or model.logit_bias.item() == 0
    with torch.no_grad():
        assert model(pixel_values=random_images(1), **texts_of(model, tokenizer)).logits_per_image.isfinite().all()


@torch.no_grad()
def test_a_classifier_among_texts_gives_the_same_logits(made):
    _, tokenizer, model = made
    images, coordinates = random_images(2), random_coordinates(2, 5)
    texts = [f"This is a photo of {label}." for label in LABELS]
    embeds = model.embed_texts(texts, tokenizer, batch_size=2)
    classifier = model.as_classifier(embeds, LABELS)
    expected = model(pixel_values=images, coordinates=coordinates, **texts_of(model, tokenizer, texts)).logits_per_image
    # Texts are embedded in batches of two, and of CLIP's some are shorter: padding does not matter.
    torch.testing.assert_close(classifier(images, coordinates).logits, expected, rtol=0, atol=1e-5)
    assert classifier.config.id2label == dict(enumerate(LABELS)) and classifier.config.num_labels == 5
    assert classifier.spot_vit is model.spot_vit and not any(one.is_meta for one in classifier.parameters())
    with pytest.raises(ValueError, match="a classifier among texts is made of a zero-shot model: save that"):
        classifier.save_pretrained("nowhere")
    # And does what a classifier does: several looks.
    looks = classifier(images, num_tokens=[4, 9], confidence=1.0)
    assert looks.num_tokens.tolist() == [13, 13]


def test_a_model_of_images_alone_has_no_texts():
    assert SpotViTConfig().text_config is None
    with pytest.raises(ValueError, match="`text_config` is needed by a zero-shot model"):
        SpotViTForZeroShotImageClassification(SpotViTConfig())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"text_config": {"vocab_size": 5}}, "`text_config` must have a `model_type`, such as 'clip_text_model'"),
        (
            {"text_config": {"model_type": "nothing"}},
            "`text_config` must have a `model_type` that transformers knows",
        ),
        ({"text_activation": "none"}, "`text_activation` must be one of softmax, sigmoid; got 'none'"),
        ({"projection_dim": 0}, "`projection_dim` must be at least 1; got 0"),
    ],
)
def test_a_wrong_configuration_is_one_error(changes, message):
    with pytest.raises((ValueError, StrictDataclassError), match=message):
        SpotViTConfig(**changes)


def test_wrong_inputs_are_one_error(made):
    _, tokenizer, model = made
    images, texts = random_images(2), texts_of(model, tokenizer)
    with pytest.raises(ValueError, match=r"`input_ids` must be a tensor \(num_texts, sequence\) of at most 16 tokens"):
        model(pixel_values=images)
    with pytest.raises(ValueError, match="of at most 16 tokens; got \\(1, 17\\)"):
        model(pixel_values=images, input_ids=torch.ones(1, 17, dtype=torch.long))
    with pytest.raises(ValueError, match="`coordinates` and `num_tokens` exclude each other"):
        model(pixel_values=images, coordinates=random_coordinates(2, 5), num_tokens=5, **texts)
    with pytest.raises(ValueError, match="`num_tokens` must be"):
        model(pixel_values=images, num_tokens=[4, 9], **texts)
    with pytest.raises(ValueError, match=r"`model_type` of clip_text_model, .*; got 'bert'"):
        SpotViTForZeroShotImageClassification(SpotViTConfig(text_config={"model_type": "bert"}))
