"""From bytes to a training step's inputs: normalization, and labels of mixed images that are what tokens see."""

import io

import datasets
import pytest
import torch
from PIL import Image
from tiny import tiny_processor

from spot_hf.training.augmentation import Augmentation
from spot_hf.training.batches import BatchPreparation, TrainingBatch, seen_share
from spot_hf.training.data import TrainingImages, collate
from spot_hf.training.placements import TrainingPlacements
from spot_hf.windows import sample_windows


COUNT = 6


def preparation(num_tokens: int = 36, placement: str = "isotropic", **changes) -> BatchPreparation:
    placements = TrainingPlacements(
        num_tokens=[num_tokens], placement=[placement], height=48, width=48, patch_size=8, **changes
    )
    return BatchPreparation(placements, tiny_processor())


def flat_images(augmentation: Augmentation) -> TrainingImages:
    """Image `i` is `40 i` everywhere, and has the label `i`: what is mixed into it can be read from its pixels."""
    contents = []
    for i in range(COUNT):
        buffer = io.BytesIO()
        Image.new("RGB", (48, 48), (40 * i,) * 3).save(buffer, "PNG")
        contents.append(buffer.getvalue())
    rows = {"image": [{"bytes": one, "path": None} for one in contents], "label": list(range(COUNT))}
    features = datasets.Features({"image": datasets.Image(), "label": datasets.Value("int64")})
    images = datasets.Dataset.from_dict(rows, features=features, split=datasets.Split("train"))
    return TrainingImages(images, tiny_processor(), augmentation=augmentation)


def seen(prepared: BatchPreparation, batch: TrainingBatch) -> torch.Tensor:
    """`(batch_size,)`: the mean label that the windows show, from the pixels that the model samples."""
    pixels = batch.inputs["pixel_values"] * prepared.std + prepared.mean
    return sample_windows(pixels, batch.inputs["coordinates"], 8).mean((1, 2, 3, 4)) * 255 / 40


def test_pixel_values_are_those_of_the_image_processor():
    """To float32's rounding of a value of about 2: the order of the operations differs."""
    pixels = torch.randint(256, (3, 48, 48), generator=torch.Generator().manual_seed(0)).byte()
    expected = tiny_processor()(Image.fromarray(pixels.permute(1, 2, 0).numpy()), return_tensors="pt")["pixel_values"]
    batch = preparation()({"pixels": pixels[None], "draw": torch.zeros(1).long()}, 36)
    assert (batch.inputs["pixel_values"] - expected).abs().max() < 1e-6
    assert batch.labels is None and batch.other_labels is None and batch.other_weights is None


@pytest.mark.parametrize("kind", ["mixup", "cutmix"])
@pytest.mark.parametrize(("num_tokens", "placement"), [(36, "isotropic"), (9, "uniform")])
def test_mixed_labels_are_what_the_tokens_see(kind, num_tokens, placement):
    """On the full grid exactly, up to the rounding of mixed bytes: by half of one, of 40 per class. Elsewhere a window's
    border pixels are interpolated between box and image: half a pixel of eight per side, at the most."""
    prepared, images = preparation(num_tokens, placement), flat_images(Augmentation(**{kind: 1.0}))
    tolerance = 0.5 / 40 + 1e-4 if placement == "isotropic" or kind == "mixup" else COUNT * 0.25
    batch = prepared(collate([images[draw] for draw in range(20 * COUNT)]), num_tokens)
    assert batch.labels is not None and batch.other_labels is not None and batch.other_weights is not None
    assert (batch.labels != batch.other_labels).all()
    expected = torch.lerp(batch.labels.float(), batch.other_labels.float(), batch.other_weights)
    assert (seen(prepared, batch) - expected).abs().max() < tolerance
    weights = batch.other_weights
    assert weights.min() >= 0 and weights.max() <= 1 and weights.std() > 0.1


def test_images_that_are_not_mixed_keep_their_labels():
    batch = preparation()(collate([flat_images(Augmentation(mixup=0.5))[draw] for draw in range(50)]), 36)
    assert batch.labels is not None and batch.other_labels is not None and batch.other_weights is not None
    alone = batch.other_weights == 0
    assert 10 < int(alone.sum()) < 40 and torch.equal(batch.labels[alone], batch.other_labels[alone])
    shown = seen(preparation(), batch)
    torch.testing.assert_close(shown[alone], batch.labels[alone].float(), rtol=0, atol=1e-4)


def share(box: list[float], coordinates: list[list[float]], **scales) -> float:
    inputs = {"pixel_values": torch.zeros(1, 3, 48, 48), "coordinates": torch.tensor([coordinates]), **scales}
    return seen_share(inputs, torch.tensor([box]), 8).item()


def test_a_box_that_no_token_sees_gives_no_label():
    """The area of the box is a quarter of the image: the labels of an ordinary cutmix would say so."""
    box = [24.0, 24.0, 40.0, 48.0]
    assert share(box, [[0.2, 0.2], [0.3, 0.1]]) == 0
    straddles = [0.5, 0.75]  # half of its window
    assert share(box, [straddles, [0.2, 0.2]]) == pytest.approx(0.25)
    assert share(box, [straddles], window_scales=torch.tensor([[2.0]])) == pytest.approx(0.5)
    assert share(box, [straddles], window_scales=torch.tensor([[6.0]])) == pytest.approx((16 / 48) * (36 / 48))


def test_beyond_the_border_a_window_sees_the_pixels_of_the_border():
    """Three quarters of a window at the corner lie outside of the image, whose last pixels are replicated there."""
    corner = [[1.0, 1.0]]
    assert share([24.0, 24.0, 48.0, 48.0], corner) == 1
    assert share([46.0, 24.0, 48.0, 48.0], corner) == pytest.approx(0.75)
    assert share([24.0, 24.0, 47.0, 48.0], corner) == pytest.approx(3 / 8)
    assert share([0.0, 0.0, 48.0, 48.0], [[0.1, 0.9], [0.5, 0.5]]) == 1
