"""The oracle: its steps are those of a plain loop over single images, it keeps the best, and it leaves the model as it was.

The references here are written without the oracle: PyTorch's own losses on the model's public output, one image at a time.
"""

import copy
import math
from contextlib import contextmanager

import pytest
import torch
from tiny import POSITION_KINDS, random_coordinates, random_images, tiny_model, tiny_processor
from torch.nn.functional import cross_entropy
from transformers import ViTConfig, ViTForImageClassification

from spot_hf import OracleResult, SpotOracle, SpotViTForImageClassification, SpotViTModel, convert_checkpoint
from spot_hf.hub.loading import open_model
from spot_hf.oracle.optimizers import OPTIMIZERS
from spot_hf.placement import grid


COUNT, NUM_TOKENS = 8, 6
IMAGES = random_images(COUNT)
LABELS = torch.arange(COUNT) % 5
START = random_coordinates(COUNT, NUM_TOKENS)
MASK = torch.ones(COUNT, NUM_TOKENS, dtype=torch.bool)
MASK[1::2, 4:] = False

# A position is rounded to 6e-8. Sums run in another order in batches of another size: gradients differ by 1e-6 of
# themselves, and an adaptive optimizer takes a step of its full length even along a small one.
SAME_POSITIONS = {"rtol": 0, "atol": 1e-5}
# float32 logits of the order of 1, from positions that are the same to the last bit or to the above.
SAME_LOSSES = {"rtol": 0, "atol": 1e-4}


def undecided(model):
    """The same model without its preference: random weights see one class in all images."""
    with torch.no_grad():
        model.classifier.bias -= model(pixel_values=IMAGES, coordinates=START).logits.mean(0)
    return model


@pytest.fixture(scope="module")
def model():
    return undecided(tiny_model())


@pytest.fixture(scope="module")
def decided(model):
    """The same with larger logits: probabilities are above one half."""
    model = copy.deepcopy(model)
    with torch.no_grad():
        model.classifier.weight *= 6
        model.classifier.bias *= 6
    return model


@contextmanager
def passes(model):
    """Counts, while it is open: the batch size of each forward pass of the encoder, those that keep what a backward pass
    needs, and backward passes."""
    encoder = model.base_model
    counted = {"forward": [], "kept": 0, "backward": 0}

    def count_forward(module, inputs, output):
        counted["forward"].append(len(output.pooler_output))
        counted["kept"] += output.pooler_output.requires_grad

    def count_backward(*_):
        counted["backward"] += 1

    hooks = [
        encoder.register_forward_hook(count_forward),
        encoder.layers[-1].register_full_backward_hook(count_backward),
    ]
    try:
        yield counted
    finally:
        for hook in hooks:
            hook.remove()


def reference_loss(model, objective, image, positions, label):
    """The loss of one image `(3, height, width)` at positions `(num_tokens, 2)`, as the papers write it."""
    placed = {"pixel_values": image[None], "coordinates": positions[None]}
    if objective == "label":
        return cross_entropy(model(**placed).logits, label[None])
    with torch.no_grad():
        full_grid = (model if objective == "distill" else model.base_model)(pixel_values=image[None])
    if objective == "distill":
        wanted, found = full_grid.logits.log_softmax(-1), model(**placed).logits.log_softmax(-1)
        return (wanted.exp() * (wanted - found)).sum()
    wanted, found = full_grid.pooler_output[0], model.base_model(**placed).pooler_output[0]
    return 1 - wanted @ found / (wanted.norm() * found.norm())


def reference_gradient(model, objective, image, positions, label):
    positions = positions.clone().requires_grad_()
    return torch.autograd.grad(reference_loss(model, objective, image, positions, label), positions)[0]


def reference_search(model, image, label, start, steps, make_optimizer):
    """`(steps + 1, num_tokens, 2)`: the loop that anybody would write for one image."""
    positions = start.clone().requires_grad_()
    optimizer = make_optimizer([positions])
    way = [start]
    for _ in range(steps):
        optimizer.zero_grad()
        positions.grad = torch.autograd.grad(reference_loss(model, "label", image, positions, label), positions)[0]
        optimizer.step()
        with torch.no_grad():
            positions.clamp_(0, 1)
        way.append(positions.detach().clone())
    return torch.stack(way)


def assert_same(result: OracleResult, other: OracleResult, rows=slice(None), other_rows=slice(None)):
    """Two searches of the same images, in batches of different sizes."""
    torch.testing.assert_close(result.trajectory[rows], other.trajectory[other_rows], **SAME_POSITIONS)
    torch.testing.assert_close(result.coordinates[rows], other.coordinates[other_rows], **SAME_POSITIONS)
    torch.testing.assert_close(result.losses[rows], other.losses[other_rows], **SAME_LOSSES)
    assert torch.equal(result.num_steps[rows], other.num_steps[other_rows])


# ------------------------------------------------------------------------------------------- steps, against references


@pytest.mark.parametrize("objective", ["label", "distill", "feature"])
def test_a_step_follows_the_gradient_of_the_objective(model, objective):
    learning_rate = {"label": 0.02, "distill": 0.02, "feature": 0.2}[objective]  # so that each moves tokens visibly
    oracle = SpotOracle(model, objective, steps=1, optimizer="sgd", learning_rate=learning_rate)
    result = oracle.optimize(IMAGES, LABELS if objective == "label" else None, START)
    gradients = torch.stack([reference_gradient(model, objective, *one) for one in zip(IMAGES, START, LABELS, strict=True)])
    assert (learning_rate * gradients).abs().median() > 1e-3
    # Steps of up to 0.2, whose gradients agree to 1e-5 of themselves in float32.
    torch.testing.assert_close(result.trajectory[:, 1], (START - learning_rate * gradients).clamp(0, 1), rtol=0, atol=3e-6)
    expected = [reference_loss(model, objective, *one).item() for one in zip(IMAGES, START, LABELS, strict=True)]
    assert result.losses[:, 0].tolist() == pytest.approx(expected, abs=1e-5)  # float32 logits of the order of 1


@pytest.mark.parametrize("arguments", [{}, {"weight_decay": 0.5, "betas": (0.5, 0.9)}], ids=["default", "with arguments"])
def test_the_search_is_a_plain_loop_over_images(model, arguments):
    oracle = SpotOracle(model, steps=5, learning_rate=0.05, optimizer="AdamW", optimizer_arguments=arguments)
    result = oracle.optimize(IMAGES, LABELS, START)
    given = {"weight_decay": 0.0, **arguments}
    expected = torch.stack([
        reference_search(model, *one, 5, lambda positions: torch.optim.AdamW(positions, lr=0.05, **given))
        for one in zip(IMAGES, LABELS, START, strict=True)
    ])  # fmt: skip
    if not arguments:  # otherwise decay holds them back
        assert ((expected == 0) | (expected == 1)).any(), "no token came to an edge: nothing was clamped"
    # Steps that are 17 times as long as the default's, and tolerance likewise.
    torch.testing.assert_close(result.trajectory, expected, rtol=0, atol=1.7e-4)


@pytest.mark.parametrize("kind", ["rotary", "relative", "none"])
def test_the_search_feels_positions_in_attention(kind):
    """Of a constant image all windows are alike: only where the model compares positions can a search lower the loss."""
    model = undecided(tiny_model(**POSITION_KINDS[kind]))
    images = torch.full_like(IMAGES, 0.7)
    result = SpotOracle(model, "label", steps=5, learning_rate=0.01).optimize(images, LABELS, START)
    moved = (result.losses.min(dim=1).values < result.losses[:, 0] - 1e-5).sum().item()  # more than float32's rounding
    assert moved == (0 if kind == "none" else COUNT)


def test_sign_descent_takes_steps_of_one_length(model):
    result = SpotOracle(model, steps=1, optimizer="sign", learning_rate=0.02).optimize(IMAGES, LABELS, START)
    gradients = torch.stack([reference_gradient(model, "label", *one) for one in zip(IMAGES, START, LABELS, strict=True)])
    assert (gradients != 0).all()
    # The rounding of a position.
    torch.testing.assert_close(result.trajectory[:, 1], (START - 0.02 * gradients.sign()).clamp(0, 1), rtol=0, atol=2e-7)


@pytest.mark.parametrize("optimizer", sorted(OPTIMIZERS))
def test_every_optimizer_lowers_the_loss_of_an_image_whatever_its_batch_mates(model, optimizer):
    oracle = SpotOracle(model, steps=4, optimizer=optimizer)
    alone = [oracle.optimize(IMAGES[i : i + 1], LABELS[i : i + 1], START[i : i + 1]) for i in range(4)]
    together = oracle.optimize(IMAGES[:4], LABELS[:4], START[:4])
    for i, result in enumerate(alone):
        assert_same(together, result, slice(i, i + 1))
    before, best = together.losses[:, 0], together.losses.min(1).values
    assert (best <= before).all() and best.mean() < before.mean()
    assert (together.trajectory[:, 1] != START[:4]).any(2).all(), "a token did not move"


def test_every_optimizer_of_torch_is_there():
    assert {"adamw", "adam", "sgd", "rmsprop", "rprop", "adagrad", "sign"} <= set(OPTIMIZERS)
    assert not {"lbfgs", "sparseadam", "optimizer"} & set(OPTIMIZERS)


# ------------------------------------------------------------------------------------------------- the best is kept


@pytest.mark.parametrize("objective", ["label", "distill"])
def test_the_best_iterate_is_returned(model, objective):
    # Far too large a learning rate: the loss goes up and down.
    oracle = SpotOracle(model, objective, steps=6, learning_rate=0.1)
    result = oracle.optimize(IMAGES, LABELS, START)
    rows = torch.arange(COUNT)
    assert torch.equal(result.losses[rows, result.best_steps], result.losses.min(1).values)
    assert (result.best_steps < 6).any() and len(result.best_steps.unique()) > 1, "the last iterate was always best"
    assert torch.equal(result.coordinates, result.trajectory[rows, result.best_steps])
    assert torch.equal(result.last_coordinates, result.trajectory[:, -1])
    assert torch.equal(result.trajectory[:, 0], START)
    with torch.no_grad():
        logits = model(pixel_values=IMAGES, coordinates=result.coordinates).logits
    assert torch.equal(result.prediction, logits.argmax(-1)) and len(result.prediction.unique()) > 1
    assert torch.equal(result.initial_prediction, result.predictions[:, 0])
    assert torch.equal(result.prediction, result.predictions[rows, result.best_steps])
    expected = [reference_loss(model, objective, *one).item() for one in zip(IMAGES, result.coordinates, LABELS, strict=True)]
    # The same positions and weights, and another batch size: rounding of float32 logits of the order of 1.
    assert result.losses.min(1).values.tolist() == pytest.approx(expected, abs=1e-5)


def test_an_iterate_without_a_number_for_a_loss_is_not_the_best(model):
    image = IMAGES[:1].clone()
    image[..., 24:] = math.nan  # a token that comes near has no value
    start = START[:1] * torch.tensor([0.3, 1.0])
    result = SpotOracle(model, steps=2, optimizer="sign", learning_rate=0.25).optimize(image, LABELS[:1], start)
    assert result.losses[0].isfinite().tolist() == [True, False, False]
    assert result.best_steps.tolist() == [0] and torch.equal(result.coordinates, start)


def test_a_search_that_only_climbs_returns_its_start(model):
    oracle = SpotOracle(model, steps=3, optimizer="sgd", optimizer_arguments={"maximize": True})
    result = oracle.optimize(IMAGES, LABELS, START)
    stayed = result.best_steps == 0
    assert stayed.any() and torch.equal(result.coordinates[stayed], START[stayed])
    assert torch.equal(result.prediction[stayed], result.initial_prediction[stayed])
    assert (result.losses[:, -1] > result.losses[:, 0]).float().mean() > 0.5


# ---------------------------------------------------------------------------------------------- batches, and frames


@pytest.mark.parametrize("batch_size", [1, 3])
@pytest.mark.parametrize("objective", ["label", "distill", "feature"])
def test_batch_sizes_give_the_same_positions(model, objective, batch_size):
    oracle = SpotOracle(model, objective, steps=4)
    together = oracle.optimize(IMAGES, LABELS, START)
    for rows in torch.arange(COUNT).split(batch_size):
        assert_same(together, oracle.optimize(IMAGES[rows], LABELS[rows], START[rows]), rows)


@pytest.mark.parametrize("mate", [1e4 * IMAGES[1], torch.full_like(IMAGES[1], 3e38), IMAGES[1] * math.nan, IMAGES[1] * 0])
def test_an_extreme_batch_mate_does_not_matter(model, mate):
    oracle = SpotOracle(model, steps=4)
    alone = oracle.optimize(IMAGES[:1], LABELS[:1], START[:1])
    both = oracle.optimize(torch.stack([mate, IMAGES[0]]), LABELS[[1, 0]], START[[1, 0]])
    assert_same(both, alone, slice(1, 2))
    assert torch.equal(both.prediction[1:], alone.prediction)
    for positions in (both.trajectory, both.coordinates):  # also the mate's own, whose gradient may be no number
        assert ((positions >= 0) & (positions <= 1)).all()


def test_positions_stay_inside_and_float32(model):
    corners = torch.tensor([[0.0, 0.0], [1.0, 0.0], [0.0, 1.0], [1.0, 1.0], [0.5, 0.5]]).expand(COUNT, -1, -1)
    for optimizer in ("adamw", "sgd", "rmsprop"):
        result = SpotOracle(model, steps=4, optimizer=optimizer, learning_rate=2.0).optimize(IMAGES, LABELS, corners)
        assert result.trajectory.dtype == result.coordinates.dtype == result.losses.dtype == torch.float32
        assert ((result.trajectory >= 0) & (result.trajectory <= 1)).all()
        assert ((result.trajectory[:, 1:] > 0) & (result.trajectory[:, 1:] < 1)).any(), "all tokens lie at edges"
        assert not torch.equal(result.trajectory[:, -1], corners)


def test_with_a_centre_crop_positions_stay_inside_what_the_model_sees(model):
    processor = tiny_processor(size={"shortest_edge": 64}, do_center_crop=True, crop_size={"height": 48, "width": 48})
    picture = (IMAGES[0].clamp(-2, 2) * 63 + 127).byte()[:, :45]  # 48 × 45
    inputs = processor([picture], num_tokens=4, placement="center", return_tensors="pt")
    result = SpotOracle(model, steps=3, learning_rate=0.5).optimize(**inputs, labels=LABELS[:1])
    assert ((result.coordinates >= 0) & (result.coordinates <= 1)).all()
    stored = processor.to_image_frame(result.coordinates[0], (48, 45))
    edge = processor.to_image_frame(torch.tensor([[0.0, 0.0], [1.0, 1.0]]), (48, 45))
    assert (edge[0] > 0).all() and (edge[1] < 1).all() and ((stored >= edge[0]) & (stored <= edge[1])).all()
    again = processor([picture], coordinates=stored, return_tensors="pt")["coordinates"]
    torch.testing.assert_close(again, result.coordinates, rtol=0, atol=1e-6)  # float32, there and back


def test_one_set_of_positions_for_all_and_the_grid_by_default(model):
    oracle = SpotOracle(model, steps=2)
    expanded = oracle.optimize(IMAGES, LABELS, START[:1])
    assert_same(expanded, oracle.optimize(IMAGES, LABELS, START[:1].repeat(COUNT, 1, 1)))
    assert not torch.equal(expanded.coordinates[0], expanded.coordinates[1])
    wide = random_images(2, 48, 72)
    result = oracle.optimize(wide, LABELS[:2])
    assert torch.equal(result.trajectory[:, 0], grid(48, 72, 8).expand(2, -1, -1))
    assert torch.equal(START, random_coordinates(COUNT, NUM_TOKENS)), "the caller's positions were changed"


# ----------------------------------------------------------------------------------------- the model stays as it was


class Interruption(Exception):
    pass


@pytest.mark.parametrize("fails", [False, True], ids=["finished", "interrupted"])
def test_the_model_is_left_as_it_was(fails):
    model = tiny_model(hidden_dropout_prob=0.1)
    model.train()
    model.spot_vit.layers[0].eval()  # a mixture, that is not to be made uniform
    model.classifier.weight.requires_grad_(False)
    model.classifier.bias.grad = torch.full_like(model.classifier.bias, 7.0)  # in the middle of somebody's training
    modes = {name: module.training for name, module in model.named_modules()}
    trainable = {name: parameter.requires_grad for name, parameter in model.named_parameters()}
    state = copy.deepcopy(model.state_dict())
    oracle = SpotOracle(model, "distill", steps=3, optimize_window_scales=True)
    if fails:
        calls = []

        def interrupt(*_):
            calls.append(1)
            if len(calls) == 3:
                raise Interruption

        hook = model.spot_vit.layers[1].register_forward_hook(interrupt)
        with pytest.raises(Interruption):
            oracle.optimize(IMAGES, None, START)
        hook.remove()
    else:
        oracle.optimize(IMAGES, None, START)
    assert {name: module.training for name, module in model.named_modules()} == modes
    assert {name: parameter.requires_grad for name, parameter in model.named_parameters()} == trainable
    for name, parameter in model.named_parameters():
        assert parameter.grad is None if name != "classifier.bias" else (parameter.grad == 7).all(), name
    after = model.state_dict()
    assert list(after) == list(state) and all(torch.equal(after[name], state[name]) for name in state)


def test_dropout_is_off_also_in_train_mode(model):
    dropping = undecided(tiny_model(hidden_dropout_prob=0.5, attention_probs_dropout_prob=0.5)).train()
    for objective in ("label", "distill"):
        expected = SpotOracle(model, objective, steps=2).optimize(IMAGES, LABELS, START)
        result = SpotOracle(dropping, objective, steps=2).optimize(IMAGES, LABELS, START)
        assert torch.equal(result.trajectory, expected.trajectory)  # the same computation: no tolerance
    targets = SpotOracle(dropping, "distill").full_grid_targets(IMAGES)
    with torch.no_grad():
        assert torch.equal(targets, model(pixel_values=IMAGES).logits)


@pytest.mark.parametrize("context", [torch.no_grad, torch.inference_mode])
def test_it_runs_where_gradients_are_off(model, context):
    expected = SpotOracle(model, "distill", steps=2).optimize(IMAGES, None, START)
    with context():
        # Tensors that are made in inference mode cannot be differentiated through.
        result = SpotOracle(model, "distill", steps=2).optimize(IMAGES.clone(), None, START.clone())
        assert not torch.is_grad_enabled()
    assert torch.equal(result.trajectory, expected.trajectory)


@pytest.mark.parametrize("objective", ["label", "distill", "feature"])
def test_inputs_may_come_from_inference_mode(model, objective):
    """Autograd keeps no tensor that was made there: labels, targets, a mask."""
    expected = SpotOracle(model, objective, steps=2).optimize(IMAGES, LABELS, START, coordinates_mask=MASK)
    oracle = SpotOracle(model, objective, steps=2)
    with torch.inference_mode():
        labels = LABELS.clone()
        targets = None if objective == "label" else oracle.full_grid_targets(IMAGES)
        images, start, mask = IMAGES.clone(), START.clone(), MASK.clone()
    result = oracle.optimize(images, labels, start, targets, mask)
    assert torch.equal(result.trajectory, expected.trajectory)


def test_inputs_that_belong_to_somebodys_graph(model):
    images, start = IMAGES.clone().requires_grad_(), START.clone().requires_grad_()
    targets = model(pixel_values=images).logits  # with its graph, down to weights and images
    result = SpotOracle(model, "distill", steps=2).optimize(images, None, start, targets=targets, coordinates_mask=MASK)
    assert images.grad is None and start.grad is None and all(one.grad is None for one in model.parameters())
    assert not result.coordinates.requires_grad and not result.losses.requires_grad
    targets.sum().backward()  # the graph is still whole
    assert images.grad is not None
    model.zero_grad(set_to_none=True)


# ------------------------------------------------------------------------------------------------------ cost, stopping


@pytest.mark.parametrize("objective", ["label", "distill", "feature"])
@pytest.mark.parametrize("steps", [0, 1, 5])
def test_cost(model, objective, steps):
    with passes(model) as counted:
        SpotOracle(model, objective, steps=steps).optimize(IMAGES, LABELS, START)
    targets = 0 if objective == "label" else 1  # the full grid, once
    assert counted == {"forward": [COUNT] * (targets + steps + 1), "kept": steps, "backward": steps}


def test_no_steps_evaluate_the_start(model):
    result = SpotOracle(model, steps=0).optimize(IMAGES, LABELS, START)
    assert torch.equal(result.coordinates, START) and torch.equal(result.last_coordinates, START)
    assert result.trajectory.shape == (COUNT, 1, NUM_TOKENS, 2) and result.losses.shape == (COUNT, 1)
    assert result.num_steps.tolist() == result.best_steps.tolist() == [0] * COUNT
    with torch.no_grad():
        assert torch.equal(result.prediction, model(pixel_values=IMAGES, coordinates=START).logits.argmax(-1))


@pytest.mark.parametrize(("optimizer", "learning_rate"), [("adamw", 3e-3), ("sgd", 2e-4), ("rprop", 3e-3), ("muon", 3e-3)])
def test_images_stop_one_by_one(decided, optimizer, learning_rate):
    steps, momentum = 4, {"momentum": 0.9} if optimizer == "sgd" else {}
    kwargs = {"steps": steps, "optimizer": optimizer, "optimizer_arguments": momentum, "learning_rate": learning_rate}
    full = SpotOracle(decided, **kwargs).optimize(IMAGES, LABELS, START)
    # One image stops at once, others later, some never; and no loss is so near that rounding decides.
    threshold = full.losses[:, 0].sort().values[:2].mean().item()
    assert (full.losses - threshold).abs().min() > 1e-3
    expected = [row.index(True) if True in row else steps for row in (full.losses <= threshold).tolist()]
    assert min(expected) == 0 and max(expected) == steps and len(set(expected)) > 3, expected

    with passes(decided) as counted:
        result = SpotOracle(decided, early_stop=threshold, **kwargs).optimize(IMAGES, LABELS, START)
    assert result.num_steps.tolist() == expected
    left = [sum(one >= step for one in expected) for step in range(steps + 1)]
    assert counted["forward"] == left, "images that have stopped are still computed"
    for i, stop in enumerate(expected):
        # The same search in smaller batches, as far as it went.
        torch.testing.assert_close(result.trajectory[i, : stop + 1], full.trajectory[i, : stop + 1], **SAME_POSITIONS)
        torch.testing.assert_close(result.losses[i, : stop + 1], full.losses[i, : stop + 1], **SAME_LOSSES)
        for name in ("trajectory", "losses", "predictions"):
            values = getattr(result, name)[i]
            assert (values[stop:] == values[stop]).all(), f"{name} of image {i} goes on after step {stop}"
        if stop < steps:
            assert result.losses[i].min() <= threshold and result.best_steps[i] == stop


def test_all_stop_at_once(model):
    for objective in ("label", "feature"):
        with passes(model) as counted:
            result = SpotOracle(model, objective, early_stop=100.0, steps=5).optimize(IMAGES, LABELS, START)
        assert counted["forward"] == [COUNT] * (1 if objective == "label" else 2) and counted["backward"] == 0
        assert result.num_steps.tolist() == [0] * COUNT
        assert torch.equal(result.trajectory, START[:, None].expand(-1, 6, -1, -1))
        assert torch.equal(result.losses, result.losses[:, :1].expand(-1, 6))
        assert torch.equal(result.predictions, result.predictions[:, :1].expand(-1, 6))


def test_a_search_without_a_number_for_a_loss_does_not_stop(model):
    result = SpotOracle(model, early_stop=0.1, steps=2).optimize(IMAGES[:2] * math.nan, LABELS[:2], START[:2])
    assert result.num_steps.tolist() == [2, 2] and torch.equal(result.coordinates, START[:2])


def test_stopping_early_loses_no_accuracy(decided):
    images, labels, start = random_images(40, seed=5), torch.arange(40) % 5, random_coordinates(40, NUM_TOKENS, seed=6)
    full = SpotOracle(decided, steps=8).optimize(images, labels, start)
    early = SpotOracle(decided, steps=8, early_stop=0.69).optimize(images, labels, start)
    stopped = early.num_steps < 8
    assert 0 < stopped.sum() < 40 and early.num_steps.sum() < 0.9 * full.num_steps.sum()
    right_full, right_early = full.prediction == labels, early.prediction == labels
    assert right_early[stopped].all()
    assert (right_early >= right_full).all()  # image by image
    assert right_early.sum() > (early.initial_prediction == labels).sum()


# ------------------------------------------------------------------------------------- objectives, models and options


def test_a_headless_model_has_the_feature_objective():
    model = tiny_model(model_class=SpotViTModel, pooling="cls_mean", num_register_tokens=2)
    result = SpotOracle(model, "feature", steps=4).optimize(IMAGES, coordinates=START)
    assert result.predictions is None and result.prediction is None and result.initial_prediction is None
    assert (result.losses.min(1).values < result.losses[:, 0]).all()
    gradient = reference_gradient(model, "feature", IMAGES[0], START[0], None)
    moved = SpotOracle(model, "feature", steps=1, optimizer="sgd", learning_rate=0.2).optimize(IMAGES, coordinates=START)
    torch.testing.assert_close(moved.trajectory[0, 1], (START[0] - 0.2 * gradient).clamp(0, 1), rtol=0, atol=3e-6)
    without_classes = tiny_model(num_labels=0)
    assert SpotOracle(without_classes, "feature", steps=1).optimize(IMAGES, coordinates=START).predictions is None
    for headless in (model, without_classes):
        for objective in ("label", "distill"):
            with pytest.raises(ValueError, match=f"`objective` must be 'feature' .* no classifier; got '{objective}'"):
                SpotOracle(headless, objective)


@pytest.mark.parametrize("objective", ["distill", "feature"])
def test_targets_that_are_given_spare_the_full_grid(model, objective):
    oracle = SpotOracle(model, objective, steps=2)
    computed = oracle.optimize(IMAGES, coordinates=START)
    targets = oracle.full_grid_targets(IMAGES)
    with passes(model) as counted:
        given = oracle.optimize(IMAGES, coordinates=START, targets=targets)
    assert len(counted["forward"]) == 3
    assert torch.equal(given.trajectory, computed.trajectory) and torch.equal(given.losses, computed.losses)
    # Targets matter: another image's lead elsewhere.
    other = oracle.optimize(IMAGES, coordinates=START, targets=targets.roll(1, 0))
    assert (other.losses[:, 0] - computed.losses[:, 0]).abs().min() > 1e-4
    # At the full grid itself, nothing is left to gain: rounding of float64 sums of float32 logits.
    assert oracle.optimize(IMAGES).losses[:, 0].abs().max() < 1e-9


def test_window_scales(model):
    oracle = SpotOracle(model, steps=6, optimize_window_scales=True, window_scale_learning_rate=0.1)
    result = oracle.optimize(IMAGES, LABELS, START)
    assert result.window_scales.shape == (COUNT, NUM_TOKENS) and result.window_scales.dtype == torch.float32
    moved = result.window_scales[result.best_steps > 0]
    assert len(moved) and (moved != 1).all() and moved.std() > 0.01
    with torch.no_grad():
        placed = {"pixel_values": IMAGES, "coordinates": result.coordinates, "window_scales": result.window_scales}
        logits = model(**placed).logits
    # The same computation, of the same numbers.
    found = cross_entropy(logits, LABELS, reduction="none")
    torch.testing.assert_close(result.losses.min(1).values, found, **SAME_LOSSES)
    assert torch.equal(result.prediction, logits.argmax(-1))
    # They add to what positions can do, and they are off by default.
    plain = SpotOracle(model, steps=6).optimize(IMAGES, LABELS, START)
    assert plain.window_scales is None
    assert result.losses.min(1).values.mean() < plain.losses.min(1).values.mean()
    torch.testing.assert_close(result.losses[:, 0], plain.losses[:, 0], **SAME_LOSSES)  # scales begin at 1


@pytest.mark.parametrize("optimizer", sorted(OPTIMIZERS))
def test_window_scales_stay_between_a_quarter_and_the_image(model, optimizer):
    oracle = SpotOracle(
        model, steps=5, optimizer=optimizer, optimize_window_scales=True, window_scale_learning_rate=1.5, early_stop=0.2
    )
    scales = []
    hook = model.spot_vit.embeddings.register_forward_hook(lambda module, inputs, output: scales.append(inputs[2].detach()))
    result = oracle.optimize(IMAGES, LABELS, START)
    hook.remove()
    used = torch.cat(scales)
    # A window of 8 pixels at 6 times the spacing is the image of 48; through logarithms in float32.
    assert used.min() >= 0.25 - 1e-6 and used.max() <= 6 + 1e-5
    if optimizer in ("adamw", "sign", "adam"):
        assert used.min() < 0.2501 and used.max() > 5.999
    assert torch.equal(
        result.window_scales[result.best_steps == 0], torch.ones_like(result.window_scales)[result.best_steps == 0]
    )


@pytest.mark.parametrize("optimizer", sorted(OPTIMIZERS))
@pytest.mark.parametrize("pooling", ["cls", "mean"])
def test_padding_neither_moves_nor_matters(optimizer, pooling):
    model = tiny_model(pooling=pooling)
    oracle = SpotOracle(model, steps=3, optimizer=optimizer)
    result = oracle.optimize(IMAGES, LABELS, START, coordinates_mask=MASK)
    padding = ~MASK[:, None].expand(-1, 4, -1)
    assert torch.equal(result.trajectory[padding], START[:, None].expand(-1, 4, -1, -1)[padding])
    elsewhere = torch.where(MASK[..., None], START, 0.9)
    other = oracle.optimize(IMAGES, LABELS, elsewhere, coordinates_mask=MASK.long())
    torch.testing.assert_close(other.trajectory[~padding], result.trajectory[~padding], **SAME_POSITIONS)
    alone = oracle.optimize(IMAGES[1::2], LABELS[1::2], START[1::2, :4])
    torch.testing.assert_close(alone.trajectory, result.trajectory[1::2, :, :4], **SAME_POSITIONS)
    torch.testing.assert_close(alone.losses, result.losses[1::2], **SAME_LOSSES)


def test_one_mask_for_all_while_images_stop(model):
    oracle = SpotOracle(model, steps=3, early_stop=1.5, learning_rate=0.02)
    result = oracle.optimize(IMAGES, LABELS, START, coordinates_mask=MASK[1:2])
    assert 0 < (result.num_steps < 3).sum() < COUNT
    assert_same(result, oracle.optimize(IMAGES, LABELS, START, coordinates_mask=MASK[1:2].expand(COUNT, -1)))


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize("objective", ["label", "feature"])
def test_half_precision_leaves_positions_alone(model, dtype, objective):
    full = SpotOracle(model, objective, steps=3).optimize(IMAGES, LABELS, START)
    oracle = SpotOracle(model, objective, steps=3, dtype=dtype)
    seen = []
    embeddings = model.spot_vit.embeddings
    hooks = [
        # The full grid, which gives the targets, has no positions.
        embeddings.register_forward_hook(
            lambda module, inputs, output: seen.extend(x.dtype for x in inputs[1:2] if x is not None)
        ),
        embeddings.patch_projection.register_forward_hook(lambda module, inputs, output: seen.append(output.dtype)),
    ]
    result = oracle.optimize(IMAGES, LABELS, START)
    for hook in hooks:
        hook.remove()
    assert set(seen) == {torch.float32, getattr(torch, dtype)}  # positions, and products
    assert result.coordinates.dtype == result.trajectory.dtype == result.losses.dtype == torch.float32
    assert torch.equal(result.trajectory[:, 0], START)
    # 8 and 11 bits per number, through two layers whose weights are ten times as large as trained ones.
    torch.testing.assert_close(result.losses[:, 0], full.losses[:, 0], rtol=0, atol=0.1 if dtype == "bfloat16" else 0.02)
    assert (result.losses.min(1).values <= result.losses[:, 0]).all()
    gains = [(one.losses[:, 0] - one.losses.min(1).values).mean() for one in (full, result)]
    assert gains[1] > 0.5 * gains[0] > 0
    assert all(parameter.dtype == torch.float32 for parameter in model.parameters())


def test_small_gradients_survive_float16(model):
    """A confident prediction has a small loss, whose gradient float16 would round to 0 but for the loss's scale."""
    confident = copy.deepcopy(model)
    with torch.no_grad():
        confident.classifier.bias[0] += 14.0
    labels = torch.zeros(COUNT, dtype=torch.int64)
    runs = {dtype: SpotOracle(confident, steps=1, dtype=dtype, optimizer="sign") for dtype in ("float32", "float16")}
    moves = {dtype: oracle.optimize(IMAGES, labels, START).trajectory.diff(dim=1) for dtype, oracle in runs.items()}
    assert SpotOracle(confident, steps=0).optimize(IMAGES, labels, START).losses.max() < 1e-4
    agree = (moves["float16"].sign() == moves["float32"].sign()).float().mean()
    assert agree > 0.8 and (moves["float16"] != 0).float().mean() > 0.95


@pytest.mark.slow
def test_compiled():
    model = tiny_model(num_hidden_layers=1)
    expected = SpotOracle(model, steps=2).optimize(IMAGES, LABELS, START)
    result = SpotOracle(model, steps=2, compile=True).optimize(IMAGES, LABELS, START)
    # Other kernels, the same float32 arithmetic.
    torch.testing.assert_close(result.losses, expected.losses, **SAME_LOSSES)
    torch.testing.assert_close(result.coordinates, expected.coordinates, rtol=0, atol=1e-4)
    assert torch.equal(result.prediction, expected.prediction)


# --------------------------------------------------------------------------------------------------------- real weights


@pytest.fixture(scope="module")
def photographs(vit_tiny, nips2017, tmp_path_factory):
    """ViT-Ti/16, and 16 photographs with 49 tokens each."""
    directory = tmp_path_factory.mktemp("oracle") / "spot"
    convert_checkpoint(vit_tiny, directory)
    rows = nips2017.select(range(16))
    inputs = open_model(str(directory)).load_image_processor()(
        [row["image"] for row in rows], num_tokens=49, placement="isotropic", return_tensors="pt"
    )
    return SpotViTForImageClassification.from_pretrained(directory).eval(), dict(inputs), torch.tensor(rows["label"])


def test_real_weights(photographs):
    model, inputs, labels = photographs
    oracle = SpotOracle(model)
    result = oracle.optimize(**inputs, labels=labels)
    assert (result.losses.min(1).values < result.losses[:, 0]).all()
    before, after = (result.initial_prediction == labels).sum(), (result.prediction == labels).sum()
    assert after - before >= 7, f"of 16: {before} before, {after} after"
    with torch.no_grad():
        logits = model(pixel_values=inputs["pixel_values"], coordinates=result.coordinates).logits
    assert torch.equal(logits.argmax(-1), result.prediction)
    for rows in (slice(0, 1), slice(5, 6), slice(0, 3), slice(8, 16)):
        part = oracle.optimize(inputs["pixel_values"][rows], labels[rows], inputs["coordinates"][rows])
        torch.testing.assert_close(part.trajectory, result.trajectory[rows], **SAME_POSITIONS)
    early = SpotOracle(model, early_stop=0.69).optimize(**inputs, labels=labels)
    assert early.num_steps.sum() < 0.9 * result.num_steps.sum()
    assert (early.prediction == labels).sum() >= after


@pytest.mark.parametrize("objective", ["distill", "feature"])
def test_real_weights_without_labels(photographs, objective):
    model, inputs, _ = photographs
    with torch.no_grad():
        full_grid = model(pixel_values=inputs["pixel_values"]).logits.argmax(-1)
    result = SpotOracle(model, objective).optimize(**inputs)
    before, after = (result.initial_prediction == full_grid).sum(), (result.prediction == full_grid).sum()
    assert after - before >= 4, f"agrees with the full grid on {before} of 16 before, {after} after"
    assert result.losses.min(1).values.mean() < 0.6 * result.losses[:, 0].mean()


# ------------------------------------------------------------------------------------------------------------ bad input


ARGUMENTS = {
    "objective": ({"objective": "labels"}, ["objective", "label, distill, feature", "'labels'"]),
    "steps: negative": ({"steps": -1}, ["steps", "at least 0", "-1"]),
    "steps: a fraction": ({"steps": 2.5}, ["steps", "integer", "2.5"]),
    "steps: true": ({"steps": True}, ["steps", "integer", "True"]),
    "learning_rate: 0": ({"learning_rate": 0}, ["learning_rate", "positive", "got 0"]),
    "learning_rate: infinite": ({"learning_rate": math.inf}, ["learning_rate", "positive", "inf"]),
    "learning_rate: not a number": ({"learning_rate": math.nan}, ["learning_rate", "positive", "nan"]),
    "learning_rate: text": ({"learning_rate": "3e-3"}, ["learning_rate", "positive", "'3e-3'"]),
    "window_scale_learning_rate": ({"window_scale_learning_rate": -1.0}, ["window_scale_learning_rate", "positive", "-1.0"]),
    "optimizer: unknown": ({"optimizer": "adamv"}, ["optimizer", "adamw", "sign", "'adamv'"]),
    "optimizer: LBFGS": ({"optimizer": "LBFGS"}, ["optimizer", "adamw", "'LBFGS'"]),
    "optimizer: a class": ({"optimizer": torch.optim.SGD}, ["optimizer", "adamw", "SGD"]),
    "optimizer_arguments: unknown": ({"optimizer_arguments": {"momentum": 0.9}}, ["optimizer_arguments", "momentum", "adamw"]),
    "optimizer_arguments: out of range": (
        {"optimizer": "sgd", "optimizer_arguments": {"momentum": -1}}, ["optimizer_arguments", "momentum", "-1", "sgd"],
    ),
    "optimizer_arguments: lr": ({"optimizer_arguments": {"lr": 1.0}}, ["optimizer_arguments", "lr"]),
    "early_stop: negative": ({"early_stop": -0.1}, ["early_stop", "at least 0", "-0.1"]),
    "early_stop: not a number": ({"early_stop": math.nan}, ["early_stop", "at least 0", "nan"]),
    "early_stop: text": ({"early_stop": "log2"}, ["early_stop", "at least 0", "'log2'"]),
    "dtype": ({"dtype": "half"}, ["dtype", "float32, bfloat16, float16", "'half'"]),
}  # fmt: skip


def assert_names(error, words):
    message = str(error.value)
    assert "\n" not in message and len(message) < 400, message
    for word in words:
        assert word in message, f"{word!r} is not in: {message}"
    assert "`" in message and words[0] in message.split("`")[1]


@pytest.mark.parametrize("case", ARGUMENTS)
def test_arguments_that_are_none(model, case):
    arguments, words = ARGUMENTS[case]
    with pytest.raises(ValueError) as error:
        SpotOracle(model, **arguments)
    assert_names(error, words)


def test_models_that_are_none():
    config = ViTConfig(hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8, image_size=16)
    for other in (ViTForImageClassification(config), "user/model", None):
        with pytest.raises(ValueError) as error:
            SpotOracle(other)
        assert_names(error, ["model", "SpotViT", type(other).__name__, "convert_checkpoint"])


INPUTS = {
    "pixel_values: one image": ({"pixel_values": IMAGES[0]}, ["pixel_values", "batch_size", "(3, 48, 48)"]),
    "pixel_values: no image": ({"pixel_values": IMAGES[:0]}, ["pixel_values", "batch_size", "(0, 3, 48, 48)"]),
    "pixel_values: an array": ({"pixel_values": IMAGES.numpy()}, ["pixel_values", "tensor", "ndarray"]),
    "pixel_values: four channels": ({"pixel_values": torch.zeros(8, 4, 48, 48)}, ["pixel_values", "(8, 4, 48, 48)"]),
    "pixel_values: smaller than a patch": ({"pixel_values": IMAGES[..., :7]}, ["pixel_values", "patch_size", "(8, 3, 48, 7)"]),
    "coordinates: other images'": ({"coordinates": START[:3]}, ["coordinates", "batch_size 8 or 1", "(3, 6, 2)"]),
    "coordinates: without a batch": ({"coordinates": START[0]}, ["coordinates", "num_tokens, 2", "(6, 2)"]),
    "coordinates: no tokens": ({"coordinates": START[:, :0]}, ["coordinates", "(batch_size, num_tokens, 2)", "(8, 0, 2)"]),
    "coordinates: three numbers": ({"coordinates": torch.zeros(8, 6, 3)}, ["coordinates", "(8, 6, 3)"]),
    "coordinates: float64": ({"coordinates": START.double()}, ["coordinates", "float32", "float64"]),
    "coordinates: bfloat16": ({"coordinates": START.bfloat16()}, ["coordinates", "float32", "bfloat16"]),
    "coordinates: a list": ({"coordinates": START.tolist()}, ["coordinates", "float32 tensor", "[[["]),
    "coordinates: in pixels": ({"coordinates": 48 * START}, ["coordinates", "[0, 1]", "to 4"]),
    "coordinates: below 0": ({"coordinates": START - 1}, ["coordinates", "[0, 1]", "from -0.9"]),
    "coordinates: not a number": ({"coordinates": START * math.nan}, ["coordinates", "[0, 1]", "nan"]),
    "labels: none": ({"labels": None}, ["labels", "objective='label'", "none"]),
    "labels: other images'": ({"labels": LABELS[:3]}, ["labels", "(8,)", "(3,)"]),
    "labels: fractions": ({"labels": LABELS.float()}, ["labels", "int64", "float32"]),
    "labels: a list": ({"labels": LABELS.tolist()}, ["labels", "int64", "[0, 1, 2"]),
    "labels: too large": ({"labels": LABELS + 1}, ["labels", "from 0 to 4", "to 5"]),
    "labels: negative": ({"labels": LABELS - 1}, ["labels", "from 0 to 4", "from -1"]),
    "coordinates_mask: alone": ({"coordinates": None, "coordinates_mask": MASK}, ["coordinates_mask", "needs `coordinates`"]),
    "coordinates_mask: other images'": ({"coordinates_mask": MASK[:3]}, ["coordinates_mask", "(8, 6)", "(3, 6)"]),
    "coordinates_mask: other tokens'": ({"coordinates_mask": MASK[:, :5]}, ["coordinates_mask", "(8, 6)", "(8, 5)"]),
    "coordinates_mask: a list": ({"coordinates_mask": [1] * 6}, ["coordinates_mask", "tensor", "[1, 1"]),
    "coordinates_mask: only padding": ({"coordinates_mask": 0 * MASK}, ["coordinates_mask", "at least one token per image"]),
}  # fmt: skip


@pytest.mark.parametrize("case", INPUTS)
@pytest.mark.parametrize("objective", ["label", "feature"])
def test_inputs_that_are_none(model, case, objective):
    changes, words = INPUTS[case]
    if objective == "feature" and case.startswith("labels"):
        objective = "label"  # no other reads them
    inputs = {"pixel_values": IMAGES, "labels": LABELS, "coordinates": START, **changes}
    reached = []
    hook = model.spot_vit.embeddings.register_forward_hook(lambda *_: reached.append(1))
    with pytest.raises(ValueError) as error:
        SpotOracle(model, objective).optimize(**inputs)
    hook.remove()
    assert_names(error, words)
    assert not reached, "the model was run before the input was checked"


@pytest.mark.parametrize(("objective", "size"), [("distill", 5), ("feature", 32)])
@pytest.mark.parametrize("targets", [torch.zeros(8, 7), torch.zeros(3, 5), [[0.0] * 5] * 8], ids=["size", "images", "a list"])
def test_targets_that_are_none(model, objective, size, targets):
    with passes(model) as counted, pytest.raises(ValueError) as error:
        SpotOracle(model, objective).optimize(IMAGES, coordinates=START, targets=targets)
    got = str(tuple(targets.shape)) if isinstance(targets, torch.Tensor) else "[[0.0"
    assert_names(error, ["targets", f"(8, {size})", objective, got])
    assert counted["forward"] == []
