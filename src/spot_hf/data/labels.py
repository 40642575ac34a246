"""Labels of a data set, and which of a model's classes each of them is: matched by name, not by number.

The class that a data set calls 0 is hardly ever the one that a model calls 0. Where both have names, these decide: equal
names, then names that differ in case or underscores, then any of the names that a class has in common with another: ImageNet's
are lists of synonyms, and folders are often called by WordNet ids.
"""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import datasets
import numpy as np
from transformers import PreTrainedConfig

from .source import DatasetSource


WORDNET_ID = re.compile(r"\bn\d{8}\b")
# Of ImageNet-1k, by which its lists of classes are known: the first and the last.
IMAGENET_ENDS = ("tench", "toilet tissue")


class ForeignLabelsError(ValueError):
    """Labels that are none of the model's classes, or cannot be told to be."""


@dataclass(kw_only=True)
class LabelledSource(DatasetSource):
    """Which images, and how their labels are those of a model: for jobs in which the two meet."""

    label_names: str | None = field(  # type: ignore[assignment]
        default=None,
        metadata={
            "help": "JSON file that names labels as the model does: an object from the data set's names to the model's, or to "
            "its class numbers; or a list of names, by number."
        },
    )
    labels_by_number: bool = field(
        default=False, metadata={"help": "Take labels as the model's class numbers, whatever their names."}
    )

    def check_source(self, needs_labels: bool = False) -> None:
        super().check_source(needs_labels)
        if self.label_names is not None and self.labels_by_number:
            raise ValueError(f"`label_names` and `labels_by_number` exclude each other; got both ({self.label_names!r})")
        if (self.label_names is not None or self.labels_by_number) and self.label_column_name is None:
            raise ValueError("`label_names` and `labels_by_number` need `label_column_name`; got none")
        if self.label_names is not None:
            read_label_names(self.label_names)


@dataclass(frozen=True)
class LabelMapping:
    """
    From a data set's labels to a model's classes.

    Attributes:
        num_labels (`int`): classes of the model.
        label_column_name (`str`): what the labels' column is called in the source, for messages.
        numbers (`tuple[int]`, *optional*): the model's class number by the data set's; `None` where they are the same.
        names (`tuple[str]`): of the data set's classes; none where it has no names.
        description (`str`): how they were matched, for the log and the record.
        advice (`str`): is added to a message.
    """

    num_labels: int
    label_column_name: str = "label"
    numbers: tuple[int, ...] | None = None
    names: tuple[str, ...] = ()
    description: str = ""
    advice: str = ""

    def __call__(self, label: float | None) -> int | None:
        """The model's class of a label; `None` of one that is missing, or no class."""
        if label is None or np.isnan(label) or label < 0:
            return None
        if self.numbers is None:
            return int(label) if label < self.num_labels else None
        return self.numbers[int(label)] if label < len(self.numbers) else None

    @property
    def accepted(self) -> str:
        """Which labels there may be."""
        if self.numbers is None:
            return f"the model knows 0 to {self.num_labels - 1}{self.advice}"
        return f"the data set names 0 to {len(self.numbers) - 1}{self.advice}"

    def of(self, images: datasets.Dataset) -> np.ndarray:
        """
        The classes of all images, as [`load_images`] loads them: `(num_images,)`, int64. Reads no image.

        Raises:
            `ValueError`: an image has no label, or one that is no class of the model.
        """
        labels = label_numbers(images)
        mapped = [self(label) for label in labels]
        wrong = [row for row, one in enumerate(mapped) if one is None]
        if wrong:
            raise ValueError(
                f"`label_column_name`: row {wrong[0]} of {str(images.split)!r} has {describe_label(labels[wrong[0]])}, and "
                f"{len(wrong) - 1} more rows have such; {self.accepted}"
            )
        return np.array(mapped, dtype=np.int64)

    def classes_of(self, images: datasets.Dataset) -> list[int]:
        """The model's classes that occur, in order. Every image must have one."""
        return np.unique(self.of(images)).tolist()

    def recorded(self) -> dict[str, Any]:
        """For a job's parameters, on which its results depend: nothing where numbers are the same."""
        if self.numbers is None:
            return {}
        return {"label_mapping": dict(zip(self.names, self.numbers, strict=True))}


def read_label_names(file: str) -> dict[str, str | int] | list[str]:
    """What a file of `label_names` holds; `ValueError` where that is neither."""
    accepted = "a JSON object from the data set's names to the model's, or a list of names by number"
    try:
        value = json.loads(Path(file).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(f"`label_names` must be a file of {accepted}; {file!r}: {error}") from None
    if isinstance(value, dict) and value and all(type(one) in (str, int) for one in value.values()):
        return value
    if isinstance(value, list) and value and all(isinstance(one, str) for one in value):
        return value
    raise ValueError(f"`label_names` must be a file of {accepted}; {file!r} holds {json.dumps(value):.80}")


def match_labels(
    feature: Any, config: PreTrainedConfig, source: DatasetSource, *, advice: str = "", new_classifier: bool = False
) -> LabelMapping:
    """
    Which of a model's classes the labels of a data set are.

    Args:
        feature (`datasets.ClassLabel` or `datasets.Value`): the labels' column, as the data set states it.
        config: of the model: `num_labels` and `id2label`.
        source ([`DatasetSource`]): whose `label_names` or `labels_by_number` may say how.
        advice (`str`): is added to a message about a label that is no class.
        new_classifier (`bool`): whether the job could give the model a classifier for the data set's classes.

    Raises:
        [`ForeignLabelsError`]: a name that none, or several, of the model's classes have. `ValueError`: the column has no
            class numbers, or `label_names` are wrong.
    """
    column, num_labels = str(source.label_column_name), config.num_labels
    check_label_column(feature, column)
    names: list[str] = list(getattr(feature, "names", None) or [])
    theirs = _names_of(config)
    given = read_label_names(source.label_names) if source.label_names is not None else None
    if isinstance(given, dict) and not names:
        raise ValueError(f"`label_names` must be a list of names by number: {column!r} has no names; got an object")
    if isinstance(given, list):
        if names and len(given) != len(names):
            raise ValueError(f"`label_names` must name the {len(names)} classes of {column!r}; got {len(given)} names")
        names = given
    by_number = None
    if source.labels_by_number:
        by_number = "labels are taken by number, as asked"
    elif not names:
        by_number = f"labels are taken by number: {column!r} has no names"
    elif not theirs and given is None:
        by_number = "labels are taken by number: the model's classes have no names"
    if by_number is not None:
        if len(names) > num_labels:
            raise ForeignLabelsError(
                f"`label_column_name`: {column!r} has {len(names)} classes, the model {num_labels}: its labels mean something "
                f"else{advice}"
            )
        return LabelMapping(num_labels, column, None, tuple(names), by_number, advice)

    found = _match(names, theirs)
    if isinstance(given, dict):
        found = _as_given(given, names, theirs, found, num_labels)
    misfits = [name for name, number in zip(names, found, strict=True) if number is None]
    if len(misfits) == len(names) == num_labels and names == [str(i) for i in range(num_labels)]:
        return LabelMapping(num_labels, column, None, (), f"labels are taken by number: {column!r} has no names", advice)
    if misfits:
        train = "--classifier new" if new_classifier else "spot-hf train --classifier new"
        several = {name for name in misfits if _num_candidates(name, theirs) > 1}
        shown = ", ".join(repr(name) + (" (fits several)" if name in several else "") for name in misfits[:3])
        known = ", ".join(repr(name.split(",")[0]) for name in list(theirs.values())[:3])
        raise ForeignLabelsError(
            f"`label_column_name`: {len(misfits)} of the {len(names)} classes of {column!r} are none of the model's, such as "
            f"{shown}. The model knows {known} and others. "
            f"`{train}` trains a classifier for them, `--label_names FILE.json` names them as the model does, and "
            f"`--labels_by_number` takes them as the model's class numbers{advice}"
        )
    numbers = tuple(number for number in found if number is not None)
    is_same = numbers == tuple(range(len(numbers)))
    description = f"labels are matched by name: {len(names)} classes of {column!r} to the model's {num_labels}"
    return LabelMapping(num_labels, column, None if is_same else numbers, tuple(names), description, advice)


def _names_of(config: PreTrainedConfig) -> dict[int, str]:
    """A model's classes by number; none where they were never named."""
    names = dict(sorted((int(number), str(name)) for number, name in (config.id2label or {}).items()))
    return {} if all(name == f"LABEL_{number}" for number, name in names.items()) else names


def _as_given(
    given: Mapping[str, str | int], names: list[str], theirs: dict[int, str], found: list[int | None], num_labels: int
) -> list[int | None]:
    """`found`, where a person says nothing else."""
    unknown = [name for name in given if name not in names]
    if unknown:
        raise ValueError(f"`label_names` must have names of the data set's classes, such as {names[0]!r}; got {unknown[0]!r}")
    matched = dict(zip(given, _match([str(value) for value in given.values()], theirs), strict=True))
    for name, value in given.items():
        number = value if isinstance(value, int) else matched[name]
        if number is None or not 0 <= number < num_labels:
            raise ValueError(
                f"`label_names` must name classes of the model, or number them from 0 to {num_labels - 1}; {name!r} is "
                f"{value!r}"
            )
        found = [number if one == name else old for one, old in zip(names, found, strict=True)]
    return found


def _match(names: Sequence[str], theirs: Mapping[int, str]) -> list[int | None]:
    """The number of the one class that has each name."""
    wordnet = _wordnet_ids(list(theirs.values())), _wordnet_ids(names)
    exact: dict[str, list[int]] = {}  # a name → the classes that have it
    folded: dict[str, list[int]] = {}
    spelt: dict[str, list[int]] = {}
    synonyms: dict[str, list[int]] = {}
    for (number, name), wordnet_id in zip(theirs.items(), wordnet[0], strict=True):
        exact.setdefault(name, []).append(number)
        folded.setdefault(_fold(name), []).append(number)
        for one in {part.strip() for part in name.split(",")}:
            spelt.setdefault(one, []).append(number)
        for one in _synonyms(name) | ({wordnet_id} if wordnet_id else set()):
            synonyms.setdefault(one, []).append(number)
    found: list[int | None] = []
    for position, (name, wordnet_id) in enumerate(zip(names, wordnet[1], strict=True)):
        own = _synonyms(name) | ({wordnet_id} if wordnet_id else set())
        ids = {one for one in own if WORDNET_ID.fullmatch(one)}
        by_id, by_word = (sorted({number for one in part for number in synonyms.get(one, [])}) for part in (ids, own - ids))
        # A folder "Cardigan" could be the sweater, or the dog of which that is a name in just these letters.
        whole = folded.get(_fold(name), [])
        alike = sorted({*whole, *spelt.get(name, [])}) if whole else []
        candidates = exact.get(name) or alike or by_id or by_word
        if len(candidates) > 1 and len(names) == len(theirs) and position in candidates:
            candidates = [position]  # two classes of one name, in lists of the same classes
        found.append(candidates[0] if len(candidates) == 1 else None)
    return found


def _num_candidates(name: str, theirs: Mapping[int, str]) -> int:
    return sum(bool(_synonyms(name) & _synonyms(their)) for their in theirs.values())


def _fold(name: str) -> str:
    return " ".join(re.sub(r"[_-]", " ", name).lower().split())


def _synonyms(name: str) -> set[str]:
    """`"crane (n02012849)"` and `"n02012849, crane"` are both `crane` and `n02012849`."""
    ids = set(WORDNET_ID.findall(name.lower().replace("_", " ")))
    words = re.sub(r"\(\s*\)", " ", WORDNET_ID.sub(" ", name.lower().replace("_", " ")))
    return ids | {_fold(part) for part in words.split(",") if _fold(part)}


def _wordnet_ids(names: Sequence[str]) -> Sequence[str | None]:
    """Of ImageNet-1k's classes, where the names are these; else none."""
    if len(names) != 1000 or any(
        end not in _synonyms(name) for end, name in zip(IMAGENET_ENDS, (names[0], names[-1]), strict=True)
    ):
        return [None] * len(names)
    return _imagenet_wordnet_ids()


@cache
def _imagenet_wordnet_ids() -> list[str]:
    """In the order of the classes. They are the classes' names in the ILSVRC archives, which sort into that order."""
    return (Path(__file__).parent / "imagenet_wordnet_ids.txt").read_text(encoding="utf-8").split()


def label_numbers(images: datasets.Dataset) -> np.ndarray:
    """`(num_images,)`, float64: the data set's own labels, NaN where there are none. Reads no image."""
    return images.with_format("arrow")["label"][:].to_numpy(zero_copy_only=False).astype(float)


def check_label_column(feature: object, label_column_name: str) -> None:
    """`ValueError` where a column, by the type that its data set states, has no class numbers."""
    dtype = getattr(feature, "dtype", None)
    if not isinstance(dtype, str) or not dtype.startswith(("int", "uint")):
        raise ValueError(f"`label_column_name` must name a column of class numbers; {label_column_name!r} is {feature}")


def describe_label(label: float) -> str:
    """For a message."""
    return "no label" if np.isnan(label) else f"the label {label:g}"


def likeliest_class(logits: np.ndarray, classes: list[int] | None) -> np.ndarray:
    """`(batch_size, num_labels)` to `(batch_size,)`: the class with the highest logit, of `classes` where given."""
    return logits.argmax(-1) if classes is None else np.array(classes)[logits[:, classes].argmax(-1)]
