"""RandAugment, mixup and cutmix: a function of the draw alone, with the distributions that were published."""

import math

import pytest
import torch
from scipy.stats import beta, kstest

from spot_hf.training.augmentation import Augmentation, Mixing


NUM_IMAGES, WIDTH, HEIGHT = 1000, 64, 32
PIXELS = torch.randint(256, (3, HEIGHT, WIDTH), generator=torch.Generator().manual_seed(0)).byte()


def mixings(augmentation: Augmentation, count: int = 1000, epoch: int = 2) -> list[Mixing | None]:
    draws = range(epoch * NUM_IMAGES, epoch * NUM_IMAGES + count)
    return [augmentation.mixing(draw, NUM_IMAGES, WIDTH, HEIGHT) for draw in draws]


def test_mixing_is_a_function_of_the_draw_and_the_seed():
    first = mixings(Augmentation(mixup=0.4, cutmix=0.4), 50)
    torch.manual_seed(123)
    assert mixings(Augmentation(mixup=0.4, cutmix=0.4), 50) == first
    assert mixings(Augmentation(mixup=0.4, cutmix=0.4, seed=1), 50) != first
    assert mixings(Augmentation(mixup=0.4, cutmix=0.4), 50, epoch=3) != first
    assert mixings(Augmentation()) == [None] * 1000


def test_partners_are_other_images_of_the_same_epoch():
    """Each of the 999 others as often as any: Kolmogorov-Smirnov at 1e-4."""
    made = mixings(Augmentation(mixup=1.0))
    offsets = [(one.partner - 2 * NUM_IMAGES - index) % NUM_IMAGES for index, one in enumerate(made)]
    assert all(one.partner // NUM_IMAGES == 2 for one in made) and min(offsets) >= 1
    assert kstest([offset / NUM_IMAGES for offset in offsets], "uniform").pvalue > 1e-4
    assert Augmentation(mixup=1.0).mixing(5, 1, WIDTH, HEIGHT) is None  # there is no other


def test_shares_of_images_that_are_mixed():
    """A third each: 5 standard deviations of a binomial."""
    made = mixings(Augmentation(mixup=1 / 3, cutmix=1 / 3))
    kinds = [0 if one is None else 1 if one.weight < 1 else 2 for one in made]
    assert all(abs(kinds.count(kind) - 1000 / 3) < 5 * math.sqrt(1000 * 2 / 9) for kind in range(3))


@pytest.mark.parametrize("alpha", [0.8, 0.2, 4.0])
def test_mixup_weights_are_beta_distributed(alpha):
    """Kolmogorov-Smirnov at 1e-4, of fixed numbers."""
    made = mixings(Augmentation(mixup=1.0, mixup_alpha=alpha))
    assert all(one.box == (0, 0, WIDTH, HEIGHT) for one in made)
    assert kstest([one.weight for one in made], beta(alpha, alpha).cdf).pvalue > 1e-4


@pytest.mark.parametrize("alpha", [1.0, 4.0])
def test_cutmix_areas_are_beta_distributed(alpha):
    """The rectangle's share of the area before it is clipped: of those narrower than half of the image around its middle half,
    which the left and the right border cannot clip. In an image so large that rounding does not count."""
    augmentation, width, height = Augmentation(cutmix=1.0, cutmix_alpha=alpha), 64_000, 32_000
    made = [augmentation.mixing(draw, NUM_IMAGES, width, height) for draw in range(4000)]
    assert all(one.weight == 1 for one in made)
    shares = []
    for left, top, right, bottom in (one.box for one in made):
        assert 0 <= left < right <= width and 0 <= top < bottom <= height
        if top > 0 and bottom < height and left > 0 and right < width:
            assert abs((right - left) - 2 * (bottom - top)) <= 3  # of the image's own shape
        if right - left < width / 2 and width / 4 < (left + right) / 2 < width * 3 / 4:
            shares.append(((right - left) / width) ** 2)
    distribution = beta(alpha, alpha)
    assert len(shares) > 100
    assert kstest(shares, lambda x: distribution.cdf(x) / distribution.cdf(0.25)).pvalue > 1e-4


def test_rectangles_without_a_pixel_are_none():
    made = mixings(Augmentation(cutmix=1.0, cutmix_alpha=0.1))
    assert 0 < made.count(None) < 700
    assert all(one is None or (one.box[0] < one.box[2] and one.box[1] < one.box[3]) for one in made)


def test_what_is_mixed_where():
    others = 255 - PIXELS
    blended = Mixing(partner=1, weight=0.25, box=(0, 0, WIDTH, HEIGHT))(PIXELS, others)
    assert blended.dtype == torch.uint8
    assert (blended.float() - (0.75 * PIXELS.float() + 0.25 * others.float())).abs().max() <= 0.5
    pasted = Mixing(partner=1, weight=1.0, box=(10, 4, 30, 20))(PIXELS, others)
    inside = torch.zeros(HEIGHT, WIDTH, dtype=torch.bool)
    inside[4:20, 10:30] = True
    assert torch.equal(pasted, torch.where(inside, others, PIXELS))


def test_rand_augment_is_a_function_of_the_draw():
    """Whatever was drawn before, here or in another process; and one image is not changed as the next."""
    augmentation = Augmentation(rand_augment_num_ops=2)
    changed = [augmentation.augmented(PIXELS, draw) for draw in range(20)]
    torch.manual_seed(7)
    again = Augmentation(rand_augment_num_ops=2)
    assert all(torch.equal(again.augmented(PIXELS, draw), changed[draw]) for draw in reversed(range(20)))
    assert len({one.numpy().tobytes() for one in changed}) > 15
    assert changed[0].dtype == torch.uint8 and changed[0].shape == PIXELS.shape
    assert not torch.equal(Augmentation(rand_augment_num_ops=2, seed=1).augmented(PIXELS, 0), changed[0])
    assert torch.equal(Augmentation().augmented(PIXELS, 0), PIXELS)


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"mixup": -0.1}, "`mixup`"),
        ({"mixup": 0.6, "cutmix": 0.6}, "`cutmix`"),
        ({"mixup": math.nan}, "`mixup`"),
        ({"mixup_alpha": 0.0}, "`mixup_alpha`"),
        ({"cutmix_alpha": -1.0}, "`cutmix_alpha`"),
        ({"rand_augment_num_ops": -1}, "`rand_augment_num_ops`"),
        ({"rand_augment_num_ops": 2, "rand_augment_magnitude": 30}, "`rand_augment_magnitude`"),
    ],
)
def test_bad_input_is_named(changes, named):
    with pytest.raises(ValueError, match=named):
        Augmentation(**changes)
