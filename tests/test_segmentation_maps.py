"""Masks through an image processor's resize and crop, and scores back to the image."""

import numpy as np
import pytest
import torch
from PIL import Image
from segmentation_data import scene
from tiny import tiny_processor
from torch import nn
from transformers.modeling_outputs import SemanticSegmenterOutput


CROPPING = {"size": {"shortest_edge": 40}, "do_center_crop": True, "crop_size": {"height": 32, "width": 32}}


def test_masks_are_resized_by_the_nearest_pixel():
    image, mask = scene(0)
    inputs = tiny_processor(size={"height": 24, "width": 40})(image, segmentation_maps=mask, return_tensors="pt")
    assert inputs["labels"].dtype == torch.int64
    np.testing.assert_array_equal(inputs["labels"][0], np.asarray(mask.resize((40, 24), Image.Resampling.NEAREST)))


def test_masks_move_with_what_the_model_sees():
    """The mask as an image of its own, through the same crop."""
    _, mask = scene(3)
    grey = np.repeat(80 * np.minimum(np.asarray(mask), 3)[..., None], 3, axis=2).astype(np.uint8)
    processor = tiny_processor(**CROPPING, resample=0, do_normalize=False, do_rescale=False)
    inputs = processor(Image.fromarray(grey), segmentation_maps=mask, return_tensors="pt")
    np.testing.assert_array_equal(80 * inputs["labels"][0].clamp_max(3), inputs["pixel_values"][0, 0])


def test_several_maps_in_any_form():
    images, masks = zip(*(scene(i) for i in range(2)), strict=True)
    processor = tiny_processor()
    by_image = processor(list(images), segmentation_maps=list(masks), num_tokens=4, return_tensors="pt")
    as_tensor = processor(list(images), torch.from_numpy(np.stack(masks)), num_tokens=4, return_tensors="pt")
    assert by_image["labels"].shape == (2, 48, 48)
    torch.testing.assert_close(by_image["labels"], as_tensor["labels"])
    assert processor(list(images), segmentation_maps=list(masks), return_tensors="np")["labels"].dtype == np.int64


@pytest.mark.parametrize(
    ("maps", "message"),
    [
        ([np.zeros((48, 64), int)], "`segmentation_maps` must be one per image, 2; got 1"),
        ([np.zeros((48, 64), int), np.zeros((48, 60), int)], r"image 1 has \(height, width\) \(48, 64\), its map \(48, 60\)"),
        ([np.zeros((48, 64)), np.zeros((48, 64))], "`segmentation_maps` must be one map of class numbers.*float64"),
        ([np.zeros((48, 64, 3), int)] * 2, r"got int64 of shape \(48, 64, 3\) for image 0"),
    ],
)
def test_bad_maps(maps, message):
    images = [scene(i)[0] for i in range(2)]
    with pytest.raises(ValueError, match=message):
        tiny_processor()(images, segmentation_maps=maps)


def test_scores_of_a_whole_image_are_interpolated_bilinearly():
    logits = torch.randn(2, 3, 12, 16, generator=torch.Generator().manual_seed(0))
    outputs = SemanticSegmenterOutput(logits=logits)
    processor = tiny_processor(size={"height": 48, "width": 64})
    maps = processor.post_process_semantic_segmentation(outputs, target_sizes=[(90, 70), (48, 64)])
    for own, one, size in zip(logits, maps, [(90, 70), (48, 64)], strict=True):
        expected = nn.functional.interpolate(own[None], size=size, mode="bilinear", align_corners=False)[0].argmax(0)
        assert torch.equal(one, expected)
    assert torch.equal(processor.post_process_semantic_segmentation(outputs)[1], logits[1].argmax(0))
    with pytest.raises(ValueError, match=r"`target_sizes` must be one \(height, width\) per image, 2; got 1"):
        processor.post_process_semantic_segmentation(outputs, [(4, 4)])


def test_scores_of_a_crop_return_to_where_they_were():
    """A ramp over what the model sees is the same ramp over the image, and constant beyond the crop."""
    processor = tiny_processor(**CROPPING)
    size = (60, 120)  # resized to 40 × 80; the crop begins at 4 / 40 and 24 / 80
    ramp = (torch.arange(32) + 0.5) / 32
    logits = torch.stack([ramp[None].expand(32, -1), ramp[:, None].expand(-1, 32)])[None]
    outputs = SemanticSegmenterOutput(logits=logits)
    (found,) = processor.post_process_semantic_segmentation(outputs, [size], return_segmentation_scores=True)
    scores = found["segmentation_scores"]
    assert torch.equal(found["segmentation"], scores.argmax(0))
    x = ((torch.arange(120) + 0.5) / 120 * 80 - 24) / 32
    y = ((torch.arange(60) + 0.5) / 60 * 40 - 4) / 32
    inner = 0.5 / 32  # beyond the centres of the border pixels these are repeated
    # float32, positions of the order of 1
    torch.testing.assert_close(scores[0], x.clamp(inner, 1 - inner).expand(60, -1), rtol=0, atol=1e-5)
    torch.testing.assert_close(scores[1], y.clamp(inner, 1 - inner)[:, None].expand(-1, 120), rtol=0, atol=1e-5)


def test_to_the_model_frame_and_back():
    """A mask, as scores over the model's frame, comes back as it was where the crop sees it."""
    _, mask = scene(1, height=96, width=128)
    array = np.asarray(mask) % 7
    processor = tiny_processor(size={"height": 96, "width": 128})
    seen = processor.segmentation_map_to_model_frame(array)
    scores = nn.functional.one_hot(seen, 3).permute(2, 0, 1)[None].float()
    (back,) = processor.post_process_semantic_segmentation({"logits": scores}, [array.shape])
    assert torch.equal(back, torch.from_numpy(array.astype(np.int64)))
