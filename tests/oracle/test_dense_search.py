"""The oracle of a model that segments: its losses and gradients are those of a plain loop over single images and pixels."""

import math

import pytest
import torch
from oracle_runs import IGNORED, NUM_CLASSES
from test_search import SAME_LOSSES, SAME_POSITIONS, assert_names, assert_same, passes
from tiny import random_coordinates, random_images, tiny_model

from spot_hf import SpotOracle, SpotViTForSemanticSegmentation
from spot_hf.oracle.outputs import sampled_labels


COUNT, NUM_TOKENS, HEIGHT, WIDTH = 4, 6, 32, 40
IMAGES = random_images(COUNT, HEIGHT, WIDTH)
START = random_coordinates(COUNT, NUM_TOKENS)
SCALES = torch.linspace(0.8, 2.0, NUM_TOKENS).expand(COUNT, -1)
LABELS = torch.randint(NUM_CLASSES, (COUNT, HEIGHT, WIDTH), generator=torch.Generator().manual_seed(2))
LABELS[:, :9] = IGNORED
LABELS[1, :, 15:] = IGNORED
OBJECTIVES = ["label", "distill", "feature"]


@pytest.fixture(scope="module")
def model():
    return tiny_model(
        model_class=SpotViTForSemanticSegmentation, num_labels=NUM_CLASSES, semantic_loss_ignore_index=IGNORED,
        image_size=[HEIGHT, WIDTH], segmentation_scores_per_side=2,
    )  # fmt: skip


def reference_loss(model, objective, image, positions, label, scales=None):
    """Of one image, pixel by pixel of the map; in float64, for finite differences."""
    placed = {"pixel_values": image[None], "coordinates": positions[None]}
    placed |= {} if scales is None else {"window_scales": scales[None]}
    if objective == "feature":
        with torch.no_grad():
            wanted = model.spot_vit(pixel_values=image[None]).pooler_output[0]
        found = model.spot_vit(**placed).pooler_output[0]
        return 1 - wanted @ found / (wanted.norm() * found.norm())
    scores = model(**placed).logits[0].log_softmax(0)
    rows, columns = scores.shape[1:]
    assert (rows, columns) == (HEIGHT // 4, WIDTH // 4)
    if objective == "distill":
        with torch.no_grad():
            wanted = model(pixel_values=image[None]).logits[0].log_softmax(0)
        pixels = [(wanted[:, y, x].exp() * (wanted - scores)[:, y, x]).sum() for y in range(rows) for x in range(columns)]
        return torch.stack(pixels).mean()
    # The pixel of the label whose centre is nearest to that of the map's; of two that are equally near, the second.
    of_map = {(y, x): int(label[4 * y + 2, 4 * x + 2]) for y in range(rows) for x in range(columns)}
    losses = [-scores[one, y, x] for (y, x), one in of_map.items() if one != IGNORED]
    return torch.stack(losses).mean()


@pytest.mark.parametrize("scaled", [False, True], ids=["windows of a patch", "windows with sizes"])
@pytest.mark.parametrize("objective", OBJECTIVES)
def test_losses_and_gradients_are_those_of_a_plain_loop(model, objective, scaled):
    scales = SCALES if scaled else None
    oracle = SpotOracle(model, objective, steps=1, optimizer="sgd", learning_rate=0.05)
    result = oracle.optimize(IMAGES, LABELS if objective == "label" else None, START, window_scales=scales)
    for i in range(COUNT):
        positions = START[i].clone().requires_grad_()
        loss = reference_loss(model, objective, IMAGES[i], positions, LABELS[i], None if scales is None else scales[i])
        gradient = torch.autograd.grad(loss, positions)[0]
        assert result.losses[i, 0].item() == pytest.approx(loss.item(), abs=2e-5)  # float32 scores of the order of 1
        assert gradient.abs().max() > 1e-3, "nothing moves"
        # Steps of up to 0.1, whose gradients agree to 1e-4 of themselves in float32.
        expected = (START[i] - 0.05 * gradient).clamp(0, 1)
        torch.testing.assert_close(result.trajectory[i, 1], expected, rtol=0, atol=1e-5)
    assert result.predictions is None and result.prediction is None


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_gradients_are_finite_differences(model, objective):
    """Of the same loss, which the test above compares with the oracle's: through windows and the spreading of scores."""
    double = tiny_model(
        model_class=SpotViTForSemanticSegmentation, num_labels=NUM_CLASSES, semantic_loss_ignore_index=IGNORED,
        image_size=[HEIGHT, WIDTH], segmentation_scores_per_side=2,
    ).double()  # fmt: skip
    image, positions, scales = IMAGES[0].double(), START[0].double(), SCALES[0].double()

    def loss(at):
        return reference_loss(double, objective, image, at, LABELS[0], scales)

    found = torch.autograd.grad(loss(leaf := positions.clone().requires_grad_()), leaf)[0]
    step = 1e-7  # so small that few samples cross a pixel's centre, where the slope of bilinear interpolation jumps
    for token in range(NUM_TOKENS):
        for axis in range(2):
            moved = torch.zeros_like(positions)
            moved[token, axis] = step
            with torch.no_grad():
                slope = (loss(positions + moved) - loss(positions - moved)) / (2 * step)
            # float64's rounding of a loss of the order of 1, over 2e-7: 1e-8 at most; and a few samples at such a jump.
            assert found[token, axis].item() == pytest.approx(slope.item(), rel=1e-4, abs=1e-6)


@pytest.mark.parametrize("batch_size", [1, 3])
@pytest.mark.parametrize("objective", OBJECTIVES)
def test_batch_sizes_give_the_same_positions(model, objective, batch_size):
    oracle = SpotOracle(model, objective, steps=4)
    labels = LABELS if objective == "label" else None
    together = oracle.optimize(IMAGES, labels, START, window_scales=SCALES)
    for rows in torch.arange(COUNT).split(batch_size):
        alone = oracle.optimize(
            IMAGES[rows], None if labels is None else labels[rows], START[rows], window_scales=SCALES[rows]
        )
        assert_same(together, alone, rows)


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_the_best_iterate_is_returned_and_the_loss_falls(model, objective):
    result = SpotOracle(model, objective, steps=6, learning_rate=0.02).optimize(IMAGES, LABELS, START)
    rows = torch.arange(COUNT)
    assert torch.equal(result.losses[rows, result.best_steps], result.losses.min(1).values)
    assert torch.equal(result.coordinates, result.trajectory[rows, result.best_steps])
    assert (result.losses.min(1).values < result.losses[:, 0]).all()


def test_an_image_without_labelled_pixels_stays_where_it_is(model):
    labels = LABELS.clone()
    labels[2] = IGNORED
    oracle = SpotOracle(model, steps=2, optimizer="sgd", learning_rate=0.05)
    result = oracle.optimize(IMAGES, labels, START)
    assert result.losses[2].tolist() == [0, 0, 0] and torch.equal(result.coordinates[2], START[2])
    others = oracle.optimize(IMAGES[[0, 1, 3]], labels[[0, 1, 3]], START[[0, 1, 3]])
    assert_same(result, others, [0, 1, 3])


def test_labels_of_any_size_and_ignored_pixels_do_not_count(model):
    oracle = SpotOracle(model, steps=2)
    expected = oracle.optimize(IMAGES, LABELS, START)
    larger = LABELS.repeat_interleave(3, 1).repeat_interleave(3, 2)
    of_map = sampled_labels(LABELS, (HEIGHT // 4, WIDTH // 4), IGNORED)
    of_map = of_map.masked_fill(of_map < 0, IGNORED)
    for labels in (larger, of_map):
        result = oracle.optimize(IMAGES, labels, START)
        torch.testing.assert_close(result.trajectory, expected.trajectory, **SAME_POSITIONS)
        torch.testing.assert_close(result.losses, expected.losses, **SAME_LOSSES)


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_cost(model, objective):
    """A forward and a backward pass per step, one forward pass at the end, and one of the full grid."""
    with passes(model) as counted:
        SpotOracle(model, objective, steps=3).optimize(IMAGES, LABELS, START)
    assert counted["forward"] == [COUNT] * (4 + (objective != "label")) and counted["backward"] == 3


def test_targets_that_are_given_spare_the_full_grid(model):
    oracle = SpotOracle(model, "distill", steps=1)
    targets = oracle.full_grid_targets(IMAGES)
    # All cells as positions, and as the grid itself: 1e-4 in float32, as the design says of logits.
    torch.testing.assert_close(targets, model(pixel_values=IMAGES).logits, rtol=0, atol=1e-4)
    result = oracle.optimize(IMAGES, coordinates=START, targets=targets)
    assert torch.equal(result.losses, oracle.optimize(IMAGES, coordinates=START).losses)


def test_images_stop_one_by_one_and_padding_does_not_matter(model):
    mask = torch.ones(COUNT, NUM_TOKENS, dtype=torch.bool)
    mask[1::2, 4:] = False
    start = SpotOracle(model, steps=0).optimize(IMAGES, LABELS, START, coordinates_mask=mask)
    limit = start.losses[:, 0].median().item()
    oracle = SpotOracle(model, steps=3, early_stop=limit)
    result = oracle.optimize(IMAGES, LABELS, START, coordinates_mask=mask)
    assert 0 in result.num_steps and 3 in result.num_steps
    for i in range(COUNT):
        own = START[i : i + 1, : mask[i].sum()]
        alone = oracle.optimize(IMAGES[i : i + 1], LABELS[i : i + 1], own)
        torch.testing.assert_close(result.coordinates[i, mask[i]], alone.coordinates[0], **SAME_POSITIONS)
        torch.testing.assert_close(result.losses[i], alone.losses[0], **SAME_LOSSES)


INPUTS = {
    "none": ("label", {"labels": None}, ["labels", "objective='label'", "none"]),
    "class numbers": ("label", {"labels": torch.zeros(COUNT, dtype=torch.int64)}, ["labels", "height, width", f"({COUNT},)"]),
    "fractions": ("label", {"labels": LABELS.float()}, ["labels", "int64", "float32"]),
    "other images'": ("label", {"labels": LABELS[:2]}, ["labels", "batch_size", "(2, 32, 40)"]),
    "outside": ("label", {"labels": LABELS + 1}, ["labels", "from 0 to 3", "semantic_loss_ignore_index=9", "got 10"]),
    "targets": ("distill", {"targets": torch.zeros(COUNT, NUM_CLASSES)}, ["targets", "(4, 4, 8, 10)", "distill", "(4, 4)"]),
    "features": ("feature", {"targets": torch.zeros(COUNT, 4, 8, 10)}, ["targets", "(4, 32)", "feature", "(4, 4, 8, 10)"]),
}


@pytest.mark.parametrize("case", INPUTS)
def test_inputs_that_are_none(model, case):
    objective, changes, words = INPUTS[case]
    with passes(model) as counted, pytest.raises(ValueError) as error:
        SpotOracle(model, objective).optimize(**{"pixel_values": IMAGES, "labels": LABELS, "coordinates": START, **changes})
    assert_names(error, words)
    assert counted["forward"] == []


def test_classes_are_of_classifiers(model):
    with pytest.raises(ValueError) as error:
        SpotOracle(model, classes=[0, 1])
    assert_names(error, ["classes"])


def test_a_loss_without_a_number_is_not_the_best(model):
    image = IMAGES[:1].clone()
    image[..., WIDTH // 2 :] = math.nan
    start = START[:1] * torch.tensor([0.2, 1.0])
    result = SpotOracle(model, steps=2, optimizer="sign", learning_rate=0.3).optimize(image, LABELS[:1], start)
    assert result.losses[0].isfinite().tolist() == [True, False, False] and torch.equal(result.coordinates, start)
