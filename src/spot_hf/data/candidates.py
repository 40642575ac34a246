"""Among which texts a zero-shot model classifies, of a job: by default the names of the data set's classes."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from ..input_checks import check_candidate_labels, check_hypothesis_template
from ..zero_shot_pipeline import HYPOTHESIS_TEMPLATE
from .labels import read_label_names


@dataclass(frozen=True)
class Candidates:
    """What may be seen, and the text that says so."""

    labels: tuple[str, ...]
    template: str = HYPOTHESIS_TEMPLATE

    @property
    def texts(self) -> list[str]:
        return [self.template.format(label) for label in self.labels]

    def recorded(self) -> dict[str, Any]:
        """For a job's parameters, on which its results depend."""
        return {"candidate_labels": list(self.labels), "hypothesis_template": self.template}


@dataclass(kw_only=True)
class CandidateArguments:
    """Of jobs that also run with a zero-shot model."""

    candidate_labels: list[str] | None = field(
        default=None,
        metadata={
            "help": "Of a zero-shot model: what may be seen, such as cat 'hot dog' (default: the names of the data set's "
            "classes, or those of --label_names). After images, not before them."
        },
    )
    hypothesis_template: str | None = field(
        default=None,
        metadata={"help": f"Of a zero-shot model: the text of a label, in its place {{}} (default: {HYPOTHESIS_TEMPLATE!r})."},
    )

    def check_candidates(self) -> None:
        """`ValueError` for labels or a template that no model can have."""
        if self.candidate_labels is not None:
            check_candidate_labels(self.candidate_labels)
        if self.hypothesis_template is not None:
            check_hypothesis_template(self.hypothesis_template)

    @property
    def asks_for_candidates(self) -> bool:
        return self.candidate_labels is not None or self.hypothesis_template is not None

    def candidates(self, feature: Any = None) -> Candidates | None:
        """Those that were named, or else the classes of a data set's labels `feature` (`datasets.ClassLabel`), where these
        have names; `None` where nothing has."""
        labels: Sequence[str] | None = self.candidate_labels
        if labels is None:
            labels = list(getattr(feature, "names", None) or [])
            file = getattr(self, "label_names", None)
            given = read_label_names(file) if file is not None else {}
            labels = given if isinstance(given, list) else [str(given.get(name, name)) for name in labels]
        if not labels:
            return None
        if self.candidate_labels is None:
            check_candidate_labels(labels, "label_names")
        return Candidates(tuple(labels), self.hypothesis_template or HYPOTHESIS_TEMPLATE)


# Recorded by what comes of them.
NOT_RECORDED = ("candidate_labels", "hypothesis_template")
