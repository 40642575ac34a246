"""The page of a model that places its tokens itself and looks until it is sure; and the page as a Space."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from browsing import FIRST_ANSWER, TOLERANCE, Visit, served, write_page
from huggingface_hub import SpaceCard
from PIL import Image
from tiny import pictures, tiny_model, tiny_processor


pytestmark = pytest.mark.browser

PLACER = {"grid_size": 3, "thumbnail_size": 16, "hidden_size": 16, "head": "heatmap"}
LOOKS = [2, 4, 9]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """It stops after the second look at the first picture. Directory, model and inputs."""
    directory = tmp_path_factory.mktemp("model")
    pictures(1)[0].save(directory / "picture.png")
    model, processor = tiny_model(placer=PLACER, placement="learned"), tiny_processor()
    with Image.open(directory / "picture.png") as image:
        pixel_values = processor(image.convert("RGB"), return_tensors="pt")["pixel_values"]
    with torch.no_grad():
        sure = [model(pixel_values, num_tokens=count).logits.softmax(-1).max().item() for count in LOOKS]
    model.config.num_tokens = LOOKS
    model.config.confidence = [(1 + sure[0]) / 2, sure[1] / 2]
    model.save_pretrained(directory)
    processor.save_pretrained(directory)
    return directory, model, pixel_values


@pytest.fixture(scope="module")
def page(model, tmp_path_factory):
    directory, *_ = model
    return write_page(directory, tmp_path_factory.mktemp("page") / "page", "--image", str(directory / "picture.png"))


@torch.no_grad()
def test_it_places_and_stops_as_in_pytorch(chromium, model, page):
    directory, reference, pixel_values = model
    with served(directory, page, "--image", str(directory / "picture.png")) as address:
        there = Visit(chromium, f"{address}#tokens=7")
        assert there.state["placement"] == "learned"
        expected = reference(pixel_values, num_tokens=7).logits.softmax(-1)[0]
        for label, (found, _) in there.probabilities.items():
            assert abs(found - expected[label]) < TOLERANCE
        there.tab.click("#sure")
        there.tab.wait_for_function("document.getElementById('looks').textContent !== ''", timeout=FIRST_ANSWER)
        there.wait()
        said = there.tab.inner_text("#looks")
        looked = reference(pixel_values)
        assert looked.num_tokens.tolist() == [sum(LOOKS[:2])]
        assert said.startswith("2 tokens: ") and ", then 4 tokens: " in said and "9 tokens" not in said
        assert there.state["tokens"] == "4"
        for label, (found, _) in there.probabilities.items():
            assert abs(found - looked.logits.softmax(-1)[0, label]) < TOLERANCE
        assert there.errors == []
        there.tab.close()


def test_the_page_as_a_space(model, page, hub):
    directory, *_ = model
    words = ["demo", "--model", str(directory), "--output_dir", str(page), "--image", str(directory / "picture.png")]
    to_hub = {"HF_ENDPOINT": hub.url, "HF_TOKEN": "hf_alice", "HF_HUB_OFFLINE": "0", "HF_HUB_DISABLE_XET": "1"}
    command = [sys.executable, "-m", "spot_hf", *words, "--push_to_hub", "--hub_space_id", "alice/page"]
    done = subprocess.run(command, env={**os.environ, **to_hub}, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    assert f"published at {hub.url}/spaces/alice/page/commit/" in done.stdout
    space = hub.repos["space", "alice/page"]

    def published() -> dict[str, bytes]:
        files, _ = space.tree(space.resolve("main")[1])
        return {name: space.get(blob) for name, (_, blob) in files.items()}

    files = published()
    assert files["README.md"] == (page / "README.md").read_bytes()  # not the one that the Hub writes into a new Space
    local = [str(directory), str(directory.parent)]
    for path in page.rglob("*"):
        if path.suffix in (".json", ".md", ".html"):
            assert not any(name in path.read_text() for name in local), path
    here = {path.relative_to(page).as_posix() for path in page.rglob("*") if path.is_file()}
    assert set(files) - {".gitattributes"} == here - {"run.json"}  # which knows local names
    data = SpaceCard(Path(page / "README.md").read_text()).data.to_dict()
    assert (data["sdk"], data["app_file"]) == ("static", "index.html")
    assert data["custom_headers"]["cross-origin-embedder-policy"] == "require-corp"
    assert json.loads((page / "site.json").read_text())["files"] == {"model": "onnx/model.onnx", "placer": "onnx/placer.onnx"}

    # A person's own words stay, and examples that are no longer there go.
    (page / "README.md").write_text((page / "README.md").read_text() + "Changed here.\n")
    (page / "examples/0.png").rename(page / "examples/renamed.png")
    assert subprocess.run(command, env={**os.environ, **to_hub}, capture_output=True, timeout=300).returncode == 0
    assert published()["README.md"] == files["README.md"]
    assert {name for name in published() if name.startswith("examples/")} == {"examples/renamed.png"}
