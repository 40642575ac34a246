"""Recipes: YAML files of a command's options, which others on the command line replace."""

import argparse
import difflib
from dataclasses import MISSING, fields
from typing import Any

import yaml
from transformers import HfArgumentParser


def with_recipe(parser: HfArgumentParser, classes: list[type], rest: list[str]) -> list[str]:
    """
    Makes the options of the YAML file that `--config` names the parser's defaults. Values keep their YAML types; the
    arguments' dataclasses turn them into what they declare (`training/recipe_values.py`).

    Returns:
        `list[str]`: `rest`, with what has no default before it, where later words replace it.

    Raises:
        `ValueError`: no such file, no YAML of options, or an option that is none, by name.
    """
    finder = argparse.ArgumentParser(prog=parser.prog, add_help=False, allow_abbrev=False)
    finder.add_argument("--config")
    path = finder.parse_known_args(rest)[0].config
    if path is None:
        return rest
    recipe = _read_recipe(path)
    options = {one.name: one for cls in classes for one in fields(cls)}
    for name in recipe:
        if name not in options:
            near = difflib.get_close_matches(str(name), options, n=1)
            hint = f"; did you mean {near[0]}?" if near else ""
            raise ValueError(f"--config: {name!r} in {path!r} is no option of `{parser.prog}`{hint}")
    needed = [name for name in recipe if options[name].default is MISSING and options[name].default_factory is MISSING]
    parser.set_defaults(**{name: value for name, value in recipe.items() if name not in needed})
    return [word for name in needed for word in (f"--{name}", str(recipe[name]))] + rest


def _read_recipe(path: str) -> dict[str, Any]:
    try:
        with open(path, encoding="utf-8") as file:
            recipe = yaml.safe_load(file)
    except yaml.YAMLError as error:
        raise ValueError(f"--config must be a YAML file; {path!r} is none: {str(error).splitlines()[0]}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"--config must be a file that can be read; got {path!r}: {error}") from None
    if not isinstance(recipe, dict):
        raise ValueError(f"--config must be a YAML file of options, such as `learning_rate: 1e-4`; got {path!r}")
    return recipe
