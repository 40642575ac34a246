"""From bytes to a training step's inputs: normalization, RandAugment, mixup and cutmix whose labels are what tokens see."""

import pytest
import torch
from PIL import Image
from tiny import tiny_processor

from spot_hf.training.batches import BatchPreparation, Mixed
from spot_hf.training.placements import TrainingPlacements
from spot_hf.windows import sample_windows


COUNT = 6


def preparation(num_tokens: int = 36, placement: str = "isotropic", **changes) -> BatchPreparation:
    placements = TrainingPlacements(num_tokens=[num_tokens], placement=[placement], height=48, width=48, patch_size=8)
    return BatchPreparation(placements, tiny_processor(), **changes)


def flat_images() -> dict[str, torch.Tensor]:
    """Image `i` is `40 i` everywhere, and has the label `i`: what is mixed into it can be read from its pixels."""
    labels = torch.arange(COUNT)
    return {"pixels": (40 * labels)[:, None, None, None].expand(-1, 3, 48, 48).byte(), "draw": labels, "labels": labels}


def seen(prepared: BatchPreparation, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
    """`(batch_size,)`: the mean label that the windows show, from the pixels that the model samples."""
    pixels = inputs["pixel_values"] * prepared.std + prepared.mean
    return sample_windows(pixels, inputs["coordinates"], 8).mean((1, 2, 3, 4)) * 255 / 40


def test_pixel_values_are_those_of_the_image_processor():
    """To float32's rounding of a value of about 2: the order of the operations differs."""
    pixels = torch.randint(256, (3, 48, 48), generator=torch.Generator().manual_seed(0)).byte()
    expected = tiny_processor()(Image.fromarray(pixels.permute(1, 2, 0).numpy()), return_tensors="pt")["pixel_values"]
    batch = preparation()({"pixels": pixels[None], "draw": torch.zeros(1).long()}, 36)
    assert (batch.inputs["pixel_values"] - expected).abs().max() < 1e-6
    assert batch.labels is None and batch.other_labels is None


@pytest.mark.parametrize("kind", ["mixup", "cutmix"])
@pytest.mark.parametrize(("num_tokens", "placement"), [(36, "isotropic"), (9, "uniform_perturb")])
def test_mixed_labels_are_what_the_tokens_see(kind, num_tokens, placement):
    """On the full grid exactly, up to rounding of pixels. Elsewhere a window's border pixels are interpolated between
    box and image: half a pixel of eight per side, at the most."""
    prepared = preparation(num_tokens, placement, **{kind: 1.0})
    tolerance = 1e-4 if placement == "isotropic" or kind == "mixup" else COUNT * 0.25
    shares = []
    for seed in range(8):
        torch.manual_seed(seed)
        batch = prepared(flat_images(), num_tokens)
        assert batch.labels is not None and batch.other_labels is not None and batch.other_share is not None
        assert sorted(batch.other_labels.tolist()) == list(range(COUNT))
        expected = torch.lerp(batch.labels.float(), batch.other_labels.float(), batch.other_share)
        assert (seen(prepared, batch.inputs) - expected).abs().max() < tolerance
        shares.append(batch.other_share)
    shares = torch.cat(shares)
    assert shares.min() >= 0 and shares.max() <= 1 and shares.std() > 0.1


def test_a_box_that_no_token_sees_gives_no_label():
    """The area of the box is a quarter of the image: the labels of an ordinary cutmix would say so."""
    mixed = Mixed(torch.tensor([0]), boxes=torch.tensor([[24.0, 24.0, 48.0, 48.0]]))
    pixel_values = torch.zeros(1, 3, 48, 48)
    left_top = torch.tensor([[[0.2, 0.2], [0.3, 0.1]]])
    assert mixed.share({"pixel_values": pixel_values, "coordinates": left_top}, 8).item() == 0
    straddles = torch.tensor([[[0.5, 0.75], [0.2, 0.2]]])  # half of one window of two
    assert mixed.share({"pixel_values": pixel_values, "coordinates": straddles}, 8).item() == pytest.approx(0.25)
    wide = {"pixel_values": pixel_values, "coordinates": straddles[:, :1], "window_scales": torch.tensor([[2.0]])}
    assert mixed.share(wide, 8).item() == pytest.approx(0.5)


def test_shares_of_batches_that_are_mixed():
    """A third each: 300 batches, 5 standard deviations of a binomial."""
    prepared = preparation(9, "isotropic", mixup=1 / 3, cutmix=1 / 3)
    torch.manual_seed(0)
    kinds = [prepared._mix(flat_images()["pixels"].float())[1] for _ in range(300)]
    counts = [
        sum(kind is None for kind in kinds),
        sum(kind is not None and kind.boxes is None for kind in kinds),
        sum(kind is not None and kind.boxes is not None for kind in kinds),
    ]
    assert all(abs(count - 100) < 5 * (300 * 2 / 9) ** 0.5 for count in counts)


def test_rand_augment_changes_pixels_not_coordinates():
    torch.manual_seed(0)
    images = {**flat_images(), "pixels": torch.randint(256, (COUNT, 3, 48, 48)).byte()}
    plain, changed = (preparation(9, **arguments)(images, 9).inputs for arguments in ({}, {"rand_augment_num_ops": 3}))
    assert not torch.equal(plain["pixel_values"], changed["pixel_values"])
    assert torch.equal(plain["coordinates"], changed["coordinates"])
    prepared = preparation()
    unit = changed["pixel_values"] * prepared.std + prepared.mean
    assert unit.min() > -1e-6 and unit.max() < 1 + 1e-6


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"mixup": -0.1}, "`mixup`"),
        ({"mixup": 0.6, "cutmix": 0.6}, "`cutmix`"),
        ({"rand_augment_num_ops": -1}, "`rand_augment_num_ops`"),
        ({"rand_augment_num_ops": 2, "rand_augment_magnitude": 30}, "`rand_augment_magnitude`"),
    ],
)
def test_bad_input_is_named(changes, named):
    with pytest.raises(ValueError, match=named):
        preparation(**changes)
