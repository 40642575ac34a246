"""The pipelines and the image processor with a SpotCNN."""

import pytest
import torch
from PIL import Image
from tiny import nearly
from tiny_networks import save_network
from transformers import pipeline

from spot_hf import SpotImageClassificationPipeline, convert_checkpoint


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    """Of a ResNet for images of 96 × 96 pixels, of which 9 windows are the grid."""
    return convert_checkpoint(save_network(tmp_path_factory.mktemp("source")))


@pytest.fixture(scope="module")
def classifier(report):
    return pipeline(
        model=report.model,
        image_processor=report.image_processor,
        pipeline_class=SpotImageClassificationPipeline,
        task="spot-image-classification",
    )


def test_the_processor_places_and_cuts_windows(report, photos):
    images = [Image.open(photo) for photo in photos]
    placed = report.image_processor(images, num_tokens=4, return_tensors="pt")
    assert placed["pixel_values"].shape == (3, 3, 96, 96) and placed["coordinates"].shape == (3, 4, 2)
    cut = report.image_processor(images, num_tokens=4, return_windows=True, return_tensors="pt")
    assert cut["windows"].shape == (3, 4, 3, 32, 32)
    with torch.no_grad():
        # 8-bit pixels may be another by a step where windows are cut out of the image itself.
        assert (report.model(**cut).logits - report.model(**placed).logits).abs().max() <= 0.1
    covering = report.image_processor(images, num_tokens=4, window_scales="cover", return_tensors="pt")
    assert covering["window_scales"].unique().tolist() == [1.5]


def test_both_pipelines_see_the_same_grid(report, classifier, photos):
    stock = pipeline("image-classification", model=report.model, image_processor=report.image_processor)
    assert classifier(photos, top_k=5) == nearly(stock(photos, top_k=5))
    assert len(classifier(photos[0], return_coordinates=True)["coordinates"]) == 9


def test_a_batch_of_different_numbers_of_tokens_is_each_image_alone(classifier, photos):
    row = [[0.2, 0.3], [0.6, 0.3], [0.8, 0.3]]
    inputs = [
        {"image": photos[0], "coordinates": row[:1]},
        {"image": photos[1], "coordinates": row[:2]},
        {"image": photos[2], "coordinates": [*row, *([x, 0.7] for x, _ in row)]},
    ]
    together = classifier(inputs, batch_size=3, return_coordinates=True)
    assert together == [nearly(classifier(one, return_coordinates=True)) for one in inputs]
    assert [len(answer["coordinates"]) for answer in together] == [1, 2, 6]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_tokens": 5}, "`num_tokens` must make a mosaic of equal rows for a CNN"),
        ({"coordinates": [[0.2, 0.3]] * 3}, "`num_tokens` must make a mosaic of equal rows for a CNN"),
        ({"num_tokens": 4, "merge_tokens": 0.5}, "`merge_tokens` must be 0, as a CNN has no tokens"),
        ({"num_tokens": 4, "placement": "learned"}, "needs a placer"),
    ],
    ids=str,
)
def test_what_it_cannot_have_is_named(arguments, message, classifier, photos):
    with pytest.raises(ValueError) as error:
        classifier(photos[0], **arguments)
    assert message in str(error.value) and "\n" not in str(error.value)
