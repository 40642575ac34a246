"""Runs transformers' own test suites on SpotViT: `make conformance`, or

    python scripts/run_conformance.py [--torchvision DIR] [--num_workers 2] [--run_slow] [pytest's arguments, such as -k sdpa]

The suites are those of the installed release of transformers. They come from its source archive, which pip downloads once
into `.conformance/` (not part of the repository), together with our test modules of `tests/conformance/`:

- ModelTesterMixin on `SpotViTModel` and `SpotViTForImageClassification`, in four variants: full grid, coordinates, every
  option, rotary positions; on `SpotViTForPreTraining`; and on `SpotViTForZeroShotImageClassification`;
- ConfigTester on `SpotViTConfig`;
- ImageProcessingTestMixin on `SpotViTImageProcessorPil`, and on `SpotViTImageProcessor` where torchvision is;
- PipelineTesterMixin on the pipelines that SpotViT serves.

About 2 minutes on two cores. It prints what passed and failed, which tests of the suite our modules replace or leave out and
why, and what the suite itself leaves out. The exit status is pytest's: 0 when nothing failed.
"""

import argparse
import ast
import importlib.metadata
import importlib.util
import os
import shutil
import subprocess
import sys
import tarfile
import textwrap
import xml.etree.ElementTree as ElementTree
from collections import Counter, defaultdict
from pathlib import Path

import pytest


ROOT = Path(__file__).resolve().parents[1]
OURS = ROOT / "tests" / "conformance"
WORK = ROOT / ".conformance"

# Our files, and where the suite has such files.
PLACES = {
    "conformance_conftest.py": "conftest.py",
    "conformance_reasons.py": "tests/models/spot_vit/reasons.py",
    "conformance_modeling.py": "tests/models/spot_vit/test_modeling_spot_vit.py",
    "conformance_zero_shot.py": "tests/models/spot_vit/test_zero_shot_spot_vit.py",
    "conformance_image_processing.py": "tests/models/spot_vit/test_image_processing_spot_vit.py",
    "conformance_pipelines.py": "tests/models/spot_vit/test_pipelines_spot_vit.py",
    "conformance_stub_configuration_utils.py": "tests/utils/test_configuration_utils.py",
    "conformance_stub_hub_objects.py": "utils/fetch_hub_objects_for_ci.py",
}
# Files that the suite opens or imports for their presence alone, and settings.
WRITTEN = {
    "src/transformers/__init__.py": "",
    "tests/utils/tiny_model_summary.json": "{}",
    # The suite's own marks are declared in its repository, not in the archive.
    "pytest.ini": "[pytest]\nfilterwarnings = ignore::pytest.PytestUnknownMarkWarning\n",
}
# What of the suite our modules import.
SUITES = ("test_modeling_common", "test_configuration_common", "test_image_processing_common", "test_pipeline_mixin")

SKIP_PREFIX = "spot_vit: "  # as in tests/conformance/conformance_reasons.py


def download(version: str) -> Path:
    """The source archive of this release of transformers, from `.conformance/` or from the package index."""
    archive = WORK / f"transformers-{version}.tar.gz"
    if not archive.exists():
        pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "download", "--quiet"]
        only_source = ["--no-deps", "--no-binary", "transformers", "--dest", str(WORK)]
        subprocess.run([*pip, *only_source, f"transformers=={version}"], check=True)
    return archive


def unpack(archive: Path) -> Path:
    """A fresh tree: the archive's `tests/`, our modules, and stand-ins for what the archive lacks."""
    name = archive.name.removesuffix(".tar.gz")
    tree = WORK / name
    shutil.rmtree(tree, ignore_errors=True)
    with tarfile.open(archive) as file:
        members = [member for member in file.getmembers() if member.name.startswith(f"{name}/tests/")]
        file.extractall(WORK, members=members, filter="data")
    for source, target in PLACES.items():
        (tree / target).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(OURS / source, tree / target)
    for target, text in WRITTEN.items():
        (tree / target).parent.mkdir(parents=True, exist_ok=True)
        (tree / target).write_text(text)
    for suite in SUITES:
        stand_in(tree, tree / "tests" / f"{suite}.py")
    for folder in [tree / "tests", *(path for path in tree.glob("tests/**/") if path.name != "__pycache__")]:
        (folder / "__init__.py").touch()
    return tree


def stand_in(tree: Path, module: Path) -> None:
    """Writes the modules of the suite that `module` imports and the archive lacks, such as `.generation.test_utils`: each
    imported name is an empty class. They are mixins and pipeline tests that no test of ours inherits."""
    for node in ast.walk(ast.parse(module.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.level == 1 and node.module:
            path = tree.joinpath("tests", *node.module.split(".")).with_suffix(".py")
            if not path.exists():
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_text("".join(f"class {alias.name}: pass\n" for alias in node.names))


def run(tree: Path, session: str, paths: list[str], arguments: list[str], **environment: str) -> tuple[int, list]:
    """One run of pytest on the tree; its exit status and its test cases."""
    results = tree / f"results-{session}.xml"
    # One thread per worker: more of them wait for each other.
    environment = {**os.environ, "OMP_NUM_THREADS": "1", **environment}
    command = [sys.executable, "-m", "pytest", "-q", "-rfE", f"--junitxml={results}", *arguments, *paths]
    print(f"== {session}: pytest {' '.join(paths)}", flush=True)
    status = subprocess.run(command, cwd=tree, env=environment).returncode
    if status not in (pytest.ExitCode.OK, pytest.ExitCode.TESTS_FAILED):
        print(
            f"== {session}: pytest stopped with status {status} ({pytest.ExitCode(status).name}); its results are not complete"
        )
    return status, list(ElementTree.parse(results).iter("testcase")) if results.exists() else []


def outcome(case: ElementTree.Element) -> str:
    return next((tag for tag in ("failure", "error", "skipped") if case.find(tag) is not None), "passed")


def report(title: str, reasons: dict[str, list[str]]) -> None:
    """Prints how many tests each reason concerns and which, most frequent first; each name once."""
    print(f"\n{title}: {sum(map(len, reasons.values()))}")
    for reason, names in sorted(reasons.items(), key=lambda item: -len(item[1])):
        print(textwrap.fill(f"{len(names):4}  {reason}", width=120, subsequent_indent=" " * 6))
        print(textwrap.fill(", ".join(dict.fromkeys(names)), 120, initial_indent=" " * 10, subsequent_indent=" " * 10))


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--torchvision",
        type=Path,
        default=Path(sys.prefix, "side"),
        help="a folder with torchvision, where it is not installed: a second run tests its backend (default: %(default)s)",
    )
    parser.add_argument("--num_workers", type=int, default=2, help="processes (default: %(default)s)")
    parser.add_argument("--run_slow", action="store_true", help="also the tests that the suite marks as slow")
    arguments, for_pytest = parser.parse_known_args(argv)

    version = importlib.metadata.version("transformers")
    try:
        tree = unpack(download(version))
    except subprocess.CalledProcessError:
        print(f"error: pip could not download the source archive of transformers {version} into {WORK}", file=sys.stderr)
        return 1
    for_pytest = [f"--numprocesses={arguments.num_workers}", *for_pytest]
    environment = {"RUN_SLOW": "1"} if arguments.run_slow else {}
    folder = "tests/models/spot_vit"
    status, cases = run(tree, "all", [folder], for_pytest, **environment)
    if importlib.util.find_spec("torchvision") is None and (arguments.torchvision / "torchvision").is_dir():
        paths = [f"{folder}/test_{name}_spot_vit.py" for name in ("image_processing", "pipelines")]
        environment["SPOT_CONFORMANCE_TORCHVISION"] = str(arguments.torchvision.resolve())
        second_status, more = run(tree, "torchvision", paths, for_pytest, **environment)
        status, cases = status or second_status, cases + more

    skipped_by_suite, replaced, skipped_by_us = defaultdict(list), defaultdict(list), defaultdict(list)
    for case in cases:
        test = f"{case.get('classname', '').rpartition('.')[2]}.{case.get('name')}"
        for element in case.iter("property"):
            if element.get("name") == "replaces_because":
                replaced[element.get("value")].append(test)
        skipped = case.find("skipped")
        reason = skipped.get("message", "") if skipped is not None else None
        if reason and reason.startswith(SKIP_PREFIX):
            skipped_by_us[reason.removeprefix(SKIP_PREFIX)].append(test)
        elif reason:
            reason = "not a task of this model" if "self.pipeline_model_mapping" in reason else reason
            skipped_by_suite[reason].append(test.partition(".")[2])
    report("Skipped by the suite itself", skipped_by_suite)
    report("Replaced by our modules", replaced)
    report("Skipped by our modules", skipped_by_us)
    counts = Counter(map(outcome, cases))
    failed = counts["failure"] + counts["error"]
    print(
        f"\ntransformers {version}: {counts['passed']} passed, {failed} failed, {counts['skipped']} skipped "
        f"({sum(map(len, skipped_by_us.values()))} of them by our modules)"
    )
    return status


if __name__ == "__main__":
    sys.exit(main())
