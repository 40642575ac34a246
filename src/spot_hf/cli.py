"""`spot-hf`: one command line for what the package does. Each command is a dataclass of arguments, declared by its job, and a
function; both are imported when the command runs.

Exit status: 0, 1 (failed), 2 (bad usage). A user's mistake is one line on stderr; `--debug` shows the traceback.
"""

import gc
import logging
import os
import sys
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields
from importlib import import_module
from typing import TYPE_CHECKING, Any, NoReturn

from .jobs.threads import let_threads_sleep, limit_threads
from .version import __version__


if TYPE_CHECKING:
    from transformers import HfArgumentParser


@dataclass(frozen=True)
class Command:
    """
    Attributes:
        help: one line, for `spot-hf --help`.
        function: `module:function` of the package. It takes the arguments, and may return an exit status.
        arguments: `module:class`, one dataclass or several.
        takes_images: has a list of images as positional arguments, which the function takes too.
        takes_model: has a model as its positional argument, which the function takes too.
        takes_recipe: has `--config`, a YAML file of options.
        records_command: the function takes `command`, how it was started, for the record.
    """

    help: str
    function: str
    arguments: tuple[str, ...]
    takes_images: bool = False
    takes_model: bool = False
    takes_recipe: bool = False
    records_command: bool = False

    @property
    def classes(self) -> list[type]:
        return [_load(name) for name in self.arguments]


COMMANDS = {
    "convert": Command(
        "Convert a checkpoint (ViT, DINOv3, CLIP, SigLIP, ..., SPoT, or a CNN) to a model that AutoModel and pipeline load.",
        "conversion.convert:run_conversion",
        ("conversion.arguments:ConvertArguments",),
    ),
    "classify": Command(
        "Classify images: files, directories or URLs. Images that cannot be read are named and skipped.",
        "classification:run_classification",
        ("classification:ClassifyArguments",),
        takes_images=True,
    ),
    "oracle": Command(
        "Find the positions that serve a frozen model best, for every image of a data set, and share them.",
        "oracle.run:run_oracle",
        ("oracle.arguments:OracleArguments",),
        records_command=True,
    ),
    "push": Command(
        "Publish the coordinates of a finished run of `spot-hf oracle` on the Hub. (Models: spot_hf.push_model, in Python.)",
        "hub.uploads:run_push",
        ("hub.uploads:PushArguments",),
    ),
    "show": Command(
        "Draw the paths of an image's tokens, and the windows that the model saw, from a coordinate data set.",
        "coordinates.show:show_coordinates",
        ("coordinates.show:ShowArguments",),
    ),
    "evaluate": Command(
        "Measure accuracy by tokens and placement, beside baselines; or, with --coordinates, at another model's positions.",
        "evaluation.run:run_evaluation",
        ("evaluation.arguments:EvaluationArguments",),
        records_command=True,
    ),
    "calibrate": Command(
        "Pick how sure a model must be to stop after few tokens, for an accuracy or a cost, and save it in its config.",
        "evaluation.calibration:run_calibration",
        ("evaluation.calibration:CalibrateArguments",),
        records_command=True,
    ),
    "train": Command(
        "Fine-tune a SpotViT for few tokens, with random placements. Takes all of transformers' TrainingArguments too.",
        "training.fine_tuning:run_training",
        ("training.arguments:TrainArguments", "training.arguments:SpotTrainingArguments"),
        takes_recipe=True,
        records_command=True,
    ),
    "train-placer": Command(
        "Teach a SpotViT where to look, without labels: a placer that agrees with the model's own full-grid answers.",
        "training.placer:run_placer_training",
        ("training.placer:TrainPlacerArguments",),
        records_command=True,
    ),
    "pretrain": Command(
        "Pre-train a SpotViT without labels, by predicting masked windows. Takes all of transformers' TrainingArguments too.",
        "training.pretraining:run_pretraining",
        ("training.arguments:PretrainArguments", "training.arguments:SpotPretrainingArguments"),
        takes_recipe=True,
        records_command=True,
    ),
    "card": Command(
        "Write a model's card where it lacks one, and put the results of an evaluation on it: metadata and a table.",
        "evaluation.model_card:add_results",
        ("evaluation.model_card:CardArguments",),
    ),
    "export": Command(
        "Write a SpotViT for ONNX Runtime, torch.export or ExecuTorch, and compare it with PyTorch.",
        "export.export:run_export",
        ("export.arguments:ExportArguments",),
    ),
    "demo": Command(
        "Write a page on which a model's tokens are dragged, in the browser alone, and serve it or make it a Space.",
        "demo.run:run_demo",
        ("demo.arguments:DemoArguments",),
    ),
    "benchmark": Command(
        "Time SpotViT at several token counts against the ordinary ViT, alternately, in one run.",
        "evaluation.benchmark:run_benchmark",
        ("evaluation.benchmark:BenchmarkArguments",),
    ),
    "verify": Command(
        "Tell whether a model computes here what it did where it was saved, by the golden outputs beside its weights.",
        "hub.verification:run_verification",
        ("hub.verification:VerifyArguments",),
        takes_model=True,
    ),
    "quickstart": Command(
        "The whole story in minutes, offline: train two small ViTs on digits, convert, classify with few tokens, reload.",
        "quickstart:run_quickstart",
        ("quickstart:QuickstartArguments",),
    ),
}
# What `spot-hf evaluate` is with --coordinates.
TRANSFER = Command(
    "Measure accuracy at the positions of a coordinate data set.",
    "evaluation.transfer:evaluate_transfer",
    ("evaluation.arguments:TransferArguments",),
)


def _load(name: str) -> Any:
    """Of `module:name` of this package."""
    module, _, attribute = name.partition(":")
    return getattr(import_module(f".{module}", __package__), attribute)


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
    if os.getcwd() not in sys.path and "" not in sys.path:
        sys.path.append(os.getcwd())  # as `python -m` has it: where `--placement module:function` may lie
    name, rest = argv[0], argv[1:]
    if name not in COMMANDS:
        print(f"spot-hf: error: no command {name!r}; there are {', '.join(COMMANDS)}", file=sys.stderr)
        return 2
    try:
        with _console_log(), _console_warnings(f"spot-hf {name}"):
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
    except Exception as error:
        if "--debug" in rest or not _is_users_mistake(error):
            raise
        if _is_first_process():  # every process of a run finds the same mistake
            print(f"spot-hf {name}: error: {_line_of(error)}", file=sys.stderr)
        return _status_of(error)


def _usage() -> str:
    lines = ["usage: spot-hf COMMAND [OPTION...]", "", "commands:"]
    lines += [f"  {name:<12}{command.help}" for name, command in COMMANDS.items()]
    return "\n".join([*lines, "", "`spot-hf COMMAND --help` shows a command's options; `spot-hf --version` the version."])


def _run(name: str, rest: list[str]) -> int:
    command = COMMANDS[name]
    if command.records_command:  # a job, with workers that decode beside it
        let_threads_sleep()
    from .jobs.versions import public_command

    given = [word for word in rest if word != "--debug"]
    if name == "evaluate":
        command = _evaluation_or_transfer(given)
    parser = _parser(name, command)
    if command.takes_recipe:
        from .recipes import with_recipe

        given = with_recipe(parser, command.classes, given)
    parsed = parser.parse_args_into_dataclasses(args=given)
    arguments = list(parsed[: len(command.classes)])
    if command.takes_images:
        arguments.append(parsed[-1].images)
    if command.takes_model:
        arguments.append(parsed[-1].model)
    if "--debug" not in rest:
        from transformers.utils import logging as transformers_logging

        # Our own output says what happens.
        transformers_logging.set_verbosity_error()
        transformers_logging.disable_progress_bar()
    record = {}
    if command.records_command:
        limit_threads()
        record = {"command": public_command(["spot-hf", name, *rest])}
    status = _load(command.function)(*arguments, **record)
    return status if isinstance(status, int) else 0


def _parser(name: str, command: Command) -> "HfArgumentParser":
    from transformers import HfArgumentParser

    class Parser(HfArgumentParser):
        """One line for a mistake, without the usage of twenty options before it."""

        def error(self, message: str) -> NoReturn:
            raise ValueError(f"{message} (see `{self.prog} --help`)")

    parser = Parser(tuple(command.classes), prog=f"spot-hf {name}", description=command.help)
    if command.takes_images:
        parser.add_argument("images", nargs="+", metavar="IMAGE", help="Files, directories or URLs.")
    if command.takes_model:
        parser.add_argument("model", metavar="MODEL", help="Directory or Hub id.")
    if command.takes_recipe:  # TrainingArguments has a --debug of its own
        parser.add_argument("--config", metavar="FILE", help="A recipe: YAML of options, which others on the line replace.")
    else:
        parser.add_argument("--debug", action="store_true", help="Show the traceback of an error.")
    return parser


def _evaluation_or_transfer(rest: list[str]) -> Command:
    """Which of the two `spot-hf evaluate` is; an option of the other one is refused by name."""
    evaluation, transfer = COMMANDS["evaluate"], TRANSFER
    names = [{one.name for cls in command.classes for one in fields(cls)} for command in (evaluation, transfer)]
    given = [word[2:].partition("=")[0] for word in rest if word.startswith("--")]
    if "coordinates" in given:
        chosen, other, goes = transfer, names[0] - names[1], "without"
    else:
        chosen, other, goes = evaluation, names[1] - names[0], "with"
        if "-h" in rest or "help" in given:
            print("With --coordinates: `spot-hf evaluate --coordinates DIR_OR_REPO --help`.\n")
    refused = [name for name in given if name in other]
    if refused:
        raise ValueError(f"--{refused[0]} goes {goes} --coordinates")
    return chosen


# ------------------------------------------------------------------------------------------------- log, errors, processes


@contextmanager
def _console_log() -> Iterator[None]:
    """What the package logs goes to stdout, as it is, on the first process."""
    logger = logging.getLogger(__package__)
    handler: logging.Handler = logging.StreamHandler(sys.stdout) if _is_first_process() else logging.NullHandler()
    level, propagate = logger.level, logger.propagate
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    logger.propagate = False
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)
        logger.propagate = propagate


@contextmanager
def _console_warnings(program: str) -> Iterator[None]:
    """What the package warns of is one line on stderr; other warnings stay as they are."""
    package, show = os.path.dirname(__file__), warnings.showwarning

    def show_line(message: Any, category: type, filename: str, lineno: int, file: Any = None, line: Any = None) -> None:
        if file is None and filename.startswith(package):
            print(f"{program}: warning: {message}", file=sys.stderr)
        else:
            show(message, category, filename, lineno, file, line)

    with warnings.catch_warnings():
        warnings.filterwarnings("always", message=".*lie outside of what the model sees")  # of each image
        warnings.showwarning = show_line  # type: ignore[assignment]
        yield


def _is_users_mistake(error: Exception) -> bool:
    from huggingface_hub.errors import StrictDataclassError
    from safetensors import SafetensorError

    return isinstance(error, ValueError | OSError | ImportError | SafetensorError | StrictDataclassError)


def _line_of(error: Exception) -> str:
    """A strict config's error says on its last line what is wrong, others on their first."""
    from huggingface_hub.errors import StrictDataclassError

    lines = [line.strip() for line in str(error.__cause__ or error).splitlines() if line.strip()] or [type(error).__name__]
    return lines[-1 if isinstance(error, StrictDataclassError) else 0]


def _status_of(error: Exception) -> int:
    from .conversion.errors import ConversionError
    from .export.errors import ExportError

    return 2 if isinstance(error, ValueError) and not isinstance(error, ConversionError | ExportError) else 1


def _is_first_process() -> bool:
    """Of those that torchrun or `accelerate launch` started."""
    return os.environ.get("RANK", "0") == "0"


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


def main_and_exit() -> NoReturn:
    """The console script: also quiet where the reader of a pipe has gone."""
    try:
        status = main()
        sys.stdout.flush()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        status = 1
    sys.exit(status)
