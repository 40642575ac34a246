"""`spot-hf`: one command line for what the package does. Each command is a dataclass of arguments and one function.

Exit status: 0, 1 (failed), 2 (bad usage). A user's mistake is one line on stderr; `--debug` shows the traceback.
"""

import gc
import json
import os
import shlex
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, NoReturn

from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError
from transformers import HfArgumentParser

from .version import __version__


_ARGV: list[str] = []  # of the command that runs, for records of it


class UsageError(ValueError):
    """A value on the command line that no run can have."""


@dataclass(kw_only=True)
class CommonArguments:
    debug: bool = field(default=False, metadata={"help": "Show the traceback of an error."})


@dataclass(kw_only=True)
class DatasetArguments:
    """Labelled images, as `spot_hf.data.load_images` takes them; scripts use these names too."""

    dataset_name: str = field(
        default="digits", metadata={"help": "digits (embedded), a Hub id, or a directory that load_dataset reads."}
    )
    dataset_config_name: str | None = field(default=None, metadata={"help": "Config of that data set."})
    dataset_split: str | None = field(default=None, metadata={"help": "Split to classify (default: test or validation)."})
    image_column_name: str = field(default="image", metadata={"help": "Column of the images."})
    label_column_name: str = field(default="label", metadata={"help": "Column of the labels."})
    max_samples: int | None = field(default=None, metadata={"help": "Classify the first so many images only."})


@dataclass(kw_only=True)
class ConvertArguments(CommonArguments):
    source_model: str = field(
        metadata={"help": "The checkpoint: a Hub id, a directory, or a file (.safetensors, .bin, .pth)."}
    )
    output_dir: str = field(metadata={"help": "Where to write the SpotViT."})
    revision: str | None = field(default=None, metadata={"help": "Branch, tag or commit of a Hub id."})
    num_tokens: int | None = field(default=None, metadata={"help": "Saved default: tokens per image (default: all cells)."})
    placement: str | None = field(default=None, metadata={"help": "Saved default: the prior that places them."})
    num_labels: int | None = field(
        default=None, metadata={"help": "Give a source without a classifier a new one with so many labels."}
    )
    num_attention_heads: int | None = field(
        default=None, metadata={"help": "Of a file without a config, where its heads are not 64 wide."}
    )
    seed: int = field(default=0, metadata={"help": "Seed of a new classifier."})
    overwrite_output_dir: bool = field(default=False, metadata={"help": "Replace what is in --output_dir."})
    push_to_hub: bool = field(default=False, metadata={"help": "Also upload the result to --hub_model_id."})
    hub_model_id: str | None = field(default=None, metadata={"help": "Repository to push to, such as user/name."})
    hub_private: bool = field(default=False, metadata={"help": "Create that repository as a private one."})


@dataclass(kw_only=True)
class ClassifyArguments(CommonArguments):
    model: str = field(metadata={"help": "A SpotViT classifier: a directory or a Hub id."})
    revision: str | None = field(default=None, metadata={"help": "Branch, tag or commit of a Hub id."})
    num_tokens: int | None = field(default=None, metadata={"help": "Tokens per image (default: what the model saved)."})
    placement: str | None = field(default=None, metadata={"help": "The prior that places them (default: the same)."})
    coordinates: str | None = field(
        default=None,
        metadata={"help": "JSON file: one list of [x, y] for all images, or an object from image name to such a list."},
    )
    seed: int | None = field(default=None, metadata={"help": "Seed of random placements."})
    top_k: int = field(default=5, metadata={"help": "Classes per image."})
    batch_size: int = field(default=8, metadata={"help": "Images per forward pass."})
    json: bool = field(default=False, metadata={"help": "Print JSON instead of a table."})


@dataclass(kw_only=True)
class QuickstartArguments(DatasetArguments, CommonArguments):
    output_dir: str = field(default="runs/quickstart", metadata={"help": "Where results and models are written."})
    model: list[str] = field(
        default_factory=list,
        metadata={"help": "One or two checkpoints to convert instead of training small ones (anything `convert` takes)."},
    )
    batch_size: int = field(default=64, metadata={"help": "Images per forward pass."})
    seed: int = field(default=0, metadata={"help": "Seed of training and of random placements."})
    overwrite_output_dir: bool = field(default=False, metadata={"help": "Replace what is in --output_dir."})


@dataclass(kw_only=True)
class BenchmarkArguments(CommonArguments):
    model: str | None = field(
        default=None, metadata={"help": "A SpotViT directory or Hub id (default: a ViT-B/16 with random weights)."}
    )
    baseline: str | None = field(
        default=None, metadata={"help": "The ordinary model beside it (default: transformers' ViT of the same size)."}
    )
    num_tokens: list[int] = field(default_factory=lambda: [25, 49, 100, 196], metadata={"help": "Token counts."})
    batch_size: int = field(default=8, metadata={"help": "Images per forward pass."})
    num_threads: int = field(default=2, metadata={"help": "Threads of torch on a CPU."})
    repeats: int = field(default=9, metadata={"help": "Rounds; each runs every model once. Medians are reported."})
    device: str = field(default="cpu", metadata={"help": "cpu or cuda."})
    dtype: str = field(default="float32", metadata={"help": "float32, bfloat16 or float16."})
    compile: bool = field(default=False, metadata={"help": "Compile both models with torch.compile(fullgraph=True)."})
    output_file: str | None = field(default=None, metadata={"help": "Also write the figures to this JSON file."})


@dataclass(kw_only=True)
class OracleArguments(DatasetArguments, CommonArguments):
    model: str = field(metadata={"help": "A SpotViT: a directory or a Hub id."})
    output_dir: str = field(metadata={"help": "Where the coordinate data set is written. The same command goes on with it."})
    revision: str | None = field(default=None, metadata={"help": "Branch, tag or commit of the model's Hub id."})
    dataset_revision: str | None = field(default=None, metadata={"help": "Branch, tag or commit of the data set's Hub id."})
    streaming: bool = field(
        default=False,
        metadata={"help": "Read the data set while it is used, and store nothing. Every process reads all of it."},
    )
    num_tokens: list[int] = field(
        default_factory=lambda: [49], metadata={"help": "Tokens per image; several numbers make several configs."}
    )
    placement: str = field(default="isotropic", metadata={"help": "The prior from which the search begins."})
    seed: int = field(default=0, metadata={"help": "Seed of random placements, which are drawn per image."})
    objective: str = field(
        default="label",
        metadata={
            "help": "label: cross-entropy with the true label (a ceiling, not a method); distill: KL to the model's own "
            "full-grid prediction; feature: cosine to its full-grid feature."
        },
    )
    steps: int = field(default=5, metadata={"help": "Updates of the positions."})
    learning_rate: float = field(default=3e-3, metadata={"help": "In units of the image's width and height."})
    optimizer: str = field(default="adamw", metadata={"help": "A name in torch.optim (adamw, sgd, ...), or sign."})
    optimizer_arguments: str | None = field(
        default=None, metadata={"help": "Its further arguments, as JSON: '{\"momentum\": 0.9}'."}
    )
    optimize_window_scales: bool = field(default=False, metadata={"help": "Also optimize how large each window is."})
    window_scale_learning_rate: float = field(default=0.05, metadata={"help": "Of the logarithms of the windows' scales."})
    early_stop: float | None = field(
        default=None,
        metadata={"help": "Images whose loss is at or below this take no more steps (label: 0.69 = more than half sure)."},
    )
    among_labels: bool = field(
        default=False, metadata={"help": "Classify among the classes that occur in the split only, such as Imagenette's ten."}
    )
    dtype: str = field(default="float32", metadata={"help": "float32, or bfloat16 or float16 for autocast."})
    compile: bool = field(default=False, metadata={"help": "Run the model through torch.compile."})
    run_name: str | None = field(
        default=None, metadata={"help": "Configs are called RUN_NAME_nTOKENS (default: the model's name)."}
    )
    batch_size: int = field(default=32, metadata={"help": "Images per forward pass."})
    shard_size: int = field(default=1000, metadata={"help": "Images per shard: what a killed run may lose at most."})
    save_trajectories: bool = field(default=False, metadata={"help": "Also write every step's positions."})
    num_workers: int = field(default=2, metadata={"help": "Processes that decode ahead, per process of the run."})
    overwrite_output_dir: bool = field(default=False, metadata={"help": "Replace what is in --output_dir, and begin anew."})
    license: str = field(default="cc-by-4.0", metadata={"help": "Licence of the coordinates, for the card."})
    push_to_hub: bool = field(default=False, metadata={"help": "Also publish the result in --hub_dataset_id."})
    hub_dataset_id: str | None = field(default=None, metadata={"help": "Data set to push to, such as user/name."})
    hub_private: bool = field(default=False, metadata={"help": "Create that data set as a private one."})


@dataclass(kw_only=True)
class PushArguments(CommonArguments):
    output_dir: str = field(metadata={"help": "What `spot-hf oracle` wrote."})
    hub_dataset_id: str = field(metadata={"help": "Data set to push to, such as user/name."})
    hub_private: bool = field(default=False, metadata={"help": "Create it as a private one."})
    license: str = field(default="cc-by-4.0", metadata={"help": "Licence of the coordinates, for a card that states none."})


@dataclass(kw_only=True)
class ShowArguments(CommonArguments):
    coordinates: str = field(metadata={"help": "A coordinate data set: a directory or a Hub id."})
    image_id: list[str] = field(metadata={"help": "Images, by the column image_id."})
    output_dir: str = field(metadata={"help": "Where the pictures are written."})
    config: str | None = field(default=None, metadata={"help": "Config of the coordinates, where there are several."})
    split: str | None = field(default=None, metadata={"help": "Split of the coordinates, where there are several."})
    dataset_name: str | None = field(
        default=None, metadata={"help": "Where the images lie (default: the Hub id that the coordinates name)."}
    )
    dataset_config_name: str | None = field(default=None, metadata={"help": "Config of that data set."})
    image_column_name: str | None = field(default=None, metadata={"help": "Column of the images (default: as recorded)."})


@dataclass(kw_only=True)
class EvaluateArguments(DatasetArguments, CommonArguments):
    model: list[str] = field(metadata={"help": "SpotViT classifiers: directories or Hub ids."})
    output_dir: str | None = field(
        default=None,
        metadata={"help": "Where results are written. The same command goes on with them. Optional with --coordinates."},
    )
    dataset_name: str | None = field(  # type: ignore[assignment]
        default=None,
        metadata={
            "help": "digits, a Hub id, or a directory that load_dataset reads (default with --coordinates: what they name)."
        },
    )
    num_tokens: list[int] = field(default_factory=lambda: [25, 49, 100, 196], metadata={"help": "Token counts."})
    placement: list[str] | None = field(
        default=None,
        metadata={"help": "Priors that place them (default: all; salient and inverse_salient with --saliency_column_name)."},
    )
    saliency_column_name: str | None = field(
        default=None,
        metadata={
            "help": "Column of saliency maps (greyscale images, arrays) or boxes [x_min, y_min, x_max, y_max] in pixels; with "
            "--coordinates, of which the analysis tells how much positions see."
        },
    )
    baselines: list[str] | None = field(
        default=None,
        metadata={
            "help": "full_grid, shrunken_image, larger_windows, token_merging, token_merging_same_cost (all by default), none."
        },
    )
    image_size: list[int] | None = field(
        default=None, metadata={"help": "Pixels per side, such as 128 224 384 (default: the model's own)."}
    )
    num_seeds: int = field(default=3, metadata={"help": "Draws of each random placement."})
    seed: int = field(default=0, metadata={"help": "Seed of the first of them."})
    oracle_steps: list[int] = field(
        default_factory=list,
        metadata={"help": "Also run the oracle with the label, a ceiling, in so many steps, such as 0 1 3 5 10."},
    )
    oracle_learning_rate: float = field(default=3e-3, metadata={"help": "In units of the image's width and height."})
    streaming: bool = field(
        default=False,
        metadata={"help": "Read the data set while it is used, and store nothing. Every process reads all of it."},
    )
    among_labels: bool = field(
        default=False, metadata={"help": "Classify among the classes that occur in the split only, such as Imagenette's ten."}
    )
    knn_dataset_split: str | None = field(
        default=None, metadata={"help": "Also measure kNN accuracy (k = 20, cosine) by the features of this split."}
    )
    knn_samples: int = field(default=5000, metadata={"help": "Images of that split."})
    dtype: str = field(default="float32", metadata={"help": "float32, or bfloat16 or float16 for autocast."})
    batch_size: int = field(default=50, metadata={"help": "Images per forward pass."})
    shard_size: int = field(default=250, metadata={"help": "Images per line of the ledger: what a killed run may lose."})
    num_workers: int = field(default=1, metadata={"help": "Processes that decode ahead."})
    dataset_revision: str | None = field(default=None, metadata={"help": "Branch, tag or commit of the data set's Hub id."})
    overwrite_output_dir: bool = field(default=False, metadata={"help": "Replace what is in --output_dir, and begin anew."})
    published: bool = field(default=False, metadata={"help": "Also draw the paper's figures, marked as published."})
    coordinates: str | None = field(
        default=None,
        metadata={
            "help": "A coordinate data set, a directory or a Hub id: measure instead what its positions are worth to --model."
        },
    )
    config: str | None = field(default=None, metadata={"help": "Config of the coordinates, where there are several."})
    split: str | None = field(default=None, metadata={"help": "Split of the coordinates, where there are several."})


def _train_arguments() -> tuple[type, ...]:
    """Not loaded for other commands: Trainer takes its time."""
    from .training.arguments import SpotTrainingArguments, TrainArguments

    return TrainArguments, SpotTrainingArguments


def _pretrain_arguments() -> tuple[type, ...]:
    from .training.pretraining import PretrainArguments, SpotPretrainingArguments

    return PretrainArguments, SpotPretrainingArguments


@dataclass(kw_only=True)
class CardArguments(CommonArguments):
    results: str = field(metadata={"help": "What `spot-hf evaluate` wrote."})
    model: str = field(metadata={"help": "Directory of the model, with its card."})
    model_name: str | None = field(default=None, metadata={"help": "Its name in the results (default: the directory's)."})


# ----------------------------------------------------------------------------------------------------------- commands


def convert(arguments: ConvertArguments) -> int:
    """Convert a ViT, DeiT, DINO, DINOv2, MAE or SPoT checkpoint to a SpotViT that AutoModel and pipeline load."""
    from .conversion.convert import convert_checkpoint
    from .hub.uploads import push_folder

    _check_push(arguments.push_to_hub, "hub_model_id", arguments.hub_model_id)
    report = convert_checkpoint(
        arguments.source_model,
        arguments.output_dir,
        revision=arguments.revision,
        num_tokens=arguments.num_tokens,
        placement=arguments.placement,
        num_labels=arguments.num_labels,
        num_attention_heads=arguments.num_attention_heads,
        seed=arguments.seed,
        overwrite_output_dir=arguments.overwrite_output_dir,
        repo_id=arguments.hub_model_id,
    )
    print(report.summary())
    if arguments.push_to_hub and arguments.hub_model_id:
        url = push_folder(
            arguments.output_dir,
            arguments.hub_model_id,
            private=arguments.hub_private,
            message=f"SpotViT converted from {report.source_model}",
        )
        print(f"pushed to   {url}")
    return 0


def classify(arguments: ClassifyArguments, images: Sequence[str]) -> int:
    """Classify images: files, directories or URLs. A broken image is named, and the others still run."""
    from .classification import classify_images, print_results

    _at_least_one(arguments, "top_k", "batch_size")
    results = classify_images(
        arguments.model,
        images,
        revision=arguments.revision,
        num_tokens=arguments.num_tokens,
        placement=arguments.placement,
        coordinates_file=arguments.coordinates,
        seed=arguments.seed,
        top_k=arguments.top_k,
        batch_size=arguments.batch_size,
    )
    return 1 if print_results(results, as_json=arguments.json) else 0


def oracle(arguments: OracleArguments) -> int:
    """Find the positions that serve a frozen model best, for every image of a data set, and share them."""
    from .oracle.arguments import OracleRunArguments
    from .oracle.run import run_oracle

    values = {name: value for name, value in vars(arguments).items() if name in OracleRunArguments.__dataclass_fields__}
    values["optimizer_arguments"] = _json_object("optimizer_arguments", arguments.optimizer_arguments)
    # A data set without labels: not every objective needs them.
    values["label_column_name"] = None if arguments.label_column_name.lower() == "none" else arguments.label_column_name
    run = OracleRunArguments(**values)
    run.check()
    _check_push(arguments.push_to_hub, "hub_dataset_id", arguments.hub_dataset_id)
    run_oracle(
        run,
        arguments.output_dir,
        overwrite_output_dir=arguments.overwrite_output_dir,
        license=arguments.license,
        command=shlex.join(["spot-hf", "oracle", *_ARGV]),
    )
    if arguments.hub_dataset_id and _is_first_process():
        names = ("output_dir", "hub_dataset_id", "hub_private", "license")
        return push(PushArguments(**{name: getattr(arguments, name) for name in names}))
    return 0


def push(arguments: PushArguments) -> int:
    """Publish a finished run of `spot-hf oracle` as a data set on the Hub."""
    from .hub.uploads import push_coordinates

    url = push_coordinates(
        arguments.output_dir, arguments.hub_dataset_id, private=arguments.hub_private, license=arguments.license
    )
    print(f"published at {url}")
    return 0


def show(arguments: ShowArguments) -> int:
    """Draw the ways of an image's tokens, and the windows that the model saw, from a coordinate data set."""
    from .coordinates.show import show_coordinates

    show_coordinates(
        arguments.coordinates,
        arguments.image_id,
        arguments.output_dir,
        config=arguments.config,
        split=arguments.split,
        dataset_name=arguments.dataset_name,
        dataset_config_name=arguments.dataset_config_name,
        image_column_name=arguments.image_column_name,
    )
    return 0


def evaluate(arguments: EvaluateArguments) -> int:
    """Measure accuracy by tokens and placement, beside baselines; or, with --coordinates, at another model's positions."""
    from .evaluation.arguments import EvaluationArguments, default_placements
    from .evaluation.baselines import BASELINES
    from .evaluation.run import run_evaluation
    from .evaluation.transfer import evaluate_transfer

    if arguments.coordinates is None:
        for name in ("dataset_name", "output_dir"):
            if getattr(arguments, name) is None:
                raise UsageError(f"--{name} is needed without --coordinates; got none")
        values = {name: value for name, value in vars(arguments).items() if name in EvaluationArguments.__dataclass_fields__}
        with_saliency = arguments.saliency_column_name is not None
        values["placement"] = default_placements(with_saliency) if arguments.placement is None else arguments.placement
        values["baselines"] = list(BASELINES) if arguments.baselines is None else arguments.baselines
        values["baselines"] = [] if values["baselines"] == ["none"] else values["baselines"]
        run_evaluation(
            EvaluationArguments(**values),
            str(arguments.output_dir),
            overwrite_output_dir=arguments.overwrite_output_dir,
            published=arguments.published,
            command=shlex.join(["spot-hf", "evaluate", *_ARGV]),
        )
        return 0
    _at_least_one(arguments, "batch_size", "max_samples")
    if len(arguments.model) != 1:
        raise UsageError(f"--model must be one model with --coordinates; got {len(arguments.model)}")
    for name in ("streaming", "oracle_steps"):
        if getattr(arguments, name):
            raise UsageError(f"--{name} goes without --coordinates; got both")
    evaluate_transfer(
        arguments.model[0],
        arguments.coordinates,
        arguments.dataset_name,
        output_dir=arguments.output_dir,
        config=arguments.config,
        coordinates_split=arguments.split,
        dataset_config_name=arguments.dataset_config_name,
        dataset_split=arguments.dataset_split,
        image_column_name=arguments.image_column_name,
        label_column_name=arguments.label_column_name,
        saliency_column_name=arguments.saliency_column_name,
        max_samples=arguments.max_samples,
        among_labels=arguments.among_labels,
        batch_size=arguments.batch_size,
    )
    return 0


def train(arguments: Any, training: Any) -> int:
    """Fine-tune a SpotViT for few tokens, with random placements. Takes all of transformers' TrainingArguments too."""
    from .training.fine_tuning import run_training

    run_training(arguments, training, command=shlex.join(["spot-hf", "train", *_ARGV]))
    return 0


def pretrain(arguments: Any, training: Any) -> int:
    """Pre-train a SpotViT without labels, by predicting masked windows. Takes all of transformers' TrainingArguments too."""
    from .training.pretraining import run_pretraining

    run_pretraining(arguments, training, command=shlex.join(["spot-hf", "pretrain", *_ARGV]))
    return 0


def card(arguments: CardArguments) -> int:
    """Put the results of an evaluation on a model's card: metadata that the Hub reads, and a table with the command."""
    from .evaluation.model_card import add_results

    print(f"written to {add_results(arguments.model, arguments.results, arguments.model_name)}")
    return 0


def quickstart(arguments: QuickstartArguments) -> int:
    """The whole story in minutes, offline: train two small ViTs on digits, convert, classify with few tokens, reload."""
    from .quickstart import run_quickstart

    _at_least_one(arguments, "batch_size", "max_samples")
    run_quickstart(**{name: value for name, value in vars(arguments).items() if name != "debug"})
    return 0


def benchmark(arguments: BenchmarkArguments) -> int:
    """Time SpotViT at several token counts against the ordinary ViT, alternately, in one run."""
    from .evaluation.benchmark import run_benchmark

    _at_least_one(arguments, "batch_size", "num_threads", "repeats")
    run_benchmark(**{name: value for name, value in vars(arguments).items() if name != "debug"})
    return 0


# A command's arguments are a dataclass, or a function that gives several.
COMMANDS: dict[str, tuple[Callable[..., Any], Callable[..., int]]] = {
    "convert": (ConvertArguments, convert),
    "classify": (ClassifyArguments, classify),
    "oracle": (OracleArguments, oracle),
    "push": (PushArguments, push),
    "show": (ShowArguments, show),
    "evaluate": (EvaluateArguments, evaluate),
    "train": (_train_arguments, train),
    "pretrain": (_pretrain_arguments, pretrain),
    "card": (CardArguments, card),
    "benchmark": (BenchmarkArguments, benchmark),
    "quickstart": (QuickstartArguments, quickstart),
}


def _at_least_one(arguments: Any, *names: str) -> None:
    for name in names:
        value = getattr(arguments, name)
        if value is not None and value < 1:
            raise UsageError(f"--{name} must be at least 1; got {value}")


def _check_push(push_to_hub: bool, name: str, repo_id: str | None) -> None:
    if push_to_hub and not repo_id:
        raise UsageError(f"--push_to_hub needs --{name}, such as user/name; got none")
    if repo_id and not push_to_hub:
        raise UsageError(f"--{name} goes with --push_to_hub; got {repo_id!r} alone")
    if repo_id:
        from .hub.uploads import check_repo_id

        check_repo_id(name, repo_id)


def _json_object(name: str, text: str | None) -> dict[str, Any] | None:
    if text is None:
        return None
    try:
        value = json.loads(text)
    except ValueError:
        value = None
    if not isinstance(value, dict):
        raise UsageError(f"--{name} must be a JSON object, such as '{{\"momentum\": 0.9}}'; got {text!r}")
    return value


def _is_first_process() -> bool:
    """Of those that torchrun or `accelerate launch` started."""
    return os.environ.get("RANK", "0") == "0"


# --------------------------------------------------------------------------------------------------------- entry point


class _Parser(HfArgumentParser):
    """One line for a mistake, without the usage of twenty options before it."""

    def error(self, message: str) -> NoReturn:
        raise UsageError(f"{message} (see `{self.prog} --help`)")


def _usage() -> str:
    lines = ["usage: spot-hf COMMAND [OPTION...]", "", "commands:"]
    lines += [f"  {name:<12}{(function.__doc__ or '').strip().splitlines()[0]}" for name, (_, function) in COMMANDS.items()]
    return "\n".join([*lines, "", "`spot-hf COMMAND --help` shows a command's options; `spot-hf --version` the version."])


def main(argv: Sequence[str] | None = None) -> int:
    """
    Runs one command.

    Args:
        argv: the command and its options; those of the process by default.

    Returns:
        `int`: the exit status: 0, 1 (failed) or 2 (bad usage).
    """
    argv = list(sys.argv[1:] if argv is None else argv)
    if not argv or argv[0] in ("-h", "--help"):
        print(_usage())
        return 0 if argv else 2
    if argv[0] == "--version":
        print(f"spot_hf {__version__}")
        return 0
    name, rest = argv[0], argv[1:]
    _ARGV[:] = rest
    if name not in COMMANDS:
        print(f"spot-hf: error: no command {name!r}; there are {', '.join(COMMANDS)}", file=sys.stderr)
        return 2
    try:
        status = _run(name, rest)
        _end_process_group()
        return status
    except SystemExit as stop:  # argparse's --help
        return int(stop.code or 0)
    except KeyboardInterrupt:
        print(f"\nspot-hf {name}: interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:  # whoever read our output has gone
        raise
    except (ValueError, OSError, ImportError, SafetensorError, StrictDataclassError) as error:
        if "--debug" in rest:
            raise
        from .conversion.errors import ConversionError

        # A strict config's error says on its last line what is wrong, others on their first.
        lines = [line.strip() for line in str(error.__cause__ or error).splitlines() if line.strip()] or [type(error).__name__]
        # Every process of a run finds the same mistake.
        if _is_first_process():
            print(f"spot-hf {name}: error: {lines[-1 if isinstance(error, StrictDataclassError) else 0]}", file=sys.stderr)
        return 2 if isinstance(error, ValueError) and not isinstance(error, ConversionError) else 1


def _end_process_group() -> None:
    """
    Ends what torchrun or `accelerate launch` began, where it did. A process that exits with gloo's threads running can abort
    (pytorch/pytorch#179291), and then the launcher kills the others, which may not have written all yet.
    """
    if "torch" not in sys.modules:  # not every command needs it
        return
    from torch import distributed

    if distributed.is_available() and distributed.is_initialized():
        distributed.barrier()
        distributed.destroy_process_group()
        gc.collect()  # a wrapped model holds the group, in a cycle; the threads end with its last reference


def _run(name: str, rest: list[str]) -> int:
    given, function = COMMANDS[name]
    classes = (given,) if isinstance(given, type) else given()
    parser = _Parser(classes, prog=f"spot-hf {name}", description=function.__doc__)
    if name == "classify":
        parser.add_argument("images", nargs="+", metavar="IMAGE", help="Files, directories or URLs.")
    if name in ("train", "pretrain"):
        # TrainingArguments has a --debug of its own.
        rest = _with_recipe(parser.prog, [argument for argument in rest if argument != "--debug"])
        parser.add_argument("--config", metavar="FILE", help="A recipe: YAML of options, which others on the line replace.")
    arguments, *others = parser.parse_args_into_dataclasses(args=rest)
    if "--debug" not in _ARGV:
        from transformers.utils import logging

        # Our own output says what happens.
        logging.set_verbosity_error()
        logging.disable_progress_bar()
    if name == "classify":
        return function(arguments, others[0].images)
    return function(arguments, *others[: len(classes) - 1])


def _with_recipe(prog: str, rest: list[str]) -> list[str]:
    """Options of the YAML file that `--config` names, before the others: argparse takes the last of several."""
    finder = _Parser((), prog=prog, add_help=False)
    finder.add_argument("--config")
    path = finder.parse_known_args(rest)[0].config
    if path is None:
        return rest
    import yaml

    try:
        with open(path, encoding="utf-8") as file:
            recipe = yaml.safe_load(file)
    except yaml.YAMLError as error:
        raise UsageError(f"--config must be a YAML file; {path!r} is none: {str(error).splitlines()[0]}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"--config must be a file that can be read; got {path!r}: {error}") from None
    if not isinstance(recipe, dict):
        raise UsageError(f"--config must be a YAML file of options, such as `learning_rate: 1e-4`; got {path!r}")
    options: list[str] = []
    for option, value in recipe.items():
        values = value if isinstance(value, list) else [value]
        options += [f"--{option}", *map(str, values)]
    return [*options, *rest]


def main_and_exit() -> NoReturn:
    """The console script: also quiet where the reader of a pipe has gone."""
    try:
        status = main()
        sys.stdout.flush()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        status = 1
    sys.exit(status)
