"""Training in one's own script: SpotTrainer with data sets of `datasets`, and the plain Trainer."""

import json
import warnings

import datasets
import pytest
import torch
from coordinate_runs import CLASSES
from oracle_runs import save_images
from tiny import tiny_model, tiny_processor
from torch.utils.data import default_collate
from transformers import AutoModelForImageClassification, Trainer, TrainingArguments
from transformers.models.auto.image_processing_auto import AutoImageProcessor

from spot_hf import SpotTrainer, SpotTrainingArguments


@pytest.fixture(scope="module")
def images(tmp_path_factory) -> datasets.Dataset:
    directory = save_images(tmp_path_factory.mktemp("images"), 20, split="train")
    return datasets.load_dataset(str(directory), split="train")


def model():
    return tiny_model(id2label=dict(enumerate(CLASSES)), label2id={name: i for i, name in enumerate(CLASSES)}).train()


def arguments(directory, **options) -> SpotTrainingArguments:
    options = {"num_train_epochs": 2, "per_device_train_batch_size": 5, "dataloader_num_workers": 0, **options}
    return SpotTrainingArguments(str(directory), report_to="none", disable_tqdm=True, **options)


def test_data_sets_as_they_are(images, tmp_path):
    trainer = SpotTrainer(
        model=model(), args=arguments(tmp_path), train_dataset=images, eval_dataset=images, processing_class=tiny_processor(),
        num_tokens=[4, 9], placement=["isotropic", "uniform"],
    )  # fmt: skip
    before = [parameter.clone() for parameter in trainer.model.parameters()]
    trainer.train()
    assert any(not torch.equal(one, other) for one, other in zip(before, trainer.model.parameters(), strict=True))
    evaluated = [entry for entry in trainer.state.log_history if "eval_n4_accuracy" in entry]
    assert len(evaluated) == 2 and "eval_n9_loss" in str(trainer.state.log_history)
    assert trainer.preparation.placements.placement == ["isotropic", "uniform"]
    # The directory is a whole model: by AutoModel and its processor.
    trainer.save_model(str(tmp_path / "saved"))
    loaded = AutoModelForImageClassification.from_pretrained(tmp_path / "saved")
    processor = AutoImageProcessor.from_pretrained(tmp_path / "saved")
    inputs = processor(images[0]["image"], num_tokens=4, return_tensors="pt")
    with torch.no_grad():
        torch.testing.assert_close(loaded(**inputs).logits, trainer.model.eval()(**inputs).logits)


def test_the_saved_number_of_tokens_is_the_default(images, tmp_path):
    processor = tiny_processor(num_tokens=5)
    options = {"args": arguments(tmp_path, eval_strategy="no"), "train_dataset": images, "processing_class": processor}
    assert SpotTrainer(model=model(), **options).preparation.placements.num_tokens == [5]
    # By position, as Trainer takes them.
    trainer = SpotTrainer(model(), options["args"], None, images, processing_class=processor)
    assert trainer.preparation.placements.num_tokens == [5] and len(trainer.get_train_dataloader()) == 4


def test_labels_are_matched_by_name(images, tmp_path):
    reversed_names = images.cast_column("label", datasets.Value("int64")).map(lambda row: {"label": 4 - row["label"]})
    reversed_names = reversed_names.cast_column("label", datasets.ClassLabel(names=CLASSES[::-1]))
    trainer = SpotTrainer(
        model=model(), args=arguments(tmp_path, eval_strategy="no"), train_dataset=reversed_names,
        processing_class=tiny_processor(), num_tokens=4,
    )  # fmt: skip
    assert [trainer.train_dataset[i]["labels"] for i in range(20)] == images["label"][:]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"processing_class": None}, "`processing_class` is needed with data sets of images"),
        ({"model": None}, "`model` is needed"),
        ({"num_tokens": None}, "`num_tokens` is needed with data sets of images"),
        ({"placement": "spiral"}, "`placement` must be one of"),
        ({"placement": "salient"}, "`placement` 'salient' is not for training"),
        ({"columns": {"image": "picture"}}, "must have a column `image` of images, .* it has picture, label"),
        (
            {"names": ["my ant", "my bee", "my cat", "my dog", "my eel"]},
            "5 of the 5 classes of 'label' are none of the model's",
        ),
    ],
)
def test_what_is_missing_is_named(images, tmp_path, changes, words):
    given = {"model": model(), "processing_class": tiny_processor(), "num_tokens": 4, **changes}
    train = images.rename_columns(given.pop("columns", {}))
    names = given.pop("names", None)
    if names:
        train = train.cast_column("label", datasets.Value("int64")).cast_column("label", datasets.ClassLabel(names=names))
    with pytest.raises(ValueError, match=words):
        SpotTrainer(args=arguments(tmp_path, eval_strategy="no"), train_dataset=train, **given)


def test_data_sets_that_come_later(images, tmp_path):
    trainer = SpotTrainer(
        model=model(), args=arguments(tmp_path, eval_strategy="no"), train_dataset=images, processing_class=tiny_processor(),
        num_tokens=[4, 9], placement=lambda num_tokens: torch.full((num_tokens, 2), 0.5),
    )  # fmt: skip
    metrics = trainer.evaluate(images)
    assert metrics["eval_accuracy"] == pytest.approx((metrics["eval_n4_accuracy"] + metrics["eval_n9_accuracy"]) / 2)
    assert trainer.predict(images).predictions.shape == (20, 5)
    several = SpotTrainer(
        model=model(), args=arguments(tmp_path), train_dataset=images, eval_dataset={"a": images, "b": images},
        processing_class=tiny_processor(), num_tokens=4,
    )  # fmt: skip
    assert set(several.eval_dataset) == {"a_n4", "b_n4"}


@pytest.mark.parametrize(
    ("prepare", "words"),
    [
        (lambda images: {"train_dataset": images.rename_column("label", "labels")}, "must have a column `label`; it has"),
        (lambda images: {"train_dataset": images.to_iterable_dataset()}, "must not be a stream"),
        (lambda images: {"train_dataset": images, "args": TrainingArguments("x")}, "`remove_unused_columns` must be False"),
        (lambda images: {"train_dataset": with_positions(images)}, "`num_tokens` and `placement` are for data sets of images"),
    ],
    ids=["labels", "stream", "TrainingArguments", "transform"],
)
def test_data_sets_that_do_not_fit(images, tmp_path, prepare, words):
    given = {"args": arguments(tmp_path, eval_strategy="no"), "processing_class": tiny_processor(), "num_tokens": 4}
    with pytest.raises(ValueError, match=words):
        SpotTrainer(model=model(), **{**given, **prepare(images)})


@pytest.mark.parametrize("num_workers", [0, 2])
def test_unreadable_images_are_one_line(tmp_path, num_workers):
    """Also out of a worker process, whose traceback torch would put around it."""
    save_images(tmp_path / "broken", 10, broken=tuple(range(10)), split="train")
    broken = datasets.load_dataset(str(tmp_path / "broken"), split="train")
    trainer = SpotTrainer(
        model=model(), args=arguments(tmp_path / "out", eval_strategy="no", dataloader_num_workers=num_workers),
        train_dataset=broken, processing_class=tiny_processor(), num_tokens=4,
    )  # fmt: skip
    with pytest.raises(OSError, match="could not be read") as error:
        trainer.train()
    assert "\n" not in str(error.value) and "picture_" in str(error.value)


def with_positions(images: datasets.Dataset) -> datasets.Dataset:
    """Ten lines: what the documentation shows."""
    processor = tiny_processor()

    def prepare(rows):
        pictures = [image.convert("RGB") for image in rows["image"]]
        inputs = processor(pictures, num_tokens=4, placement="uniform", seed=None, return_tensors="pt")
        return {**inputs, "labels": rows["label"]}

    return images.with_transform(prepare)


def test_the_plain_trainer(images, tmp_path):
    options = TrainingArguments(
        str(tmp_path), report_to="none", disable_tqdm=True, per_device_train_batch_size=5, num_train_epochs=2,
        remove_unused_columns=False,
    )  # fmt: skip
    trainer = Trainer(
        model(),
        options,
        train_dataset=with_positions(images),
        data_collator=default_collate,
        processing_class=tiny_processor(),
    )
    batches = [next(iter(trainer.get_train_dataloader()))["coordinates"] for _ in range(2)]
    assert batches[0].shape == (5, 4, 2) and not torch.equal(*batches), "each epoch has the same positions"
    assert trainer.train().training_loss > 0
    trainer.save_model()
    assert json.loads((tmp_path / "preprocessor_config.json").read_text())["patch_size"] == 8


def test_a_data_set_with_a_transform_is_left_alone(images, tmp_path):
    trainer = SpotTrainer(
        model=model(), args=arguments(tmp_path, eval_strategy="no"), train_dataset=with_positions(images),
        processing_class=tiny_processor(), data_collator=default_collate,
    )  # fmt: skip
    assert trainer.preparation is None
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        assert trainer.train().training_loss > 0
