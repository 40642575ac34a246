"""Images for training: order and crops by the draw alone, coordinates that move with the pixels they point at, and what
becomes of images that cannot be read."""

import io

import datasets
import numpy as np
import pytest
import torch
from PIL import Image
from tiny import tiny_processor
from torch.utils.data import DataLoader

from spot_hf.data.failures import TooManyFailedImagesError
from spot_hf.training.augmentation import Augmentation
from spot_hf.training.data import NO_LABEL, DrawSampler, EvaluationImages, TrainingImages, benchmark_input, collate


COUNT = 12
MARK = (30, 20)  # column and row of a white square's first pixel, in an image of 80 × 60


def marked_images(with_coordinates: bool = True) -> datasets.Dataset:
    """Dark images with a white square of 8 × 8 pixels, and a coordinate at its centre."""
    pixels = np.zeros((60, 80, 3), dtype=np.uint8)
    pixels[MARK[1] : MARK[1] + 8, MARK[0] : MARK[0] + 8] = 255
    rows = {"image": [Image.fromarray(pixels)] * COUNT, "label": list(range(COUNT))}
    features = {"image": datasets.Image(), "label": datasets.Value("int64")}
    if with_coordinates:
        rows["coordinates"] = [[[(MARK[0] + 4) / 80, (MARK[1] + 4) / 60], [0.0, 1.0]]] * COUNT
        features["coordinates"] = datasets.List(datasets.List(datasets.Value("float32"), length=2), length=2)
    return datasets.Dataset.from_dict(rows, features=datasets.Features(features), split=datasets.Split("train"))


def test_sampler_goes_through_all_images_in_a_new_order():
    sampler = DrawSampler(COUNT, seed=3)
    first = list(sampler)
    assert list(sampler) == first and len(sampler) == COUNT
    sampler.set_epoch(2)
    third = list(sampler)
    assert sorted(third) == list(range(2 * COUNT, 3 * COUNT)) and sorted(first) == list(range(COUNT))
    assert [draw % COUNT for draw in third] != first
    assert list(DrawSampler(COUNT, seed=4)) != first


def test_an_image_is_cropped_by_its_draw_alone():
    """In any order, in this process or in workers, whatever the global generator has been used for."""
    images = TrainingImages(marked_images(), tiny_processor(), seed=1)
    torch.manual_seed(5)
    alone = images[17]
    state = torch.random.get_rng_state()
    assert torch.equal(images[17]["pixels"], alone["pixels"])
    assert torch.equal(torch.random.get_rng_state(), state)
    loader = DataLoader(images, batch_size=4, sampler=[3, 17, 29, 5], num_workers=2, collate_fn=collate)
    (batch,) = loader
    assert torch.equal(batch["pixels"][1], alone["pixels"]) and batch["draw"].tolist() == [3, 17, 29, 5]
    assert batch["labels"].tolist() == [3, 5, 5, 5]
    assert not torch.equal(batch["pixels"][1], batch["pixels"][2])  # the same image, in another epoch
    assert batch["pixels"].dtype == torch.uint8 and batch["pixels"].shape == (4, 3, 48, 48)


def test_no_generator_but_the_cpus_is_seeded(monkeypatch):
    """An accelerator's, seeded once per image, would give dropout and drop path the same numbers again and again."""

    def refuse(*_):
        raise AssertionError("seeds every device")

    monkeypatch.setattr(torch, "manual_seed", refuse)
    monkeypatch.setattr(torch.cuda, "manual_seed", refuse)
    monkeypatch.setattr(torch.cuda, "manual_seed_all", refuse)
    augmentation = Augmentation(mixup=0.5, cutmix=0.5, rand_augment_num_ops=2)
    images = TrainingImages(marked_images(), tiny_processor(), augmentation=augmentation)
    state = torch.random.get_rng_state()
    assert images[3]["pixels"].shape == (3, 48, 48)
    assert torch.equal(torch.random.get_rng_state(), state)


def test_coordinates_move_with_their_pixels():
    """Crop, resize and flip: where the mark's centre is said to be, and still inside, the picture is white; resampling blurs
    less than half of the mark's side. Where it is said to be outside, nothing white is near the middle."""
    images = TrainingImages(marked_images(), tiny_processor(), crop_scale=(0.1, 0.6), seed=0)
    inside = flipped = 0
    for draw in range(200):
        row = images[draw]
        x, y = (row["coordinates"][0] * 48 - 0.5).tolist()
        if -0.5 <= x <= 47.5 and -0.5 <= y <= 47.5:
            column, line = min(47, max(0, round(x))), min(47, max(0, round(y)))
            assert row["pixels"][:, line, column].min() > 128, (draw, x, y)
            bright = (row["pixels"][0] > 128).nonzero().float()
            if 8 < x < 40 and 8 < y < 40:  # all of the mark is in: its centre of mass, to half a pixel
                assert (bright.mean(0) - torch.tensor([y, x])).abs().max() < 0.5
            inside += 1
        # The second coordinate is the image's left lower corner: a flip brings it to the right.
        flipped += int(row["coordinates"][1, 0] > 0.5)
    assert 40 < inside < 190
    assert abs(flipped - 100) < 5 * 50**0.5


def test_no_flip_and_the_whole_image():
    images = TrainingImages(marked_images(), tiny_processor(), crop_scale=(1, 1), crop_ratio=(4 / 3, 4 / 3), flip=0, seed=0)
    row = images[0]
    assert torch.allclose(row["coordinates"], torch.tensor([[34 / 80, 24 / 60], [0.0, 1.0]]))
    whole = tiny_processor(do_normalize=False, do_rescale=False)(marked_images()[0]["image"], return_tensors="pt")
    assert torch.equal(row["pixels"].float(), whole["pixel_values"][0].float())


def test_images_without_labels_and_coordinates():
    images = marked_images(with_coordinates=False).remove_columns("label")
    assert set(TrainingImages(images, tiny_processor())[0]) == {"pixels", "draw", "failed"}


def test_evaluation_images_are_the_image_processors():
    """Random placements by the image's id, as everywhere."""
    images = marked_images(with_coordinates=False)
    row = EvaluationImages(images, tiny_processor(), 7, "sobol")[3]
    expected = tiny_processor()(
        images[3]["image"], num_tokens=7, placement="sobol", image_ids=["train/3"], return_tensors="pt"
    )
    assert torch.equal(row["pixel_values"], expected["pixel_values"][0])
    assert torch.equal(row["coordinates"], expected["coordinates"][0])
    assert row["labels"] == 3


# --------------------------------------------------------------------------------------------- images that cannot be read


def broken_images(*broken: int) -> datasets.Dataset:
    """Flat images, `20 i` everywhere, with the label `i`; some of them cannot be decoded."""
    buffers = []
    for i in range(COUNT):
        image = Image.new("RGB", (48, 48), (20 * i,) * 3)
        buffer = io.BytesIO()
        image.save(buffer, "PNG")
        buffers.append(b"not a picture" if i in broken else buffer.getvalue())
    rows = {"image": [{"bytes": one, "path": f"{i}.png"} for i, one in enumerate(buffers)], "label": list(range(COUNT))}
    features = datasets.Features({"image": datasets.Image(), "label": datasets.Value("int64")})
    return datasets.Dataset.from_dict(rows, features=features, split=datasets.Split("train"))


def test_an_unreadable_image_is_replaced_by_the_next_one_and_named():
    images = TrainingImages(broken_images(4, 5), tiny_processor(), max_failed_share=0.2)
    row = images[COUNT + 4]
    assert row["labels"] == 6 and row["draw"] == COUNT + 4 and (row["pixels"] == 120).all()
    assert [(one.image_index, one.image_id) for one in row["failed"]] == [(4, "4.png"), (5, "5.png")]
    assert "UnidentifiedImageError" in row["failed"][0].error
    batch = collate([images[i] for i in range(COUNT)])
    assert batch["labels"].tolist() == [0, 1, 2, 3, 6, 6, 6, 7, 8, 9, 10, 11]
    assert [one.image_index for one in batch["failed"]] == [4, 5, 5]


def test_the_last_image_is_followed_by_the_first():
    row = TrainingImages(broken_images(COUNT - 1), tiny_processor(), max_failed_share=0.1)[COUNT - 1]
    assert row["labels"] == 0 and (row["pixels"] == 0).all()


@pytest.mark.parametrize(
    ("broken", "max_failed_share", "message"),
    [((4, 5), 0.1, "2 of 12 images could not be read, more than `max_failed_share` 0.1 allows, such as 4.png"),
     (range(COUNT), 1.0, "none of 12 images could be read, such as 4.png")],
)  # fmt: skip
def test_more_unreadable_images_in_a_row_than_allowed_stop_at_once(broken, max_failed_share, message):
    """Such as where a disk is gone: nothing is trained on what is left."""
    with pytest.raises(TooManyFailedImagesError, match=message):
        TrainingImages(broken_images(*broken), tiny_processor(), max_failed_share=max_failed_share)[4]


def test_an_error_of_our_own_is_no_unreadable_image(monkeypatch):
    monkeypatch.setattr(Image.Image, "resize", lambda *_, **__: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        TrainingImages(broken_images(), tiny_processor(), max_failed_share=1.0)[0]


def test_an_unreadable_partner_is_named_too():
    """Every image is blended with another: with both there are, or the next one."""
    images = TrainingImages(broken_images(4), tiny_processor(), augmentation=Augmentation(mixup=1.0), max_failed_share=0.1)
    rows = [images[draw] for draw in range(COUNT * 20)]
    assert any(row["failed"] and row["draw"] % COUNT != 4 for row in rows)
    for row in rows:
        assert {one.image_index for one in row["failed"]} <= {4}
        expected = torch.lerp(
            torch.tensor(20.0 * row["labels"]), torch.tensor(20.0 * row["other_labels"]), row["mixed_weight"]
        )
        assert (row["pixels"].float() - expected).abs().max() <= 0.5 + 1e-4  # bytes


def test_an_unreadable_evaluation_image_is_blank_and_has_no_label():
    rows = [EvaluationImages(broken_images(4), tiny_processor(), 7, "sobol")[i] for i in (3, 4)]
    batch = collate(rows)
    assert batch["labels"].tolist() == [3, NO_LABEL] and [one.image_id for one in batch["failed"]] == ["4.png"]
    assert batch["pixel_values"].shape == (2, 3, 48, 48) and len(batch["pixel_values"][1].unique()) == 1


def test_input_rate_counts_what_came_after_the_first_batch():
    rate = benchmark_input(TrainingImages(marked_images(), tiny_processor()), batch_size=4, num_workers=0)
    assert rate.num_images == 8 and rate.images_per_second > 0 and rate.num_workers == 0
    with pytest.raises(ValueError, match="`per_device_train_batch_size`"):
        benchmark_input(TrainingImages(marked_images(), tiny_processor()), batch_size=COUNT, num_workers=0)


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"crop_scale": (0.0, 1.0)}, "`crop_scale`"),
        ({"crop_scale": (0.9, 0.5)}, "`crop_scale`"),
        ({"crop_ratio": (0.0, 1.0)}, "`crop_ratio`"),
        ({"flip": 1.5}, "`flip`"),
    ],
)
def test_bad_input_is_named(changes, named):
    with pytest.raises(ValueError, match=named):
        TrainingImages(marked_images(), tiny_processor(), **changes)
