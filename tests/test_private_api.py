"""`docs/private_api.md` lists what we use of other libraries' private API: all of it, and nothing that is not there."""

import ast
import importlib
import inspect
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest


ROOT = Path(__file__).resolve().parents[1]
LISTED = re.findall(r"^\| `([\w.]+)`", (ROOT / "docs/private_api.md").read_text(encoding="utf-8"), re.MULTILINE)
LIBRARIES = {"transformers", "datasets", "accelerate", "huggingface_hub", "evaluate", "peft", "kornia", "torch"}
# Modules that the libraries' documentation names. What is imported from any other, below a library's top level, is listed.
DOCUMENTED = {
    "transformers": {"image_processing_utils", "image_utils", "modeling_outputs", "modeling_utils", "pipelines", "utils"}
    | {"processing_utils", "trainer_utils"},
    "huggingface_hub": {"dataclasses", "errors", "hf_api", "utils"},
    "accelerate": {"utils"},
    "evaluate": {"utils"},
    "kornia": {"augmentation", "augmentation.auto"},
    "torch": {"nn.utils.rnn", "optim.swa_utils", "utils.data"},
}


def is_private(name: str) -> bool:
    return re.match("_[^_]", name) is not None


def resolve(dotted: str) -> Any:
    """The object of that name; of an attribute that only instances have, the line of its class that sets it."""
    found, path = None, ""
    for name in dotted.split("."):
        path = f"{path}.{name}".lstrip(".")
        if found is None or (inspect.ismodule(found) and not hasattr(found, name)):
            found = importlib.import_module(path)
        elif inspect.isclass(found) and not hasattr(found, name):
            source = "".join(inspect.getsource(one) for one in found.__mro__ if one.__module__ != "builtins")
            found = re.search(rf"self\.{name}\b.*=", source)
            assert found, f"no {dotted}"
        else:
            found = getattr(found, name)
    return found


class Module:
    """A file of the package: what its names stand for, as far as they are other libraries'."""

    def __init__(self, path: Path):
        self.path, self.tree, self.names = path, ast.parse(path.read_text(encoding="utf-8")), {}
        for node in ast.walk(self.tree):
            if isinstance(node, ast.ImportFrom) and node.level == 0:
                self.names |= {alias.asname or alias.name: f"{node.module}.{alias.name}" for alias in node.names}
            elif isinstance(node, ast.Import):
                # `import a.b` binds `a`, `import a.b as c` all of it
                self.names |= {alias.asname or alias.name.split(".")[0]: alias.name for alias in node.names}
        self.names = {name: dotted for name, dotted in self.names.items() if dotted.split(".")[0] in LIBRARIES}
        self.classes = {node.name: node for node in ast.walk(self.tree) if isinstance(node, ast.ClassDef)}

    def own_names(self) -> Iterator[str]:
        """What the file defines: functions, classes, names, attributes of `self`."""
        for node in ast.walk(self.tree):
            if isinstance(node, ast.FunctionDef | ast.ClassDef):
                yield node.name
            elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
                yield node.id
            elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store) and ast.unparse(node.value) == "self":
                yield node.attr

    def attributes(self) -> Iterator[str]:
        for node in ast.walk(self.tree):
            if isinstance(node, ast.Attribute):
                yield node.attr
            elif isinstance(node, ast.Call) and ast.unparse(node.func) in ("getattr", "hasattr", "setattr"):
                yield ast.unparse(node.args[1]).strip("'\"")


MODULES = [Module(path) for path in sorted((ROOT / "src/spot_hf").rglob("*.py"))]


def library_bases(name: str) -> Iterator[type]:
    """The other libraries' classes that our class of this name inherits from."""
    for module in MODULES:
        for base in module.classes[name].bases if name in module.classes else []:
            expression = ast.unparse(base).split("[")[0]
            root, _, rest = expression.partition(".")
            if root in module.names:
                yield resolve(f"{module.names[root]}.{rest}".rstrip("."))
            else:
                yield from library_bases(expression)


@pytest.mark.parametrize("name", LISTED)
def test_what_is_listed_exists(name):
    resolve(name)


def test_imports_are_listed():
    unlisted = set()
    for module in MODULES:
        for dotted in set(module.names.values()) - set(LISTED):
            library, _, module_name = dotted.rpartition(".")[0].partition(".")
            documented = not module_name or module_name in DOCUMENTED.get(library, ())
            if not documented or any(map(is_private, dotted.split("."))):
                unlisted.add((module.path.name, dotted))
    assert unlisted == set()


def test_attributes_are_listed():
    known = {name for module in MODULES for name in module.own_names()} | {name.rpartition(".")[2] for name in LISTED}
    used = {(module.path.name, name) for module in MODULES for name in module.attributes() if is_private(name)}
    assert {(file, name) for file, name in used if name not in known} == set()


def test_overrides_are_listed():
    """Among the private names of our classes, those that a class of another library has too."""
    listed = {(resolve(name.rpartition(".")[0]), name.rpartition(".")[2]) for name in LISTED}
    unlisted = set()
    for name, node in ((name, node) for module in MODULES for name, node in module.classes.items()):
        named = {
            getattr(one, "name", None) or ast.unparse(one).partition("=")[0].partition(":")[0].strip() for one in node.body
        }
        for base in library_bases(name):
            overrides = {one for one in named if is_private(one) and hasattr(base, one)}
            unlisted |= {(name, one) for one in overrides if not listed & {(owner, one) for owner in base.__mro__}}
    assert unlisted == set()
