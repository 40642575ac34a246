"""Zero-shot pipelines: transformers' own, and ours, which takes and places tokens."""

import pytest
import torch
from tiny import nearly, pictures, tiny_processor
from tiny_texts import LABELS, SOURCES, tokenizer_of, zero_shot_model
from transformers import ZeroShotImageClassificationPipeline, pipeline

from spot_hf import SpotZeroShotImageClassificationPipeline


@pytest.fixture(scope="module", params=list(SOURCES))
def made(request, tmp_path_factory):
    """A family, and a directory with its tiny model."""
    directory = tmp_path_factory.mktemp(request.param)
    tokenizer = tokenizer_of(request.param, directory / "source")
    zero_shot_model(request.param, tokenizer).save_pretrained(directory / "model")
    tokenizer.save_pretrained(directory / "model")
    tiny_processor().save_pretrained(directory / "model")
    return request.param, str(directory / "model")


@pytest.fixture(scope="module")
def ours(made):
    return pipeline(
        "spot-zero-shot-image-classification", model=made[1], pipeline_class=SpotZeroShotImageClassificationPipeline
    )


def expected_scores(ours, images, template="This is a photo of {}.", **tokens):
    """By the model itself."""
    model, processor = ours.model, ours.image_processor
    texts = ours.tokenizer([template.format(one) for one in LABELS], return_tensors="pt", **model.config.text_padding)
    inputs = processor(images, return_tensors="pt", **tokens)
    with torch.no_grad():
        logits = model(**inputs, **texts).logits_per_image
    scores = logits.sigmoid() if model.config.text_activation == "sigmoid" else logits.softmax(-1)
    return [dict(zip(LABELS, one, strict=True)) for one in scores.tolist()]


def as_dict(answers):
    assert [one["score"] for one in answers] == sorted((one["score"] for one in answers), reverse=True)
    return {one["label"]: one["score"] for one in answers}


def test_the_stock_task(made, ours):
    """SigLIP's texts are of one length and its scores are sigmoids: its repository names our pipeline for the stock task."""
    family, directory = made
    stock = pipeline("zero-shot-image-classification", model=directory, trust_remote_code=True)
    if family == "siglip":
        assert type(stock).__name__ == "SpotZeroShotImageClassificationPipeline"
    else:
        assert type(stock) is ZeroShotImageClassificationPipeline
    images = pictures(2)
    for answers, expected in zip(stock(images, candidate_labels=LABELS), expected_scores(ours, images), strict=True):
        assert as_dict(answers) == pytest.approx(expected, abs=1e-5)  # another batch, in float32
    one = stock(images[0], candidate_labels=["cat"], hypothesis_template="{}")
    assert [entry["label"] for entry in one] == ["cat"]


def test_ours_is_the_same_on_the_full_grid_and_places_tokens(ours):
    images = pictures(3)
    for answers, expected in zip(ours(images, LABELS, batch_size=2), expected_scores(ours, images), strict=True):
        assert as_dict(answers) == pytest.approx(expected, abs=1e-5)
    placed = ours(images, candidate_labels=LABELS, num_tokens=5, placement="center", batch_size=3, return_coordinates=True)
    expected = expected_scores(ours, images, num_tokens=5, placement="center")
    for output, scores in zip(placed, expected, strict=True):
        assert as_dict(output["predictions"]) == nearly(scores) and len(output["coordinates"]) == 5
    # What it returns can be handed back; batches mix numbers of tokens.
    rows = [{"image": images[0], "coordinates": placed[0]["coordinates"]}, images[1]]
    again = ours(rows, candidate_labels=LABELS, batch_size=2)
    assert as_dict(again[0]) == nearly(expected[0])
    assert as_dict(again[1]) == pytest.approx(expected_scores(ours, images)[1], abs=1e-5)
    scaled = ours(images[0], LABELS, num_tokens=4, window_scales="cover", top_k=2, return_coordinates=True)
    assert len(scaled["predictions"]) == 2 and scaled["window_scales"] == pytest.approx([3.0] * 4)
    drawn = [ours(images[0], LABELS, num_tokens=4, placement="uniform", seed=seed) for seed in (1, 1, 2)]
    assert drawn[0] == drawn[1] != drawn[2]


def test_several_looks(ours):
    images = pictures(2)
    looks = ours(images, LABELS, num_tokens=[4, 9], confidence=1.0, return_coordinates=True)
    assert [len(one["coordinates"]) for one in looks] == [13, 13]


def test_texts_are_embedded_once_and_anew_where_they_change(ours):
    calls = []
    handle = ours.model.text_model.register_forward_hook(lambda *_: calls.append(1))
    try:
        images = pictures(3)
        first = ours(images, candidate_labels=["a fox", "a hen"], batch_size=1)
        assert len(calls) == 1
        assert ours(images, candidate_labels=["a fox", "a hen"]) == first and len(calls) == 1
        other = ours(images, candidate_labels=["a fox", "a hen"], hypothesis_template="{}!")
        assert other != first and len(calls) == 2
        with torch.no_grad():
            ours.model.text_model.embeddings.token_embedding.weight.mul_(-1)
        assert ours(images, candidate_labels=["a fox", "a hen"]) != first and len(calls) == 3
        with torch.no_grad():
            ours.model.text_model.embeddings.token_embedding.weight.mul_(-1)
    finally:
        handle.remove()


def test_another_function_of_the_logits(ours):
    softmax, sigmoid, logits = (
        as_dict(ours(pictures(1)[0], LABELS, function_to_apply=name)) for name in ("softmax", "sigmoid", "none")
    )
    values = torch.tensor([logits[label] for label in LABELS], dtype=torch.float64)
    assert [softmax[label] for label in LABELS] == pytest.approx(values.softmax(0).tolist(), abs=1e-6)
    assert [sigmoid[label] for label in LABELS] == pytest.approx(values.sigmoid().tolist(), abs=1e-6)


def test_labels_with_which_it_was_made(made, ours):
    directory = made[1]
    own = pipeline(
        "spot-zero-shot-image-classification",
        model=directory,
        pipeline_class=SpotZeroShotImageClassificationPipeline,
        candidate_labels=LABELS,
    )
    image = pictures(1)[0]
    assert own(image) == ours(image, LABELS)
    assert len(own(image, candidate_labels=["a fox"])) == 1


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({}, "`candidate_labels` must be a list of different texts; got None"),
        ({"candidate_labels": "cat"}, "`candidate_labels` must be a list of different texts; got 'cat'"),
        ({"candidate_labels": []}, "`candidate_labels` must be a list of different texts; got \\[\\]"),
        ({"candidate_labels": ["cat", ""]}, "`candidate_labels` must be a list of different texts; got '' among them"),
        ({"candidate_labels": ["cat", "cat"]}, "`candidate_labels` must be a list of different texts; got 'cat' twice"),
        ({"candidate_labels": ["cat"], "hypothesis_template": "a cat"}, "`hypothesis_template` must be a text with a place"),
        ({"candidate_labels": ["cat"], "hypothesis_template": "{0} {1}"}, "`hypothesis_template` must be a text with a place"),
        ({"candidate_labels": ["cat"], "num_tokens": 0}, "`num_tokens`"),
    ],
)
def test_bad_input_is_one_error(ours, parameters, message):
    with pytest.raises(ValueError, match=message):
        ours(pictures(1)[0], **parameters)
