"""The page's modules are run by Node, which the machine may have or not."""

import json
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest


HERE = Path(__file__).resolve().parent
PAGE = HERE.parents[1] / "src" / "spot_hf" / "demo" / "page"


@pytest.fixture(scope="session")
def page_modules(tmp_path_factory) -> Path:
    """A copy of the page's modules beside a `package.json`, without which Node takes them for CommonJS."""
    folder = tmp_path_factory.mktemp("page")
    for module in PAGE.glob("*.js"):
        shutil.copy(module, folder)
    (folder / "package.json").write_text('{"type": "module"}')
    return folder


@pytest.fixture
def run_node(page_modules, tmp_path) -> Callable[[str, list[dict]], list[Any]]:
    """Runs a script of this folder on a list of cases, in a temporary folder: what it answers to each. Arrays go through
    files of raw numbers there."""
    node = shutil.which("node")
    if node is None:
        pytest.skip("needs Node.js: there is no `node` on the path")

    def run(script: str, cases: list[dict]) -> list[Any]:
        (tmp_path / "cases.json").write_text(json.dumps(cases))
        done = subprocess.run(
            [node, str(HERE / script), str(page_modules)], cwd=tmp_path, capture_output=True, text=True, timeout=300
        )
        assert done.returncode == 0, done.stderr[-3000:]
        return json.loads(done.stdout)

    return run
