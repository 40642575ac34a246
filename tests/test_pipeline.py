"""The pipelines: the stock task with saved placements, and our own with any."""

import hashlib

import datasets
import numpy as np
import pytest
import torch
from datasets import Dataset
from PIL import Image
from tiny import tiny_model, tiny_processor
from transformers import ImageClassificationPipeline, pipeline

from spot_hf import SpotImageClassificationPipeline, join_coordinates
from spot_hf.decoding import DecodedImage
from spot_hf.placement import isotropic


def picture(seed=0, size=(60, 45)):
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    return Image.fromarray(pixels)


SIZES = [(60, 45), (48, 48), (33, 70)]
IMAGES = [picture(i, size) for i, size in enumerate(SIZES)]
ONE, TWO = [[0.25, 0.5], [0.75, 0.5]], [[0.1, 0.2], [0.3, 0.4], [0.5, 0.6]]


@pytest.fixture(scope="module")
def classifier():
    return SpotImageClassificationPipeline(model=tiny_model(), image_processor=tiny_processor())


def scores(answer):
    return torch.tensor([entry["score"] for entry in sorted(answer, key=lambda entry: entry["label"])])


def expected(classifier, image, **placed):
    features = classifier.image_processor(image, return_tensors="pt", **placed)
    with torch.no_grad():
        return classifier.model(**features).logits.softmax(-1)[0]


# Softmax of float32 logits, in another batch size.
TOLERANCE = {"rtol": 0, "atol": 1e-5}


@pytest.mark.parametrize("batch_size", [1, 2, 3])
def test_one_placement_for_all(classifier, batch_size):
    answers = classifier(IMAGES, num_tokens=9, placement="center", batch_size=batch_size)
    for image, answer in zip(IMAGES, answers, strict=True):
        torch.testing.assert_close(scores(answer), expected(classifier, image, num_tokens=9, placement="center"), **TOLERANCE)


def test_one_set_for_all(classifier):
    for answer, image in zip(classifier(IMAGES, coordinates=ONE), IMAGES, strict=True):
        torch.testing.assert_close(scores(answer), expected(classifier, image, coordinates=ONE), **TOLERANCE)
    torch.testing.assert_close(
        scores(classifier(IMAGES[0], coordinates=np.array(ONE))), expected(classifier, IMAGES[0], coordinates=ONE), **TOLERANCE
    )


@pytest.mark.parametrize("as_dicts", [False, True], ids=["argument", "dicts"])
@pytest.mark.parametrize("batch_size", [1, 3])
def test_one_set_per_image_ragged(classifier, as_dicts, batch_size):
    sets = [ONE, TWO, ONE]
    if as_dicts:
        inputs = [{"image": image, "coordinates": own} for image, own in zip(IMAGES, sets, strict=True)]
        answers = classifier(inputs, batch_size=batch_size)
    else:
        answers = classifier(IMAGES, coordinates=sets, batch_size=batch_size)
    for image, own, answer in zip(IMAGES, sets, answers, strict=True):
        torch.testing.assert_close(scores(answer), expected(classifier, image, coordinates=own), **TOLERANCE)


def test_a_batch_mixes_placed_and_full_grid_images(classifier):
    answers = classifier([{"image": IMAGES[0], "coordinates": ONE}, IMAGES[1]], batch_size=2)
    torch.testing.assert_close(scores(answers[0]), expected(classifier, IMAGES[0], coordinates=ONE), **TOLERANCE)
    torch.testing.assert_close(scores(answers[1]), expected(classifier, IMAGES[1]), **TOLERANCE)


def test_positions_are_returned_in_the_images_frame():
    processor = tiny_processor(size={"shortest_edge": 56}, do_center_crop=True, crop_size={"height": 48, "width": 48})
    classifier = SpotImageClassificationPipeline(model=tiny_model(), image_processor=processor)
    answers = classifier(IMAGES, coordinates=[ONE, TWO, ONE], return_coordinates=True, batch_size=3, top_k=2)
    for answer, own in zip(answers, [ONE, TWO, ONE], strict=True):
        assert len(answer["predictions"]) == 2
        np.testing.assert_allclose(answer["coordinates"], own, atol=1e-6)  # float32, through the crop and back
    used = classifier(IMAGES[0], num_tokens=9, return_coordinates=True)["coordinates"]
    np.testing.assert_allclose(processor.to_model_frame(np.array(used), SIZES[0]), isotropic(9), atol=1e-6)


def test_returned_positions_can_be_handed_back():
    processor = tiny_processor(size={"shortest_edge": 56}, do_center_crop=True, crop_size={"height": 48, "width": 48})
    classifier = SpotImageClassificationPipeline(model=tiny_model(), image_processor=processor)
    corners = [[0.0, 0.0], [1.0, 1.0], [0.0, 1.0]]
    for image in [picture(0, size) for size in ((60, 45), (101, 67), (299, 299), (33, 70))]:
        answer = classifier(image, coordinates=corners, return_coordinates=True)
        again = classifier(image, coordinates=answer["coordinates"], return_coordinates=True)
        torch.testing.assert_close(scores(again["predictions"]), scores(answer["predictions"]), **TOLERANCE)


@pytest.mark.parametrize("convert", [np.asarray, lambda image: torch.from_numpy(np.array(image)).permute(2, 0, 1)])
def test_arrays_and_tensors_as_in_the_stock_pipeline(classifier, convert):
    image = IMAGES[0]
    for placed in ({}, {"coordinates": ONE}, {"num_tokens": 4}):
        answer = classifier(convert(image), return_coordinates=True, **placed)
        torch.testing.assert_close(scores(answer["predictions"]), expected(classifier, image, **placed), **TOLERANCE)
    np.testing.assert_allclose(
        classifier(convert(image), coordinates=ONE, return_coordinates=True)["coordinates"], ONE, atol=1e-6
    )


@pytest.mark.parametrize("problem_type", [None, "multi_label_classification", "single_label_classification"])
def test_classes_are_those_of_the_stock_pipeline(problem_type):
    """To the last bit, and in the same order where scores are equal."""
    model = tiny_model(problem_type=problem_type)
    with torch.no_grad():
        model.classifier.weight[2] = model.classifier.weight[1]
        model.classifier.bias[2] = model.classifier.bias[1]
    ours, stock = (
        one(model=model, image_processor=tiny_processor(num_tokens=9))
        for one in (SpotImageClassificationPipeline, ImageClassificationPipeline)
    )
    for options in ({}, {"top_k": 2}, {"top_k": 1000}, {"function_to_apply": "none"}, {"function_to_apply": "sigmoid"}):
        assert ours(IMAGES, **options) == stock(IMAGES, **options)


def test_regression_gives_logits():
    """As the stock pipeline of later versions of transformers."""
    one = SpotImageClassificationPipeline(model=tiny_model(problem_type="regression"), image_processor=tiny_processor())
    assert one(IMAGES) == one(IMAGES, function_to_apply="none")


def test_a_call_says_more_than_the_pipeline_was_made_with():
    parts = {"model": tiny_model(), "image_processor": tiny_processor()}
    made = SpotImageClassificationPipeline(**parts, num_tokens=9)
    assert len(made(IMAGES[0], return_coordinates=True)["coordinates"]) == 9
    assert made(IMAGES[0], coordinates=ONE, return_coordinates=True)["coordinates"] == [pytest.approx(point) for point in ONE]
    made = SpotImageClassificationPipeline(**parts, coordinates=ONE)
    assert len(made(IMAGES[0], return_coordinates=True)["coordinates"]) == 2
    assert len(made(IMAGES[0], num_tokens=4, return_coordinates=True)["coordinates"]) == 4


def test_sets_per_image_need_a_list(classifier):
    with pytest.raises(ValueError, match="need a list of images"):
        classifier((image for image in IMAGES[:2]), coordinates=[ONE, TWO])


def test_each_image_is_processed_once(classifier, monkeypatch):
    calls = []
    resize = DecodedImage.resize
    monkeypatch.setattr(DecodedImage, "resize", lambda *args: calls.append(1) or resize(*args))
    classifier(IMAGES[0])
    assert len(calls) == 1


def test_random_placements_by_seed(classifier):
    def used(inputs, **kwargs):
        answers = classifier(inputs, num_tokens=5, placement="uniform", return_coordinates=True, **kwargs)
        return [answer["coordinates"] for answer in answers]

    first = used(IMAGES, seed=3)
    assert used(IMAGES, seed=3, batch_size=3) == first and used(IMAGES[::-1], seed=3) == first[::-1]
    assert used(IMAGES, seed=4) != first and first[0] != first[1]


def test_saliency_per_image(classifier):
    left, right = np.zeros((2, 2)), np.zeros((2, 2))
    left[:, 0] = right[:, 1] = 1.0
    answers = classifier(IMAGES[:2], saliency=[left, right], placement="salient", num_tokens=20, return_coordinates=True)
    sides = [np.array(answer["coordinates"])[:, 0] for answer in answers]
    assert sides[0].max() < 0.51 < 0.52 and sides[1].min() > 0.49


def test_other_columns_of_a_row_are_ignored(classifier):
    row = {"image": IMAGES[0], "coordinates": ONE, "image_id": "a.png"}
    columns = {
        "label": 3, "labels": [3], "split": "test", "filename": "a.png", "file_name": "a.png", "width": 60, "height": 45,
        "id": 1, "image_index": 0, "image_idx": 0, "image_path": "a.png", "image_size": [60, 45], "caption": "a",
        "coordinates_mask": [1, 1], "saliency_map": None, "initial_coordinates": TWO, "initial_window_scales": [0.0], 7: "x",
    }  # fmt: skip
    answer, expected_answer = classifier({**row, **columns}), classifier(row)
    assert answer == expected_answer
    assert classifier({"image": IMAGES[0], **columns}) == classifier(IMAGES[0])


def test_a_joined_row_is_an_input(classifier, tmp_path):
    """As `join_coordinates` gives it, with all columns of both data sets."""
    picture().save(tmp_path / "a.png")
    images = Dataset.from_dict({
        "image": [str(tmp_path / "a.png")], "label": [1], "photographer": ["b"], "image_width": [60], "licence": ["CC0"],
    }).cast_column("image", datasets.Image())  # fmt: skip
    coordinates = Dataset.from_dict({
        "image_id": ["a.png"], "image_index": [0], "image_size": [[60, 45]], "label": [1],
        "image_sha256": [hashlib.sha256((tmp_path / "a.png").read_bytes()).hexdigest()],
        "coordinates": [ONE], "initial_coordinates": [TWO[:2]], "losses": [[2.0, 1.0]], "initial_prediction": [0],
        "prediction": [1], "window_scales": [[1.5, 0.75]], "initial_window_scales": [[1.0, 1.0]],
        "trajectory": [[ONE, ONE]], "searched_by": ["us"],
    })  # fmt: skip
    row = join_coordinates(images, coordinates)[0]
    assert {"photographer", "image_width", "licence", "trajectory", "searched_by"} <= set(row)
    answer = classifier(row, return_coordinates=True)
    assert answer["coordinates"] == [pytest.approx(point) for point in ONE]
    expected_row = {"image": row["image"], "coordinates": ONE, "window_scales": [1.5, 0.75]}
    assert answer["predictions"] == classifier(expected_row)


def test_window_scales_of_a_row(classifier):
    row = {"image": IMAGES[0], "coordinates": ONE, "window_scales": [1.5, 0.75]}
    features = classifier.image_processor(IMAGES[0], coordinates=ONE, return_tensors="pt")
    with torch.no_grad():
        logits = classifier.model(**features, window_scales=torch.tensor([[1.5, 0.75]])).logits
    torch.testing.assert_close(scores(classifier(row)), logits.softmax(-1)[0], **TOLERANCE)
    assert classifier({**row, "window_scales": None}) == classifier({"image": IMAGES[0], "coordinates": ONE})


def test_generators_and_streams(classifier):
    answers = list(classifier(({"image": image, "coordinates": ONE} for image in IMAGES), batch_size=2))
    assert len(answers) == 3
    torch.testing.assert_close(scores(answers[2]), expected(classifier, IMAGES[2], coordinates=ONE), **TOLERANCE)


def test_bfloat16_keeps_positions():
    model = tiny_model()
    seen = []
    model.spot_vit.embeddings.register_forward_hook(lambda module, inputs, output: seen.append(inputs[1]))
    classifier = SpotImageClassificationPipeline(model=model.to(torch.bfloat16), image_processor=tiny_processor())
    classifier(IMAGES[0], num_tokens=9)
    assert seen[0].dtype == torch.float32 and torch.equal(seen[0][0], isotropic(9))


def test_the_stock_pipeline_uses_the_saved_placement():
    model = tiny_model()
    seen = []
    model.spot_vit.embeddings.register_forward_hook(lambda module, inputs, output: seen.append(inputs[1]))
    stock = ImageClassificationPipeline(model=model, image_processor=tiny_processor(num_tokens=9, placement="center"))
    answer = stock(IMAGES[0], top_k=5)
    assert seen[0].shape == (1, 9, 2)
    torch.testing.assert_close(scores(answer), expected(stock, IMAGES[0]), **TOLERANCE)
    assert len(stock(IMAGES, batch_size=2)) == 3


def test_by_task_name(tmp_path):
    made = pipeline("spot-image-classification", model=tiny_model(), image_processor=tiny_processor())
    assert isinstance(made, SpotImageClassificationPipeline)
    stock = pipeline("image-classification", model=tiny_model(), image_processor=tiny_processor())
    assert len(stock(IMAGES[0], top_k=3)) == 3


def test_boxes_per_image(classifier):
    left, right = [0, 0, 30, 45], [30, 0, 60, 45]

    def sides(inputs, **kwargs):
        answers = classifier(inputs, num_tokens=20, return_coordinates=True, **kwargs)
        return [np.array(answer["coordinates"])[:, 0].mean() < 0.5 for answer in answers]

    same = [IMAGES[0], IMAGES[0]]
    assert sides(same, boxes=[left, right]) == sides(same, boxes=[[left], [right]], placement="salient") == [True, False]
    rows = [{"image": IMAGES[0], "boxes": box} for box in (left, right)]
    assert sides(rows, placement="salient", batch_size=2) == [True, False]
    alone = classifier(IMAGES[0], boxes=right, num_tokens=20, return_coordinates=True)
    assert np.array(alone["coordinates"])[:, 0].min() > 0.49
    # A data set may have a column of that name, for something else.
    assert classifier({"image": IMAGES[0], "boxes": "none"}) == classifier(IMAGES[0])
    with pytest.raises(ValueError, match="a box, which `boxes` takes"):
        classifier(IMAGES[0], saliency=[left], placement="salient", num_tokens=4)
    with pytest.raises(ValueError, match="`boxes` is for the placements salient"):
        classifier(same, boxes=[left, right], num_tokens=4, placement="isotropic")


def test_window_scales_of_a_call(classifier):
    scales = [1.5, 0.75]
    row = {"image": IMAGES[0], "coordinates": ONE, "window_scales": scales}
    answer = classifier(row, return_coordinates=True)
    assert answer["window_scales"] == scales
    again = classifier(IMAGES[0], coordinates=ONE, window_scales=scales, return_coordinates=True)
    assert again == answer and "window_scales" not in classifier(IMAGES[0], coordinates=ONE, return_coordinates=True)
    per_image = classifier(IMAGES[:2], coordinates=ONE, window_scales=[scales, [1, 1]], return_coordinates=True)
    assert per_image[0]["predictions"] == answer["predictions"] and "window_scales" not in per_image[1]
    # A batch may mix images with and without, and of different counts: padding has no scale.
    rows = [row, {"image": IMAGES[1], "coordinates": TWO}, {"image": IMAGES[2]}]
    together, alone = classifier(rows, batch_size=3), [classifier(one) for one in rows]
    for one, other in zip(together, alone, strict=True):
        torch.testing.assert_close(scores(one), scores(other), **TOLERANCE)
    larger = classifier(IMAGES[0], num_tokens=4, window_scales=2, return_coordinates=True)
    assert larger["window_scales"] == [2.0] * 4


def test_tokens_outside_of_the_crop():
    processor = tiny_processor(size={"shortest_edge": 48}, do_center_crop=True, crop_size={"height": 48, "width": 48})
    cropping = SpotImageClassificationPipeline(model=tiny_model(), image_processor=processor)
    wide, points = IMAGES[0].resize((96, 48)), [[0.02, 0.5], [0.5, 0.5]]
    with pytest.warns(UserWarning, match="1 of 2 tokens lie outside"):
        cropping(wide, coordinates=points)
    answer = cropping(wide, coordinates=points, outside="drop", return_coordinates=True)
    assert answer["coordinates"] == [pytest.approx(points[1])]
    with pytest.raises(ValueError, match="1 of 2 tokens lie outside"):
        cropping(wide, coordinates=points, outside="error")


def test_what_is_salient_counts_however_it_is_given(classifier):
    box, image = [40, 30, 55, 42], IMAGES[0]

    def inside(answer) -> bool:
        return bool((np.array(answer["coordinates"]) * image.size > [38, 28]).all())

    options = {"num_tokens": 9, "return_coordinates": True}
    assert inside(classifier({"image": image, "boxes": [box]}, **options))
    assert inside(classifier(image, boxes=[box], **options)) and inside(classifier([image], boxes=[box], **options)[0])
    isotropic_one = SpotImageClassificationPipeline(
        model=tiny_model(), image_processor=tiny_processor(), placement="isotropic", num_tokens=9
    )
    for inputs in (image, [image]):
        with pytest.raises(ValueError, match="`boxes` is for the placements salient"):
            isotropic_one(inputs, boxes=[box])
        with pytest.raises(ValueError, match="`coordinates` and `boxes` exclude each other"):
            classifier(inputs, boxes=[box], coordinates=ONE)
    with pytest.raises(ValueError, match="`boxes` of several images need a list of images; got generator"):
        classifier((one for one in IMAGES), boxes=[box, box, box], num_tokens=9)
    assert classifier({"image": image, "bboxes": [1, 2]}, num_tokens=9)  # a common name of a column
