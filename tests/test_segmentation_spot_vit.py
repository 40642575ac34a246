"""The model for semantic segmentation: on the full grid a linear head, interpolated bilinearly; elsewhere the same formula."""

import numpy as np
import pytest
import torch
from tiny import POSITION_KINDS, random_coordinates, random_images, tiny_model
from torch import nn

from spot_hf import SpotViTForSemanticSegmentation
from spot_hf.placement import grid
from spot_hf.segmentation_spot_vit import LEAST_SAY, spread_scores


def segmenter(**changes) -> SpotViTForSemanticSegmentation:
    return tiny_model(model_class=SpotViTForSemanticSegmentation, **changes)


# -------------------------------------------------------------------------------------------------------- the full grid


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"segmentation_scores_per_side": 2},
        {"segmentation_scores_per_side": 3, "segmentation_hidden_size": 20},
        {"num_register_tokens": 2, "norm_after_pooling": True, "pooling": "mean"},
        {**POSITION_KINDS["rotary"], "use_class_token": False, "pooling": "attention"},
    ],
    ids=["linear", "points", "hidden layer", "norm after pooling", "rotary, no class token"],
)
@pytest.mark.parametrize("size", [(48, 48), (64, 96)])
@torch.no_grad()
def test_full_grid_is_a_linear_head_interpolated_bilinearly(changes, size):
    model, images = segmenter(**changes), random_images(2, *size)
    features = model.spot_vit(images).last_hidden_state[:, model.config.num_prefix_tokens :]
    features = model.spot_vit.layernorm(features) if model.config.norm_after_pooling else features
    head, per_side = model.decode_head, model.config.segmentation_scores_per_side
    features = features if head.dense is None else nn.functional.gelu(head.dense(features))
    maps = head.classifier(features).transpose(1, 2).unflatten(2, (size[0] // 8, size[1] // 8))
    maps = nn.functional.pixel_shuffle(maps, per_side)
    expected = nn.functional.interpolate(maps, size=(size[0] // 4, size[1] // 4), mode="bilinear", align_corners=False)
    logits = model(images).logits
    # Scores are of the order of 10: the same products in float32, in another order.
    torch.testing.assert_close(logits, expected, rtol=0, atol=1e-5 * expected.abs().max().item())
    given = model(images, coordinates=grid(*size, 8)[None]).logits
    torch.testing.assert_close(given, logits, rtol=0, atol=1e-6 * expected.abs().max().item())


@torch.no_grad()
def test_rows_beyond_the_last_whole_patch_repeat_it():
    """As 360 × 480 pixels have with patches of 16."""
    model, images = segmenter(), random_images(1, 52, 64)
    maps = model.decode_head(model.spot_vit(images).last_hidden_state[:, 1:])[:, :, 0].transpose(1, 2).unflatten(2, (6, 8))
    expected = nn.functional.interpolate(maps, size=(12, 16), mode="bilinear", align_corners=False)
    logits = model(images).logits
    assert logits.shape == (1, 5, 13, 16)
    torch.testing.assert_close(logits[:, :, :12], expected, rtol=0, atol=1e-5 * expected.abs().max().item())


# ------------------------------------------------------------------------------------------------------------ spreading


def spread_by_loops(scores, coordinates, reach, map_size, image_size):
    """The formula of [`spread_scores`], a point and a pixel at a time, in float64."""
    found = np.zeros((scores.shape[1], *map_size))
    for row in range(map_size[0]):
        for column in range(map_size[1]):
            say = weight = 0.0
            near, far = np.zeros(scores.shape[1]), np.zeros(scores.shape[1])
            for score, (x, y), r in zip(scores, coordinates, reach, strict=True):
                if r == 0:
                    continue
                dx = ((column + 0.5) / map_size[1] - x) * image_size[1] / r
                dy = ((row + 0.5) / map_size[0] - y) * image_size[0] / r
                hat = max(0, 1 - abs(dx)) * max(0, 1 - abs(dy))
                tail = ((1 + dx**2) * (1 + dy**2)) ** -4
                say, weight = say + hat, weight + tail
                near, far = near + hat * score, far + tail * score
            rest = max(0, LEAST_SAY - say)
            found[:, row, column] = (near + rest * far / weight) / (say + rest)
    return found


@pytest.mark.parametrize("num_points", [1, 3, 40])
def test_spread_against_loops(num_points):
    generator = np.random.default_rng(num_points)
    scores = generator.normal(size=(2, num_points, 4))
    coordinates = generator.uniform(-0.1, 1.1, (2, num_points, 2))
    reach = generator.uniform(2, 20, (2, num_points)) * (generator.uniform(size=(2, num_points)) > 0.2)
    reach[:, 0] = 5  # or an image might have no point
    given = [torch.from_numpy(one) for one in (scores, coordinates, reach)]
    found = spread_scores(*given, (9, 14), (36, 56))
    expected = np.stack([spread_by_loops(*one, (9, 14), (36, 56)) for one in zip(scores, coordinates, reach, strict=True)])
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-9, atol=1e-12)  # float64, sums in another order


def test_a_mean_of_scores_everywhere():
    """Weights are not negative and sum to 1: equal scores stay as they are, however few and far the points are."""
    coordinates, reach = torch.tensor([[[0.02, 0.03], [0.9, 0.1]]]), torch.full((1, 2), 4.0)
    scores = torch.tensor([[[3.0, 0.0], [3.0, 1.0]]])
    found = spread_scores(scores, coordinates, reach, (50, 60), (200, 240))
    torch.testing.assert_close(found[:, 0], torch.full((1, 50, 60), 3.0), rtol=1e-6, atol=0)
    assert found[:, 1].min() >= 0 and found[:, 1].max() <= 1 + 1e-6
    assert found[0, 1, 2, 1] < 0.01 and found[0, 1, 5, 54] > 0.99


def test_gradients_against_finite_differences():
    """Of scores, positions and reach, at points that lie on no kink of the formula."""
    generator = torch.Generator().manual_seed(0)
    inputs = [
        torch.randn(2, 6, 3, generator=generator, dtype=torch.float64),
        torch.rand(2, 6, 2, generator=generator, dtype=torch.float64),
        4 + 8 * torch.rand(2, 6, generator=generator, dtype=torch.float64),
    ]
    for one in inputs:
        one.requires_grad_()
    assert torch.autograd.gradcheck(lambda *given: spread_scores(*given, (7, 9), (28, 36)), inputs)


def test_gradients_of_the_loss_reach_positions_and_scales():
    model = segmenter(segmentation_scores_per_side=2).double()
    images, coordinates = random_images(1, dtype=torch.float64), random_coordinates(1, 5, dtype=torch.float64)
    scales = torch.tensor([[0.8, 1.3, 1.1, 2.6, 0.9]], dtype=torch.float64)
    labels = torch.randint(0, 5, (1, 48, 48), generator=torch.Generator().manual_seed(0))
    images = nn.functional.avg_pool2d(images, 9, 1, 4)  # smooth, so that a small step crosses no kink of the sampling

    def loss(coordinates, scales):
        return model(images, coordinates, window_scales=scales, labels=labels).loss

    given = [coordinates.requires_grad_(), scales.requires_grad_()]
    gradients = torch.autograd.grad(loss(*given), given)
    for argument, gradient in enumerate(gradients):
        for index in ((0, 0), (0, 3)):
            step = torch.zeros_like(given[argument])
            step[index] = 1e-6
            ends = [[one + sign * step if i == argument else one for i, one in enumerate(given)] for sign in (1, -1)]
            difference = (loss(*ends[0]) - loss(*ends[1])) / 2e-6
            # Windows are piecewise linear in positions: a step of 1e-6 rarely crosses a piece, and then changes little.
            assert gradient[index].sum().item() == pytest.approx(difference.item(), rel=2e-3, abs=1e-6)


# ---------------------------------------------------------------------------------------------------------- the model


@torch.no_grad()
def test_batch_mates_and_padding_do_not_matter():
    model, images = segmenter(segmentation_scores_per_side=2), random_images(2)
    coordinates = random_coordinates(2, 9)
    scales = torch.linspace(0.7, 2, 18).view(2, 9)
    mask = torch.arange(9)[None] < torch.tensor([[9], [5]])
    both = model(images, coordinates, coordinates_mask=mask, window_scales=scales).logits
    alone = model(images[1:], coordinates[1:, :5], window_scales=scales[1:, :5]).logits
    # Products of matrices of another shape, of scores of the order of 10.
    torch.testing.assert_close(both[1:], alone, rtol=0, atol=1e-4)
    moved = coordinates.clone()
    moved[1, 5:] = 0.1  # of padding
    again = model(images, moved, coordinates_mask=mask, window_scales=scales).logits
    torch.testing.assert_close(again, both, rtol=0, atol=1e-4)


@torch.no_grad()
def test_windows_that_cover_reach_as_far_as_they_are_wide():
    """Nine windows of twice the size tile an image of 6 × 6 cells: their scores are interpolated bilinearly between them."""
    model, images = segmenter(), random_images(1)
    coordinates = grid(48, 48, 16)[None]
    scales = torch.full((1, 9), 2.0)
    features = model.spot_vit(images, coordinates, window_scales=scales).last_hidden_state[:, 1:]
    maps = model.decode_head(features)[:, :, 0].transpose(1, 2).unflatten(2, (3, 3))
    expected = nn.functional.interpolate(maps, size=(12, 12), mode="bilinear", align_corners=False)
    found = model(images, coordinates, window_scales=scales).logits
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5 * expected.abs().max().item())


@torch.no_grad()
def test_loss_is_of_labelled_pixels():
    model, images = segmenter(semantic_loss_ignore_index=9), random_images(2)
    labels = torch.randint(0, 5, (2, 48, 48), generator=torch.Generator().manual_seed(0))
    labels[:, :20] = 9
    outputs = model(images, labels=labels)
    scores = nn.functional.interpolate(outputs.logits, size=(48, 48), mode="bilinear", align_corners=False)
    expected = nn.functional.cross_entropy(scores[:, :, 20:], labels[:, 20:])
    torch.testing.assert_close(outputs.loss, expected, rtol=1e-5, atol=0)
    assert model(images, labels=torch.full((2, 48, 48), 9)).loss == 0


@torch.no_grad()
def test_the_model_places_tokens_itself():
    model, images = segmenter(num_tokens=9), random_images(1)
    expected = model(images, grid(48, 48, 16)[None], window_scales=torch.full((1, 9), 2.0)).logits
    # The isotropic lattice of nine is the same one, computed otherwise.
    torch.testing.assert_close(model(images).logits, expected, rtol=0, atol=1e-4)
    assert model(images, num_tokens=4).logits.shape == expected.shape


@torch.no_grad()
def test_half_precision_keeps_positions():
    model, images, coordinates = segmenter(), random_images(), random_coordinates()
    full = model(images, coordinates).logits
    half = model.bfloat16()(images.bfloat16(), coordinates).logits
    assert half.dtype == torch.float32
    # bfloat16 has 8 bits: some percent of the scores through two layers.
    assert (half - full).abs().mean() < 0.1 * full.abs().mean()


@torch.no_grad()
def test_autocast_does_not_reach_the_spreading():
    """In float16, weights of points that are far would be 0, and a place with none of them near no number."""
    model, images = segmenter(), random_images(1, 360, 480)
    coordinates = 0.2 + 0.05 * random_coordinates(1, 20)
    full = model(images, coordinates).logits
    for dtype in (torch.float16, torch.bfloat16):
        with torch.autocast("cpu", dtype=dtype):
            half = model(images, coordinates).logits
        assert half.dtype == torch.float32 and half.isfinite().all()
        # The encoder's own rounding: some percent through two layers.
        assert (half - full).abs().mean() < 0.1 * full.abs().mean()


def test_gradients_are_a_mean_however_they_are_accumulated(tmp_path):
    """By transformers' own Trainer: a step of a batch of four, and of four batches of one."""
    from transformers import Trainer, TrainingArguments

    labels = torch.randint(0, 5, (4, 48, 48), generator=torch.Generator().manual_seed(0))
    rows = [{"pixel_values": image, "labels": mask} for image, mask in zip(random_images(4), labels, strict=True)]
    updates = []
    for batch_size in (4, 1):
        model = segmenter()
        before = model.decode_head.classifier.weight.detach().clone()
        arguments = TrainingArguments(
            str(tmp_path), per_device_train_batch_size=batch_size, gradient_accumulation_steps=4 // batch_size, max_steps=1,
            learning_rate=1e-2, optim="sgd", lr_scheduler_type="constant", max_grad_norm=0, save_strategy="no",
            report_to="none", use_cpu=True, disable_tqdm=True, logging_strategy="no",
        )  # fmt: skip
        Trainer(model, arguments, train_dataset=rows).train()
        updates.append(model.decode_head.classifier.weight.detach() - before)
    # float32, sums in another order
    torch.testing.assert_close(updates[0], updates[1], rtol=1e-3, atol=1e-3 * updates[0].abs().max().item())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"labels": torch.zeros(2, 48, 48)}, r"`labels` must be an int64 tensor.*float32 \(2, 48, 48\)"),
        ({"labels": torch.zeros(1, 48, 48, dtype=torch.int64)}, r"`labels` must be an int64 tensor"),
        ({"labels": torch.full((2, 4, 4), 5)}, "classes from 0 to 4, or semantic_loss_ignore_index=255; got 5"),
        ({"num_tokens": 0}, "`num_tokens` must be one number of at least 1"),
        ({"num_tokens": [4, 9]}, "`num_tokens` must be one number"),
        ({"num_tokens": 4, "coordinates": random_coordinates()}, "`coordinates` and `num_tokens` exclude each other"),
        ({"merge_tokens": 0.5}, "`merge_tokens` must be 0 in segmentation"),
        ({"coordinates": random_coordinates()[..., :1]}, "`coordinates` must have shape"),
    ],
)
def test_bad_input(arguments, message):
    with pytest.raises(ValueError, match=message):
        segmenter()(random_images(), **arguments)


def test_bad_config():
    with pytest.raises(Exception, match="`segmentation_scores_per_side` must be at least 1; got 0"):
        segmenter(segmentation_scores_per_side=0)


@torch.no_grad()
def test_export_with_dynamic_tokens():
    model = segmenter(segmentation_scores_per_side=2)
    inputs = {"pixel_values": random_images(2), "coordinates": random_coordinates(2, 9)}
    batch, tokens = torch.export.Dim("batch", min=1, max=64), torch.export.Dim("tokens", min=1, max=64)
    shapes = {"pixel_values": {0: batch}, "coordinates": {0: batch, 1: tokens}}
    exported = torch.export.export(model, (), inputs, dynamic_shapes=shapes, strict=False).module()
    for count, num_tokens in ((2, 9), (3, 5)):
        inputs = {"pixel_values": random_images(count), "coordinates": random_coordinates(count, num_tokens)}
        # The same operations.
        torch.testing.assert_close(exported(**inputs).logits, model(**inputs).logits, rtol=0, atol=1e-4)


# -------------------------------------------------------------------------------------------- saved, loaded, published


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A saved model with its processor, and what the package computes from it."""
    from segmentation_data import scene

    from spot_hf import SpotViTImageProcessorPil

    directory = tmp_path_factory.mktemp("segmenter") / "model"
    model = segmenter(num_labels=3, id2label={0: "ground", 1: "red", 2: "blue"}, label2id={"ground": 0, "red": 1, "blue": 2})
    processor = SpotViTImageProcessorPil(size={"height": 48, "width": 64}, patch_size=8, num_tokens=12, placement="isotropic")
    with torch.no_grad():  # so that each class is the likeliest somewhere
        logits = model(**processor(scene(0)[0], return_tensors="pt")).logits
        model.decode_head.classifier.bias -= logits.mean((0, 2, 3))
    model.save_pretrained(directory)
    processor.save_pretrained(directory)
    photo = directory.parent / "scene.png"
    scene(0)[0].save(photo)
    return directory, photo, model, processor


def use(directory, photo):
    """In a process without the package: both pipelines, and the Auto class."""
    import numpy as np
    import torch
    from PIL import Image
    from transformers import AutoModelForSemanticSegmentation, pipeline
    from transformers.models.auto.image_processing_auto import AutoImageProcessor

    remote = {"trust_remote_code": True}
    model = AutoModelForSemanticSegmentation.from_pretrained(directory, **remote)
    processor = AutoImageProcessor.from_pretrained(directory, **remote)
    with torch.no_grad():
        logits = model(**processor(Image.open(photo), return_tensors="pt")).logits
    stock = pipeline("image-segmentation", model=directory, **remote)
    spot = pipeline("spot-image-segmentation", model=directory, **remote)
    several = pipeline(model=directory, **remote)

    def shares(segments):
        return {one["label"]: round(float((np.asarray(one["mask"]) > 0).mean()), 4) for one in segments}

    return {
        "module": type(model).__module__,
        "logits": logits.flatten()[:50].tolist(),
        "stock": shares(stock(photo)),
        "size": stock(photo)[0]["mask"].size,
        "spot": shares(spot(photo)),
        "task": several.task,
        "few": shares(spot(photo, num_tokens=4, placement="center", window_scales="cover")),
        "full": shares(spot({"image": photo}, placement="grid")),
    }


def test_remote_code_and_both_pipelines(saved, fresh_process):
    from PIL import Image

    directory, photo, model, processor = saved
    found = fresh_process(use, directory, photo, without_spot_hf=True)
    assert found["module"].startswith("transformers_modules.")
    image = Image.open(photo)
    with torch.no_grad():
        expected = model(**processor(image, return_tensors="pt"))
        few = model(**processor(image, num_tokens=4, placement="center", window_scales="cover", return_tensors="pt"))
    # The same operations; memory is aligned otherwise, and products round by that.
    assert found["logits"] == pytest.approx(expected.logits.flatten()[:50].tolist(), abs=1e-4)

    def shares(outputs):
        (classes,) = processor.post_process_semantic_segmentation(outputs, [(48, 64)])
        names = model.config.id2label
        return {names[i]: round((classes == i).float().mean().item(), 4) for i in classes.unique().tolist()}

    # A pixel whose two best scores are equal to rounding may change sides: 1 of 3,072 is 0.0003.
    assert found["stock"] == pytest.approx(shares(expected), abs=1e-3) and found["spot"] == found["stock"]
    assert found["few"] == pytest.approx(shares(few), abs=1e-3)
    assert found["size"] == [64, 48] and found["task"] == "spot-image-segmentation"
    assert found["few"] != found["spot"]


def test_pipeline_in_batches_with_own_coordinates(saved):
    from segmentation_data import scene
    from transformers import pipeline

    _, _, model, processor = saved
    segmenter = pipeline("spot-image-segmentation", model=model, image_processor=processor)
    images = [scene(i)[0] for i in range(3)]
    rows = [
        {"image": images[0], "coordinates": [[0.2, 0.3], [0.7, 0.6]]},
        {"image": images[1], "coordinates": [[0.5, 0.5]], "window_scales": [3.0]},
        images[2],
    ]
    together = segmenter(rows, batch_size=3, return_coordinates=True)
    alone = [segmenter(row, return_coordinates=True) for row in rows]
    for one, other in zip(together, alone, strict=True):
        assert [segment["label"] for segment in one["segments"]] == [segment["label"] for segment in other["segments"]]
        assert one["coordinates"] == other["coordinates"]
        for a, b in zip(one["segments"], other["segments"], strict=True):
            # Padding and batch mates change rounding: pixels at a border between classes at most.
            assert (np.asarray(a["mask"]) != np.asarray(b["mask"])).mean() < 1e-2
    assert together[0]["coordinates"] == pytest.approx(np.array([[0.2, 0.3], [0.7, 0.6]]), abs=1e-6)
    assert together[1]["window_scales"] == [3.0] and len(together[2]["coordinates"]) == 12


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_tokens": [4, 9]}, "`num_tokens` must be one number in segmentation"),
        ({"num_tokens": 4, "coordinates": [[0.5, 0.5]]}, "`coordinates` and `num_tokens` exclude each other"),
        ({"placement": "nowhere"}, "`placement` must be"),
    ],
)
def test_pipeline_bad_input(saved, arguments, message):
    from segmentation_data import scene
    from transformers import pipeline

    segmenter = pipeline("spot-image-segmentation", model=saved[2], image_processor=saved[3])
    with pytest.raises(ValueError, match=message):
        segmenter(scene(0)[0], **arguments)


def test_another_task_has_its_own_pipeline(saved, tmp_path):
    """A model that is loaded from a repository refers to that one's pipeline; its copy to that of its own task."""
    from spot_hf import SpotViTForImageClassification

    SpotViTForImageClassification.from_pretrained(saved[0]).save_pretrained(tmp_path)
    assert set(SpotViTForImageClassification.from_pretrained(tmp_path).config.custom_pipelines) == {
        "spot-image-classification"
    }


def test_saved_config_and_card(saved):
    import json

    config = json.loads((saved[0] / "config.json").read_text())
    assert set(config["custom_pipelines"]) == {"spot-image-segmentation"}
    card = (saved[0] / "README.md").read_text()
    assert "pipeline_tag: image-segmentation" in card and "AutoModelForSemanticSegmentation" in card
    assert 'pipeline("spot-image-segmentation", model="PATH_OR_REPO", trust_remote_code=True)' in card
