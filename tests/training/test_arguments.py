"""Arguments of training: values as YAML gives them, and what is recorded, by which a run is resumed or refused."""

import math

import pytest
import yaml

from spot_hf.training.arguments import PretrainArguments, TrainArguments
from spot_hf.training.trainer_arguments import SpotPretrainingArguments, SpotTrainingArguments


def what(**values) -> TrainArguments:
    return TrainArguments(**{"model": "somewhere", "dataset_name": "digits", **values})


RECIPE = """
learning_rate: 1e-4
weight_decay: 0
num_train_epochs: 8
max_steps: "12"
per_device_train_batch_size: 64.0
bf16: true
eval_strategy: no
save_strategy: steps
lr_scheduler_type: cosine_with_min_lr
lr_scheduler_kwargs: {min_lr: 1e-6, num_cycles: 0.5}
save_total_limit: null
report_to: [none]
"""


def test_trainers_arguments_take_yamls_types(tmp_path):
    """YAML 1.1, as PyYAML reads it: `1e-4` is a string, `no` is false."""
    values = yaml.safe_load(RECIPE)
    assert values["learning_rate"] == "1e-4" and values["eval_strategy"] is False
    training = SpotTrainingArguments(output_dir=str(tmp_path), **values)
    assert training.learning_rate == 1e-4 and isinstance(training.weight_decay, float) and training.num_train_epochs == 8.0
    assert training.max_steps == 12 and training.per_device_train_batch_size == 64
    assert isinstance(training.per_device_train_batch_size, int)
    assert training.eval_strategy.value == "no" and training.save_strategy.value == "steps"
    assert training.lr_scheduler_kwargs == {"min_lr": 1e-6, "num_cycles": 0.5} and training.save_total_limit is None
    assert training.report_to == []
    recorded = what().recorded(training)
    assert recorded["lr_scheduler_kwargs"] == {"min_lr": 1e-6, "num_cycles": 0.5} and recorded["max_steps"] == 12


def test_our_arguments_take_yamls_types():
    given = yaml.safe_load(
        "{num_tokens: 25, num_tokens_weights: [1, 2e-1], placement: isotropic, crop_scale: [0.2, 1], max_samples: null, "
        "ema_decay: '0.998', among_labels: 'yes', label_column_name: None, dataset_revision: 1234567, mixup: 1}"
    )
    arguments = what(**given)
    assert arguments.num_tokens == [25] and arguments.num_tokens_weights == [1.0, 0.2] and arguments.placement == ["isotropic"]
    assert arguments.crop_scale == [0.2, 1.0] and arguments.max_samples is None and arguments.ema_decay == 0.998
    assert arguments.among_labels is True and arguments.label_column_name is None and arguments.dataset_revision == "1234567"
    assert isinstance(arguments.mixup, float)
    pretraining = PretrainArguments(dataset_name="digits", mask_ratio="5e-1", num_tokens=16)
    assert pretraining.mask_ratio == 0.5 and pretraining.num_tokens == [16]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"jitter": "much"}, "`jitter` must be of type float; got 'much'"),
        ({"num_tokens": [4.5]}, r"`num_tokens` must be of type list\[int\]; got \[4.5\]"),
        ({"max_samples": 1e400}, r"`max_samples` must be of type int \| None; got inf"),
        ({"flip": True}, "`flip` must be of type float; got True"),
        ({"flip": None}, "`flip` must be of type float; got None"),
        ({"flip": [0.5]}, "`flip` must be of type float"),
        ({"placement": [["isotropic"]]}, r"`placement` must be of type list\[str\]"),
        ({"among_labels": 2}, "`among_labels` must be of type bool; got 2"),
        ({"eval_placement": {"isotropic": 1}}, "`eval_placement` must be of type str"),
    ],
    ids=str,
)
def test_values_of_another_type_are_named(values, message):
    with pytest.raises(ValueError, match=message):
        what(**values)


def test_trainers_values_of_another_type_are_named(tmp_path):
    with pytest.raises(ValueError, match="`seed` must be of type int; got 'none'"):
        SpotTrainingArguments(output_dir=str(tmp_path), seed="none")


# ------------------------------------------------------------------------------------------------------------- records

# The names that commit c5e7f53 recorded, which a resumed run compares.
RECORDED = {
    "model", "revision", "dataset_name", "dataset_config_name", "dataset_split", "dataset_revision", "eval_dataset_split",
    "image_column_name", "label_column_name", "max_samples", "max_eval_samples", "coordinates", "coordinates_config",
    "coordinates_split", "coordinates_share", "num_tokens", "num_tokens_range", "num_token_buckets", "num_tokens_weights",
    "placement", "placement_weights", "jitter", "window_scales", "eval_num_tokens", "eval_placement", "classifier",
    "among_labels", "cross_entropy_weight", "distill_weight", "distill_temperature", "feature_weight", "teacher_model",
    "layer_decay", "drop_path_rate", "ema_decay", "mixup", "cutmix", "rand_augment_num_ops", "rand_augment_magnitude",
    "crop_scale", "crop_ratio", "flip", "early_stopping_patience", "learning_rate", "lr_scheduler_type",
    "lr_scheduler_kwargs", "warmup_steps", "num_train_epochs", "max_steps", "optim", "optim_args", "weight_decay",
    "adam_beta1", "adam_beta2", "adam_epsilon", "max_grad_norm", "label_smoothing_factor", "dataloader_drop_last",
    "load_best_model_at_end", "metric_for_best_model", "bf16", "fp16", "seed",
}  # fmt: skip
COMMITS = {"teacher_revision", "coordinates_revision"}  # new, and not compared where they are not known


def test_recorded_names_are_those_of_earlier_runs(tmp_path):
    """With `model_sha256`, `total_train_batch_size` and `num_images`, which the run adds."""
    training = SpotTrainingArguments(output_dir=str(tmp_path))
    assert set(what().recorded(training)) == RECORDED | COMMITS
    assert what(label_column_name="none").recorded(training)["label_column_name"] == "none"
    assert what(dataset_name=str(tmp_path)).recorded(training)["dataset_name"] == tmp_path.name
    recorded = what(teacher_model=str(tmp_path)).recorded(training)
    assert recorded["teacher_model"] == tmp_path.name and "teacher_model_sha256" in recorded


def test_what_draws_other_numbers_than_earlier_runs_is_recorded(tmp_path):
    """So that such a run is refused, and no other."""
    training = SpotTrainingArguments(output_dir=str(tmp_path))
    new = {
        "mixup": {"mixup_alpha"}, "cutmix": {"cutmix_alpha"}, "rand_augment_num_ops": {"rand_augment_drawn_per"},
    }  # fmt: skip
    for option, names in new.items():
        assert set(what(**{option: 1}).recorded(training)) - RECORDED - COMMITS == names
    assert set(what(max_failed_share=0.5, overwrite_output_dir=True).recorded(training)) == RECORDED | COMMITS


def test_pretraining_records_the_names_of_earlier_runs(tmp_path):
    training = SpotPretrainingArguments(output_dir=str(tmp_path))
    of_trainer = set(what().recorded(training)) & set(training.to_dict())
    ours = {
        "model", "revision", "config_overrides", "mask_ratio", "norm_pix_loss", "dataset_name", "dataset_config_name",
        "dataset_split", "dataset_revision", "image_column_name", "max_samples", "num_tokens", "placement", "jitter",
        "crop_scale", "crop_ratio", "flip",
    }  # fmt: skip
    assert set(PretrainArguments(dataset_name="digits").recorded(training)) == ours | of_trainer


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"teacher_revision": "main"}, "`teacher_revision` is a revision of `teacher_model`"),
        ({"coordinates_revision": "main"}, "`coordinates_revision` is a revision of `coordinates`"),
        ({"max_failed_share": 1.5}, "`max_failed_share` must lie in"),
        ({"max_failed_share": math.nan}, "`max_failed_share` must lie in"),
        ({"mixup_alpha": 0.0}, "`mixup_alpha` must be above 0"),
    ],
    ids=str,
)
def test_bad_input_is_named(values, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        what(**values).check(SpotTrainingArguments(output_dir=str(tmp_path)))
