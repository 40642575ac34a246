"""The documents: links lead somewhere, commands exist, code compiles, and nothing makes sense on one machine only."""

import ast
import re
from pathlib import Path

import pytest

from spot_hf.cli import COMMANDS
from spot_hf.version import __version__


ROOT = Path(__file__).resolve().parents[1]
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")])
LINK = re.compile(r"\]\(([^)\s]+)\)")
CODE = re.compile(r"^```(\w*)\n(.*?)^```", re.DOTALL | re.MULTILINE)
# In code; in a sentence, any word may follow "spot-hf".
COMMAND = re.compile(r"(?:^|`|\s)spot-hf[ \n]+([a-z][\w-]*)")


def _anchors(page: Path) -> set[str]:
    """GitHub's anchors of a page's headings."""
    text = CODE.sub("", page.read_text(encoding="utf-8"))
    headings = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def _code_spans(text: str) -> list[str]:
    """Blocks that are not Python, and what stands in backticks."""
    blocks = [body for language, body in CODE.findall(text) if language != "python"]
    return [*blocks, *re.findall(r"`([^`]+)`", CODE.sub("", text))]


def test_the_readme_is_short():
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) <= 150


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page):
    for target in LINK.findall(CODE.sub("", page.read_text(encoding="utf-8"))):
        if re.match(r"[a-z]+:", target):
            continue
        path, _, anchor = target.partition("#")
        linked = (page.parent / path).resolve() if path else page
        assert linked.exists(), f"{page.name}: {target}"
        if anchor:
            assert anchor in _anchors(linked), f"{page.name}: no heading for {target}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_nothing_makes_sense_on_one_machine_only(page):
    text = page.read_text(encoding="utf-8")
    for local in ("../shared", "/tmp/", "/home/", "/work/"):
        assert local not in text, f"{page.name}: {local}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_commands_exist(page):
    for code in _code_spans(page.read_text(encoding="utf-8")):
        for name in COMMAND.findall(code):
            assert name in list(COMMANDS), f"{page.name}: spot-hf {name}"


def test_the_documents_name_every_command():
    text = "\n".join(page.read_text(encoding="utf-8") for page in PAGES if "results" not in page.parts)
    named = {name for code in _code_spans(text) for name in COMMAND.findall(code)}
    assert named >= set(COMMANDS)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_python_compiles(page):
    for language, body in CODE.findall(page.read_text(encoding="utf-8")):
        if language == "python":
            ast.parse(body)


def test_the_version_is_the_same_everywhere():
    assert f"\nversion: {__version__}\n" in (ROOT / "CITATION.cff").read_text(encoding="utf-8")
    assert f"## [{__version__}]" in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
