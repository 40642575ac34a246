"""Recipes: options from YAML, with the types that they have there."""

import pytest
from conftest import ROOT

from spot_hf.cli import COMMANDS, _parser
from spot_hf.recipes import with_recipe


GIVEN = ["--model", "a/b", "--dataset_name", "c/d", "--output_dir", "runs/x"]


def parsed(tmp_path, recipe: str, *words: str):
    (tmp_path / "recipe.yaml").write_text(recipe)
    command = COMMANDS["train"]
    parser = _parser("train", command)
    rest = with_recipe(parser, command.classes, ["--config", str(tmp_path / "recipe.yaml"), *GIVEN, *words])
    return parser.parse_args_into_dataclasses(args=rest)[:2]


def test_values_keep_their_types(tmp_path):
    arguments, training = parsed(
        tmp_path,
        """
        max_samples: null
        num_tokens: 9
        num_tokens_weights: [1]
        crop_scale: [0.2, 1]
        learning_rate: 1e-3
        lr_scheduler_type: cosine_with_min_lr
        lr_scheduler_kwargs: {min_lr: 1e-6}
        among_labels: true
        bf16: no
        eval_strategy: no
        """,
    )
    assert arguments.max_samples is None and arguments.among_labels is True
    assert arguments.num_tokens == [9] and arguments.num_tokens_weights == [1.0] and arguments.crop_scale == [0.2, 1.0]
    assert training.learning_rate == 1e-3 and training.lr_scheduler_kwargs == {"min_lr": 1e-6}
    assert training.bf16 is False and training.eval_strategy.value == "no"


def test_the_line_replaces_the_recipe(tmp_path):
    arguments, training = parsed(tmp_path, "num_tokens: [9, 16]\nseed: 3\n", "--num_tokens", "25", "--seed", "5")
    assert arguments.num_tokens == [25] and training.seed == 5


def test_what_has_no_default_may_stand_in_a_recipe(tmp_path):
    arguments, _ = parsed(tmp_path, "model: other/model\n")
    assert arguments.model == "a/b"  # the line's


@pytest.mark.parametrize(
    "recipe, said",
    [
        ("learning_rat: 1e-3\n", "'learning_rat' in .* is no option of `spot-hf train`; did you mean learning_rate?"),
        ("7: 1\n", "7 in .* is no option"),
        ("jitter: [1, 2]\n", "`jitter` must be of type float; got \\[1, 2\\]"),
    ],
)
def test_what_is_none_is_named(tmp_path, recipe, said):
    with pytest.raises(ValueError, match=said):
        parsed(tmp_path, recipe)


@pytest.mark.parametrize("path", sorted((ROOT / "scripts" / "recipes").glob("*.yaml")), ids=lambda path: path.stem)
def test_the_recipes_that_come_along_are_ones(path, tmp_path):
    """Every option is one, and all of them go together."""
    command = COMMANDS["train"]
    parser = _parser("train", command)
    words = ["--config", str(path), "--model", "m", "--dataset_name", "d", "--output_dir", str(tmp_path), "--bf16", "false"]
    arguments, training = parser.parse_args_into_dataclasses(args=with_recipe(parser, command.classes, words))[:2]
    arguments.check(training)
