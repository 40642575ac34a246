"""Shared fixtures: tiny models, real weights where they are, a local Hub."""

import inspect
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest


# Before anything of Hugging Face is imported: nothing here may reach the network.
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
# Small tensors: threads cost more than they give, and one thread gives the same bits in every process.
os.environ.setdefault("OMP_NUM_THREADS", "1")

ROOT = Path(__file__).resolve().parents[1]
SHARED = Path(os.environ.get("SPOT_SHARED", ROOT.parent / "shared"))
SIDE_PACKAGES = Path(sys.prefix) / "side"


def shared(path: str) -> Path:
    """A file of `../shared` (or `$SPOT_SHARED`); skips the test where it is absent."""
    if not (SHARED / path).exists():
        pytest.skip(f"needs {path} of the folder shared/ (looked in {SHARED}; set SPOT_SHARED)")
    return SHARED / path


@pytest.fixture(scope="session")
def vit_tiny() -> Path:
    """Real weights: ViT-Ti/16 of ImageNet-1k."""
    return shared("models/vit-tiny-patch16-224")


@pytest.fixture(scope="session")
def deit_tiny() -> Path:
    """Real weights: DeiT-Ti/16 of ImageNet-1k."""
    return shared("models/deit-tiny-patch16-224")


@pytest.fixture(scope="session")
def nips2017():
    """1,000 photographs with ImageNet-1k labels."""
    from datasets import load_dataset

    return load_dataset(str(shared("data/nips2017")), split="validation")


# ------------------------------------------------------------------------------------------------------- small inputs


@pytest.fixture(scope="session")
def photos(tmp_path_factory) -> list[str]:
    """Files of three small pictures, smooth and of different sizes and shapes."""
    import numpy as np
    from PIL import Image

    directory = tmp_path_factory.mktemp("photos")
    generator = np.random.default_rng(0)
    files = []
    for i, size in enumerate([(60, 45), (40, 70), (48, 48)]):
        coarse = generator.integers(0, 256, (5, 5, 3), dtype=np.uint8)
        Image.fromarray(coarse).resize(size, Image.Resampling.BICUBIC).save(directory / f"{i}.png")
        files.append(str(directory / f"{i}.png"))
    return files


@pytest.fixture(scope="session")
def tiny_vit(tmp_path_factory) -> Path:
    """A random ViT classifier as transformers saves it, with an image processor and a card that names a licence."""
    import torch
    from transformers import ViTConfig, ViTForImageClassification, ViTImageProcessor

    directory = tmp_path_factory.mktemp("tiny_vit")
    labels = ["ant", "bee", "cat", "dog", "eel"]
    config = ViTConfig(
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=64,
        image_size=32,
        patch_size=8,
        id2label=dict(enumerate(labels)),
        label2id={label: i for i, label in enumerate(labels)},
        initializer_range=0.3,  # or all logits are nearly equal
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = ViTForImageClassification(config)
        for parameter in (model.vit.embeddings.position_embeddings, model.vit.embeddings.cls_token, model.classifier.bias):
            torch.nn.init.normal_(parameter, std=0.3)
    model.save_pretrained(directory)
    ViTImageProcessor(size={"height": 32, "width": 32}, resample=3).save_pretrained(directory)
    (directory / "README.md").write_text("---\nlicense: cc-by-4.0\n---\n\n# A tiny ViT\n")
    return directory


@pytest.fixture(scope="module")
def model(tiny_vit, tmp_path_factory) -> Path:
    """The directory of the SpotViT that is converted from it, each module's own."""
    from spot_hf import convert_checkpoint

    directory = tmp_path_factory.mktemp("model") / "tiny"
    convert_checkpoint(tiny_vit, directory)
    return directory


# -------------------------------------------------------------------------------------------- finished runs of the oracle


@pytest.fixture(scope="session")
def data_cache(tmp_path_factory):
    """What `load_dataset` prepares from here on goes to a folder of the tests' own."""
    import datasets

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.mktemp("cache"))
        yield


@pytest.fixture(scope="session")
def made(tiny_vit, data_cache, tmp_path_factory):
    """Model, pictures and finished run, of 4 and of 9 tokens."""
    from coordinate_runs import make_run

    return make_run(tiny_vit, tmp_path_factory.mktemp("coordinates"))


@pytest.fixture(scope="session")
def nameless(made, tmp_path_factory):
    """The same pictures as bytes without names, and positions with window scales."""
    from coordinate_runs import make_nameless_run

    return make_nameless_run(made, tmp_path_factory.mktemp("nameless"))


@pytest.fixture(scope="session")
def other_model(made, tmp_path_factory) -> str:
    """Another model, which sees a crop of 48 × 48 pixels."""
    from coordinate_runs import save_cropping_model

    return save_cropping_model(made, tmp_path_factory.mktemp("other") / "cropping")


# ------------------------------------------------------------------------------------------- local Hub, new processes


@pytest.fixture(scope="module")
def hub(tmp_path_factory):
    """A local Hub. Tokens: `hf_alice` and `hf_bob` write to their own repositories, `hf_alice_reader` reads alice's."""
    from hub.server import Hub

    tokens = {"hf_alice": "alice", "hf_bob": "bob", "hf_alice_reader": {"user": "alice", "role": "read"}}
    with Hub(tmp_path_factory.mktemp("hub"), tokens=tokens) as server:
        yield server


def _only_loopback():
    """Makes a connection to anywhere else an error."""
    import sys

    def check(event, arguments):
        address = arguments[0] if event == "socket.getaddrinfo" else arguments[1] if event == "socket.connect" else None
        host = address[0] if isinstance(address, tuple) else address if event == "socket.getaddrinfo" else None
        if host not in (None, "localhost", "127.0.0.1", "::1"):
            raise ConnectionError(f"a test may not connect to {host}")

    sys.addaudithook(check)


def _without_spot_hf():
    """Makes `import spot_hf` fail, as where it is not installed."""
    import sys

    class Absent:
        def find_spec(self, name, path=None, target=None):
            if name.partition(".")[0] == "spot_hf":
                raise ModuleNotFoundError(f"No module named {name!r}", name=name)

    sys.meta_path.insert(0, Absent())
    try:
        import spot_hf  # noqa: F401
    except ModuleNotFoundError:
        return
    raise AssertionError("spot_hf can be imported")


@pytest.fixture(scope="session")
def fresh_process(tmp_path_factory) -> Callable[..., Any]:
    """
    Calls a function in a new interpreter, with empty caches of Hugging Face's libraries, and returns what it returns.

    `fresh_process(function, *arguments, hub=None, token=None, without_spot_hf=False, xet=False)`: the function brings its own
    imports; its arguments and its result are JSON. With a `hub` the process is online, and that Hub is all that it can
    reach. `HF_ENDPOINT` is read at import, and remote code stays loaded: hence the process.
    """

    def call(function, *arguments, hub=None, token=None, without_spot_hf=False, xet=False, timeout=300):
        home = tmp_path_factory.mktemp("process")
        steps = [_only_loopback, *([_without_spot_hf] if without_spot_hf else [])]
        lines = [inspect.getsource(step) + f"\n{step.__name__}()\n" for step in steps]
        lines += [
            inspect.getsource(function),
            "import json, pathlib, sys",
            f"result = {function.__name__}(*json.loads(sys.argv[1]))",
            "assert 'spot_hf' not in sys.modules" if without_spot_hf else "",
            "pathlib.Path(sys.argv[2]).write_text(json.dumps(result))",
        ]
        (home / "script.py").write_text("\n".join(lines))
        environment = {k: v for k, v in os.environ.items() if not k.startswith("HF_") and not k.lower().endswith("_proxy")}
        environment |= {
            "HF_HOME": str(home / "huggingface"),
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "HF_HUB_OFFLINE": "0" if hub else "1",
            "HF_HUB_DISABLE_XET": "0" if xet else "1",
            "OMP_NUM_THREADS": "1",
            **({"HF_ENDPOINT": hub.url} if hub else {}),
            **({"HF_TOKEN": token} if token else {}),
        }
        command = [sys.executable, "script.py", json.dumps(arguments, default=str), "result.json"]
        done = subprocess.run(command, env=environment, cwd=home, capture_output=True, text=True, timeout=timeout)
        if done.returncode:
            output = done.stdout[-2000:] + done.stderr[-6000:]
            pytest.fail(f"{function.__name__} failed in its process:\n{output}", pytrace=False)
        return json.loads((home / "result.json").read_text())

    return call


# ------------------------------------------------------------------------------------------------ the page of the demo


CHROMIUM = [
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync",
]  # fmt: skip


def find_chromium() -> str | None:
    names = ("chromium", "chromium-browser", "google-chrome")
    return next(filter(None, map(shutil.which, names)), None)


@pytest.fixture(scope="session")
def chromium():
    """A headless Chromium; skipped where the machine has none."""
    sync_api = pytest.importorskip("playwright.sync_api", reason="the extra browser is not installed: make test-browser")
    path = find_chromium()
    if path is None:
        pytest.skip("needs Chromium: there is no `chromium` on the path")
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=CHROMIUM)
        yield browser
        browser.close()


@pytest.fixture
def run_node(tmp_path) -> Callable[[str, list[dict]], list[Any]]:
    """Runs a script of tests/demo on a list of cases, in a temporary folder: what it answers to each. Arrays go through
    files of raw numbers there."""
    node = shutil.which("node")
    if node is None:
        pytest.skip("needs Node.js: there is no `node` on the path")

    def run(script: str, cases: list[dict]) -> list[Any]:
        (tmp_path / "cases.json").write_text(json.dumps(cases))
        done = subprocess.run(
            [node, str(ROOT / "tests/demo" / script), str(ROOT / "src/spot_hf/demo/page")],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=300,
        )
        assert done.returncode == 0, done.stderr[-3000:]
        return json.loads(done.stdout)

    return run
