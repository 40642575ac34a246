"""Imports run one way, what ships stands alone, and nothing is imported before it is needed.

Imports are read from the source; those for types alone (`if TYPE_CHECKING:`) do not count. Those inside functions do for the
levels, and not for cycles: a cycle is what an import can stumble over.
"""

import ast
import json
import runpy
import subprocess
import sys
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path

import pytest

import spot_hf


ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "src" / "spot_hf"
# Modules that are evaluate's, and copied flat to the Hub: not of this package's imports.
METRICS = PACKAGE / "evaluation" / "metrics"
FILES = {
    ".".join(path.relative_to(PACKAGE).with_suffix("").parts): path
    for path in sorted(PACKAGE.rglob("*.py"))
    if METRICS not in path.parents
}
MODULES = {name.removesuffix(".__init__") if name != "__init__" else "": path for name, path in FILES.items()}

# From the top down: a module imports from its own level and from those below it.
LEVELS = [
    {"cli", "__main__", "quickstart", "quickstart_report", "classification", "recipes", "registration", ""},
    {"conversion", "oracle", "training", "evaluation", "export", "demo"},
    {"coordinates", "hub"},
    {"jobs", "data"},
    {
        "configuration_spot_vit", "modeling_spot_vit", "windows", "positions", "placement", "pretraining_spot_vit",
        "image_processing_spot_vit", "frames", "decoding", "batch_feature", "drawing", "foveation", "budgets", "merging",
        "placer", "input_checks", "pipeline_spot_vit", "segmentation_spot_vit", "segmentation_pipeline", "segmentation_maps",
        "zero_shot_spot_vit", "zero_shot_pipeline",
        "configuration_spot", "modeling_spot", "configuration_spot_cnn", "modeling_spot_cnn", "golden", "version",
        "backbone_spot_vit", "handler",
    },
]  # fmt: skip
SHIPPED = LEVELS[-1]
LONGEST = 450  # lines
LONGER = dict.fromkeys(SHIPPED, 600)  # cannot be put into folders


def imports_of(module: str, of_functions: bool) -> Iterator[str]:
    """Names of this package's modules that a module imports."""
    package = module if MODULES[module].name == "__init__.py" else module.rpartition(".")[0]

    def visit(node: ast.AST) -> Iterator[str]:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test):
                continue
            if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda) and not of_functions:
                continue
            if isinstance(child, ast.ImportFrom):
                yield from targets(child)
            elif isinstance(child, ast.Import):
                yield from (one.name.partition(".")[2] for one in child.names if one.name.split(".")[0] == "spot_hf")
            else:
                yield from visit(child)

    def targets(node: ast.ImportFrom) -> Iterator[str]:
        if node.level == 0:
            if (node.module or "").split(".")[0] != "spot_hf":
                return
            base = (node.module or "").partition(".")[2]
        else:
            parts = package.split(".") if package else []
            above = parts[: len(parts) - (node.level - 1)]
            base = ".".join([*above, *([node.module] if node.module else [])])
        for alias in node.names:  # `from . import name` may import a module or a name of the package
            inner = f"{base}.{alias.name}".lstrip(".")
            yield inner if inner in MODULES else base

    yield from visit(ast.parse(MODULES[module].read_text(encoding="utf-8")))


def level_of(module: str) -> int:
    return next(i for i, level in enumerate(LEVELS) if module.split(".")[0] in level)


def test_every_module_has_its_level():
    assert {name.split(".")[0] for name in MODULES} == set().union(*LEVELS)


def test_the_imports_are_read():
    """Of every kind: or the tests below would mean little."""
    assert {"jobs.versions", "modeling_spot_vit"} <= set(imports_of("hub.loading", of_functions=False))
    assert "modeling_spot_vit" not in set(imports_of("hub.cards", of_functions=True))  # for types alone
    assert "registration" in set(imports_of("", of_functions=True)) - set(imports_of("", of_functions=False))
    assert "windows" in set(imports_of("modeling_spot_vit", of_functions=False))
    unknown = {one for name in MODULES for one in imports_of(name, of_functions=True)} - set(MODULES)
    assert not unknown


def test_imports_run_one_way():
    backwards = [
        f"{module or 'spot_hf'} imports {imported or 'spot_hf'}"
        for module in MODULES
        for imported in imports_of(module, of_functions=True)
        if level_of(imported) < level_of(module)
    ]
    assert not backwards, "\n".join(backwards)


def test_no_cycle():
    graph = {module: set(imports_of(module, of_functions=False)) - {module} for module in MODULES}
    while leaves := {module for module, imported in graph.items() if not imported & set(graph)}:
        graph = {module: imported for module, imported in graph.items() if module not in leaves}
    assert not graph, f"in cycles, or above them: {sorted(graph)}"


@pytest.mark.parametrize("module", sorted(SHIPPED))
def test_what_ships_imports_its_siblings_alone(module):
    """The Hub copies remote code flat: `from .sibling import name`, as transformers finds it, and nothing else of ours."""
    for node in ast.walk(ast.parse(MODULES[module].read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            assert not any(one.name.split(".")[0] == "spot_hf" for one in node.names), ast.unparse(node)
        elif isinstance(node, ast.ImportFrom):
            assert (node.module or "").split(".")[0] != "spot_hf" or node.level, ast.unparse(node)
            if node.level:
                assert node.level == 1 and node.module in SHIPPED, ast.unparse(node)


def test_no_module_is_too_long():
    lengths = {module: len(path.read_text(encoding="utf-8").splitlines()) for module, path in MODULES.items()}
    longer = {module: length for module, length in lengths.items() if length > LONGER.get(module, LONGEST)}
    assert not longer


# -------------------------------------------------------------------------------------------------- imported when needed

HEAVY = ["datasets", "pandas", "pyarrow", "matplotlib", "kornia"]


def loaded_by(code: str, names: list[str]) -> list[str]:
    """Which of these modules a new interpreter has after it ran the code."""
    ask = f"import json, sys; print(json.dumps([name for name in {names!r} if name in sys.modules]))"
    done = subprocess.run([sys.executable, "-c", f"{code}\n{ask}"], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


def test_importing_the_package_imports_little():
    assert loaded_by("import spot_hf", [*HEAVY, "torch", "transformers", "spot_hf"]) == ["spot_hf"]


def test_registration_imports_no_data_libraries():
    code = "import transformers, spot_hf\nassert 'spot_vit' in transformers.models.auto.configuration_auto.CONFIG_MAPPING"
    assert loaded_by(code, [*HEAVY, "spot_hf.registration"]) == ["spot_hf.registration"]


@pytest.mark.parametrize(
    "module", ["image_processing_spot_vit", "modeling_spot_vit", "frames", "decoding", "hub.loading", "data.source"]
)
def test_any_module_may_be_the_first(module):
    """Before transformers, and also where registration imports it: a worker process begins with an image processor."""
    code = f"import spot_hf.{module}\nfrom transformers import AutoConfig\nAutoConfig.for_model('spot_vit')"
    assert loaded_by(code, ["spot_hf.registration"]) == ["spot_hf.registration"]


@pytest.mark.parametrize("arguments", [["--help"], ["--version"], []])
def test_help_imports_neither_torch_nor_transformers(arguments):
    code = f"from spot_hf.cli import main\nmain({arguments!r})"
    assert loaded_by(code, [*HEAVY, "torch", "transformers", "numpy", "spot_hf.cli"]) == ["spot_hf.cli"]


@pytest.mark.parametrize("name", spot_hf.__all__)
def test_every_public_name_can_be_imported(name):
    value = getattr(spot_hf, name)
    assert name in dir(spot_hf)
    home = getattr(value, "__module__", None)
    assert name == "__version__" or home is None or home.startswith("spot_hf.")
    assert getattr(import_module("spot_hf"), name) is value


def test_any_other_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="module 'spot_hf' has no attribute 'SpotViTForNothing'"):
        spot_hf.SpotViTForNothing  # noqa: B018
    with pytest.raises(ImportError, match="cannot import name 'nothing'"):
        from spot_hf import nothing  # noqa: F401


def test_files_that_are_no_code_are_installed(monkeypatch):
    """By what `setup.py` hands over: an editable install, as of the tests, would not miss any."""
    setuptools = pytest.importorskip("setuptools", reason="setuptools builds the package; Python 3.12 does not bring it")
    given: dict = {}
    monkeypatch.setattr(setuptools, "setup", lambda **options: given.update(options))
    monkeypatch.chdir(ROOT)
    runpy.run_path(str(ROOT / "setup.py"))
    installed = {
        path
        for package, patterns in given["package_data"].items()
        for pattern in patterns
        for path in (ROOT / "src" / package.replace(".", "/")).glob(pattern)
    }
    files = {path for path in (ROOT / "src/spot_hf").rglob("*") if path.is_file() and "__pycache__" not in path.parts}
    assert {path for path in files if path.suffix not in (".py", ".pyc")} <= installed
    assert "spot_hf.hub_cards" in given["packages"]
