"""Training for few tokens, and masked pre-training. In Python: [`SpotTrainer`] and [`SpotTrainingArguments`]."""

from importlib import import_module
from typing import Any


_HOME_OF = {"SpotTrainer": "trainer", "SpotTrainingArguments": "trainer_arguments"}

__all__ = ["SpotTrainer", "SpotTrainingArguments"]


def __getattr__(name: str) -> Any:
    if name not in _HOME_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f".{_HOME_OF[name]}", __name__), name)
