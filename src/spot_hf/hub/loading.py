"""Loading SpotViTs by directory or Hub id, with this package's own classes, and with errors that say what to do instead."""

from collections.abc import Sequence
from copy import deepcopy
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

from transformers import AutoConfig, AutoTokenizer, PreTrainedModel
from transformers.models.auto.image_processing_auto import AutoImageProcessor

from ..configuration_spot_cnn import SpotCNNConfig
from ..configuration_spot_vit import SpotViTConfig
from ..data.candidates import CandidateArguments, Candidates
from ..jobs.versions import hub_commit, public_name, weights_digest
from ..modeling_spot import SpotPreTrainedModel
from ..modeling_spot_cnn import SpotCNNForImageClassification, SpotCNNModel
from ..modeling_spot_vit import SpotViTForImageClassification, SpotViTModel
from ..segmentation_spot_vit import SpotViTForSemanticSegmentation
from ..zero_shot_spot_vit import SpotViTForZeroShotImageClassification


ADAPTER = "adapter_config.json"
# By the type in a config: the class of a classifier, and that of a model without one.
MODEL_CLASSES: dict[str, tuple[Any, Any]] = {
    "spot_vit": (SpotViTForImageClassification, SpotViTModel),
    "spot_cnn": (SpotCNNForImageClassification, SpotCNNModel),
}

Model = TypeVar("Model", bound=PreTrainedModel)


@dataclass(frozen=True)
class ModelSource:
    """
    A SpotViT that is there, at one commit: all that is loaded through it is of that commit, whatever is pushed meanwhile.

    Attributes:
        name (`str`): directory or Hub id.
        revision (`str`, *optional*): the commit, of a Hub id; what was asked for where the Hub does not say.
        config ([`SpotViTConfig`] or [`SpotCNNConfig`]): of the model.
        candidates ([`Candidates`], *optional*): among which a zero-shot model classifies; `config` then has them as classes.
    """

    name: str
    revision: str | None
    config: SpotViTConfig | SpotCNNConfig
    candidates: Candidates | None = None

    @property
    def is_zero_shot(self) -> bool:
        """Whether it is a model that classifies among texts."""
        return any("ZeroShot" in name for name in self.config.architectures or [])

    @property
    def has_classifier(self) -> bool:
        if self.is_zero_shot:
            return self.candidates is not None
        return any("Classification" in name for name in self.config.architectures or []) and self.config.num_labels > 0

    @property
    def segments(self) -> bool:
        """Whether it is a model for semantic segmentation."""
        return any("SemanticSegmentation" in name for name in self.config.architectures or [])

    def check_classifier(self) -> None:
        """`ValueError` where it has none."""
        if self.segments:
            raise ValueError(f"`model` {self.name!r} segments images: this is for models that classify them")
        if self.is_zero_shot and self.candidates is None:
            raise ValueError(f"`model` {self.name!r} is a zero-shot model: this is for models with classes of their own")
        if not self.has_classifier:
            raise ValueError(f"`model` {self.name!r} has no classifier: convert it with --num_labels and train it first")

    def check_vit(self) -> None:
        """`ValueError` where it is a SpotCNN, for what only a ViT can do."""
        if self.config.model_type != "spot_vit":
            raise ValueError(f"`model` must be a SpotViT here; {self.name!r} is a {self.config.model_type!r}")

    def among(self, arguments: CandidateArguments, feature: Any = None) -> "ModelSource":
        """
        A zero-shot model as a classifier among texts; another model as it is.

        Args:
            arguments ([`CandidateArguments`]): of the job.
            feature (`datasets.ClassLabel`, *optional*): of the labels, whose names are the default.

        Raises:
            `ValueError`: texts for another model.
        """
        if not self.is_zero_shot:
            if arguments.asks_for_candidates:
                name = "candidate_labels" if arguments.candidate_labels is not None else "hypothesis_template"
                raise ValueError(f"`{name}` is for zero-shot models; `model` {self.name!r} is none")
            return self
        candidates = arguments.candidates(feature)
        if candidates is None:
            return self
        config = deepcopy(self.config)
        config.id2label = dict(enumerate(candidates.labels))
        config.label2id = {label: number for number, label in enumerate(candidates.labels)}
        return replace(self, config=config, candidates=candidates)

    def check_candidates(self) -> None:
        """`ValueError` where it is a zero-shot model without texts."""
        if self.is_zero_shot and self.candidates is None:
            raise ValueError(
                f"`candidate_labels` are needed by the zero-shot model {self.name!r}, where no data set's classes have names; "
                "got none"
            )

    def load(self) -> SpotPreTrainedModel:
        """The model that was saved, such as [`SpotViTForImageClassification`] or [`SpotViTForSemanticSegmentation`], or
        [`SpotViTModel`] where it has no head; a zero-shot model with candidates as a classifier among these."""
        if self.is_zero_shot:
            model = self.load_zero_shot()
            if self.candidates is None:
                return model
            return model.as_classifier(model.embed_texts(self.candidates.texts, self.load_tokenizer()), self.candidates.labels)
        if self.segments:
            return load_weights(SpotViTForSemanticSegmentation, self).eval()
        classifier, headless = MODEL_CLASSES[self.config.model_type]
        return load_weights(classifier if self.has_classifier else headless, self).eval()

    def load_zero_shot(self) -> SpotViTForZeroShotImageClassification:
        """With its text tower."""
        return load_weights(SpotViTForZeroShotImageClassification, self).eval()

    def load_tokenizer(self) -> Any:
        """Of a zero-shot model; `ValueError` where it has none that can be read."""
        try:
            return AutoTokenizer.from_pretrained(self.name, revision=self.revision, trust_remote_code=False)
        except (OSError, ValueError, ImportError) as error:
            reason = str(error).strip().splitlines()[0]
            raise ValueError(f"`model` {self.name!r} has no tokenizer that can be read: {reason}") from None

    def load_image_processor(self, decode: str | None = None) -> Any:
        """`decode` in place of what the processor saved, where given: see [`SpotViTImageProcessorKwargs`]."""
        changes = {} if decode is None else {"decode": decode}
        return AutoImageProcessor.from_pretrained(self.name, revision=self.revision, trust_remote_code=False, **changes)

    def check_token_counts(self, num_tokens: Sequence[int], image_processor: Any) -> None:
        """`ValueError` for a number of tokens that the model cannot have of the images that the image processor makes."""
        width, height = image_processor.model_size((1000, 1000))  # jobs make batches, of images of one size
        for count in num_tokens:
            self.config.check_token_count(count, height, width)

    def recorded(self) -> dict[str, Any]:
        """For a job's record: of what lies on this machine the name and a digest, not the path."""
        candidates = {} if self.candidates is None else self.candidates.recorded()
        found = {"model": public_name(self.name), "revision": self.revision, "model_sha256": weights_digest(self.name)}
        return {**found, **candidates}


def open_model(model: str, revision: str | None = None) -> ModelSource:
    """
    Finds a SpotViT or a SpotCNN, and pins its commit.

    Args:
        model (`str`): directory or Hub id.
        revision (`str`, *optional*): branch, tag or commit of a Hub id.

    Raises:
        `ValueError`: it is neither, or only adapters of one. `OSError`: there is no such model.
    """
    directory = Path(model).expanduser()
    if (directory / ADAPTER).is_file() and not (directory / "config.json").is_file():
        raise ValueError(
            f"`model` {model!r} holds adapters of PEFT, not a whole model: merge it first. Load them onto their model with "
            "`peft.PeftModel.from_pretrained`, call `merge_and_unload()`, and save the result and its image processor"
        )
    if directory.is_dir() and not (directory / "config.json").is_file():
        raise ValueError(f"`model` must be the directory of a SpotViT, or a Hub id; {model!r} holds no config.json")
    if not directory.is_dir() and (Path(model).exists() or model.count("/") != 1):
        raise OSError(f"`model` must be a directory or a Hub id such as user/name; got {model!r}")
    commit = hub_commit(model, revision, "model")
    config = AutoConfig.from_pretrained(model, revision=commit, trust_remote_code=False)
    if config.model_type not in MODEL_CLASSES:
        raise ValueError(
            f"`model` {model!r} is a {config.model_type!r}, not a SpotViT: convert it with `spot-hf convert` first"
        )
    return ModelSource(model, commit, config)


def load_weights(model_class: type[Model], source: ModelSource, *, anew: Sequence[str] = (), **changes: Any) -> Model:
    """
    `from_pretrained`, where weights that do not fit their config are an error that names what does not fit.

    Args:
        model_class: which class.
        source ([`ModelSource`]): of which model.
        anew: beginnings of names of parameters that are to be initialised anew where they do not fit or are not there.
        changes: fields of the config with other values.

    Raises:
        `ValueError`: a tensor is missing, or has another shape than the config says.
    """
    if source.is_zero_shot and model_class is not SpotViTForZeroShotImageClassification:
        changes = {"text_config": None, "projection_dim": None, **changes}  # its text tower is left behind
    model, report = model_class.from_pretrained(
        source.name, revision=source.revision, output_loading_info=True, ignore_mismatched_sizes=True, **changes
    )
    for name, saved, expected in sorted(report["mismatched_keys"]):
        if not name.startswith(tuple(anew)):
            raise ValueError(
                f"`model` {source.name!r}: the weights do not fit their config: tensor `{name}` has shape {tuple(saved)}, the "
                f"config says {tuple(expected)}"
            )
    missing = sorted(name for name in report["missing_keys"] if not name.startswith(tuple(anew)))
    if missing:
        raise ValueError(f"`model` {source.name!r}: the weights lack `{missing[0]}` and {len(missing) - 1} more tensors")
    return model
