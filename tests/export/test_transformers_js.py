"""transformers.js, the npm package, on exported files: pixels, logits and limits are as docs/transformers_js.md says.

`make test-node` installs what they need. transformers_js.mjs answers, in Node, what is asked here."""

import base64
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from queue import Queue
from threading import Thread, Timer

import numpy as np
import pytest
import torch
from conftest import ROOT
from PIL import Image
from tiny import POSITION_KINDS, random_coordinates, random_images, tiny_model, tiny_processor

from spot_hf import (
    SpotImageClassificationPipeline,
    SpotViTForImageClassification,
    SpotViTImageProcessorPil,
    SpotViTModel,
    convert_checkpoint,
)
from spot_hf.placement import isotropic, place_windows


for package in ("onnx", "onnxscript", "onnxruntime"):
    pytest.importorskip(package, reason="the extra onnx is not installed")

from spot_hf.export import OnnxSpotViT, export_model  # noqa: E402


pytestmark = pytest.mark.node

PACKAGE = "@huggingface/transformers"
NODE = Path(os.environ.get("SPOT_NODE", Path(sys.prefix) / "node"))
# Sums in another order, as of ONNX Runtime in Python: test_onnx.py.
TOLERANCE = {"rtol": 0, "atol": 1e-4}


@pytest.fixture(scope="session")
def folder(tmp_path_factory) -> Path:
    """Where a script finds the npm package, the module of `examples/` and the two of the demo's page."""
    if shutil.which("node") is None:
        pytest.skip("needs Node.js: no `node` here")
    if not (NODE / "node_modules" / PACKAGE).is_dir():
        pytest.skip(f"needs the npm package {PACKAGE} in {NODE}: `make test-node` installs it")
    directory = tmp_path_factory.mktemp("node")
    (directory / "node_modules").symlink_to(NODE / "node_modules")
    page = ROOT / "src/spot_hf/demo/page"
    for path in (
        ROOT / "tests/export/transformers_js.mjs",
        ROOT / "examples/transformers_js/spot_vit.mjs",
        page / "placements.mjs",
        page / "preprocess.mjs",
    ):
        shutil.copy(path, directory)
    return directory


@pytest.fixture(scope="session")
def ask(folder):
    """`ask(task, **given)`: an answer of transformers_js.mjs, one process for all; `ask.warnings` of the last one."""
    with (
        (folder / "stderr").open("w") as errors,
        subprocess.Popen(
            ["node", "transformers_js.mjs"],
            cwd=folder,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
        ) as node,
    ):

        def call(task: str, **given):
            patience = Timer(120, node.kill)
            patience.start()
            node.stdin.write(json.dumps({"task": task, **given}, default=_to_json) + "\n")
            node.stdin.flush()
            line = node.stdout.readline()
            patience.cancel()
            assert line, (folder / "stderr").read_text()[-4000:]
            found = json.loads(line)
            call.warnings = found["warnings"]
            return found["answer"]

        yield call
        node.stdin.close()


def _to_json(value):
    if isinstance(value, torch.Tensor):
        name = "bool" if value.dtype == torch.bool else "float32"
        return {"type": name, "dims": value.shape, "data": base64.b64encode(value.contiguous().numpy().tobytes()).decode()}
    return str(value)


def to_tensor(found: dict) -> torch.Tensor:
    assert found["type"] == "float32"
    return torch.from_numpy(np.frombuffer(base64.b64decode(found["data"]), np.float32).copy()).reshape(found["dims"])


# ------------------------------------------------------------------------------------------------------- preprocessing


@pytest.fixture(scope="session")
def pictures(photos, tmp_path_factory) -> list[str]:
    """As people have them: smaller and larger than the model's size, wide, grey, transparent, turned by EXIF."""
    directory = tmp_path_factory.mktemp("pictures")
    coarse = Image.fromarray(np.random.default_rng(1).integers(0, 256, (30, 40, 3), np.uint8))
    large = coarse.resize((641, 403), Image.Resampling.BICUBIC)
    orientation = Image.Exif()
    orientation[0x0112] = 6
    images = {
        "large.png": (large, {}),
        "wide.jpg": (large.resize((601, 75)), {"quality": 90}),
        "turned.jpg": (large, {"quality": 90, "exif": orientation}),
        "grey.png": (large.convert("L"), {}),
        "transparent.png": (Image.merge("RGBA", [*large.split(), large.convert("L")]), {}),
    }
    for name, (image, options) in images.items():
        image.save(directory / name, **options)
    return [*photos, *(str(directory / name) for name in images)]


RECIPES = {
    "squeezed": {},
    "bilinear": {"resample": 2, "image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225]},
    "lanczos": {"resample": 1},
    "cropped": {"size": {"shortest_edge": 53}, "do_center_crop": True, "crop_size": {"height": 48, "width": 48}},
    "shortest edge": {"size": {"shortest_edge": 48}},
    "not normalized": {"do_normalize": False},
}


@pytest.mark.parametrize("recipe", RECIPES)
def test_pixels_are_those_of_python(recipe, pictures, ask, tmp_path):
    processor = tiny_processor(**RECIPES[recipe])
    processor.save_pretrained(tmp_path)
    found = ask("pixels", directory=tmp_path, images=pictures)["ours"]
    assert len(found) == len(pictures)
    for picture, ours in zip(pictures, found, strict=True):
        expected = processor(picture, return_tensors="pt").pixel_values
        assert torch.equal(to_tensor(ours), expected), picture


def test_what_transformers_js_makes_of_pixels_alone(pictures, ask, tmp_path):
    """It does not average over what it shrinks. Where this fails, spot_vit.mjs need not make pixels any more."""
    processor = tiny_processor(image_mean=[0, 0, 0], image_std=[1 / 255] * 3)  # 8-bit pixels
    processor.save_pretrained(tmp_path)
    large = next(picture for picture in pictures if picture.endswith("large.png"))
    theirs = to_tensor(ask("pixels", directory=tmp_path, images=[large])["theirs"][0])
    assert "Image processor type 'SpotViTImageProcessor' not found, assuming base ImageProcessor" in ask.warnings[0]
    difference = (theirs - processor(large, return_tensors="pt").pixel_values).abs()
    assert theirs.shape == difference.shape and difference.mean() > 5  # of 255


@pytest.mark.parametrize("recipe", ["squeezed", "cropped"])
def test_points_of_an_image_are_mapped_as_in_python(recipe, pictures, ask, tmp_path):
    processor = tiny_processor(**RECIPES[recipe])
    processor.save_pretrained(tmp_path)
    points = random_coordinates(1, 9)[0]
    found = ask("frames", directory=tmp_path, images=pictures, points=points.tolist())
    for picture, mapped in zip(pictures, found, strict=True):
        expected = processor(picture, coordinates=points, return_tensors="np")["coordinates"][0]
        np.testing.assert_allclose(mapped, expected, rtol=0, atol=1e-6)  # float64 and float32, of values up to 5


# -------------------------------------------------------------------------------------------------------------- models


@pytest.fixture(scope="session")
def digits(folder, tmp_path_factory) -> Path:
    """The trained classifier of digits, with its export, also in int8, in its own directory."""
    directory = tmp_path_factory.mktemp("digits") / "model"
    convert_checkpoint(ROOT / "tests/fixtures/digits-vit", directory)
    export_model(str(directory), directory, quantize=["int8"])
    return directory


def inputs_of(directory: Path, pictures: list[str], num_tokens: int) -> dict[str, torch.Tensor]:
    processor = SpotViTImageProcessorPil.from_pretrained(directory)
    pixel_values = processor(pictures, return_tensors="pt").pixel_values
    return {"pixel_values": pixel_values, "coordinates": random_coordinates(len(pictures), num_tokens, seed=num_tokens)}


@torch.no_grad()
def test_logits_are_those_of_pytorch(digits, pictures, ask):
    """Any number of tokens, at any place, of several images at once, from one file."""
    model = SpotViTForImageClassification.from_pretrained(digits).eval()
    calls = [inputs_of(digits, pictures[:2] if number % 2 else pictures[:1], number) for number in (1, 4, 25, 36)]
    found = ask("outputs", directory=digits, dtype="fp32", calls=calls)
    assert found["dtype"] == "fp32"
    for inputs, answer in zip(calls, found["answers"], strict=True):
        assert list(answer) == ["logits"]
        torch.testing.assert_close(to_tensor(answer["logits"]), model(**inputs).logits, **TOLERANCE)


@torch.no_grad()
def test_int8_is_what_is_loaded_and_what_python_computes(digits, pictures, ask):
    """Where the config says it: `transformers.js_config`."""
    calls = [inputs_of(digits, pictures[:2], number) for number in (4, 25)]
    found = ask("outputs", directory=digits, calls=calls)
    assert found["dtype"] == "q8"
    in_onnx = OnnxSpotViT.from_pretrained(digits, quantize="int8")
    for inputs, answer in zip(calls, found["answers"], strict=True):
        # Of two versions of ONNX Runtime: what is rounded to 8 bits may be the next one, of which 127 make the largest.
        torch.testing.assert_close(to_tensor(answer["logits"]), in_onnx(**inputs).logits, rtol=0, atol=0.05)


@torch.no_grad()
def test_a_photograph_of_its_file_has_the_logits_of_pytorch(vit_tiny, ask, nips2017, tmp_path):
    directory = tmp_path / "model"
    report = convert_checkpoint(vit_tiny, directory)
    export_model(report.model, directory, image_processor=report.image_processor)
    files = [tmp_path / f"{i}.png" for i in range(2)]
    for i, file in enumerate(files):
        nips2017[i]["image"].save(file)
    points = isotropic(25)
    inputs = report.image_processor([str(file) for file in files], coordinates=points, return_tensors="pt")
    found = to_tensor(ask("logits", directory=directory, images=files, points=points.tolist()))
    torch.testing.assert_close(found, report.model.eval()(**inputs).logits, **TOLERANCE)


@torch.no_grad()
def test_an_encoder_with_a_mask(ask, tmp_path):
    model = tiny_model(model_class=SpotViTModel, num_hidden_layers=1, **POSITION_KINDS["rotary"])
    export_model(model, tmp_path, image_processor=tiny_processor(), with_mask=True)
    inputs = {
        "pixel_values": random_images(2, 48, 64),
        "coordinates": random_coordinates(2, 9),
        "coordinates_mask": torch.arange(9) < torch.tensor([[9], [4]]),
    }
    answer = ask("outputs", directory=tmp_path, calls=[inputs])["answers"][0]
    expected = model(**inputs)
    assert set(answer) == {"last_hidden_state", "pooler_output"}
    torch.testing.assert_close(to_tensor(answer["pooler_output"]), expected.pooler_output, **TOLERANCE)
    kept = torch.cat([torch.ones(2, model.config.num_prefix_tokens, dtype=torch.bool), inputs["coordinates_mask"]], dim=1)
    found = to_tensor(answer["last_hidden_state"])
    torch.testing.assert_close(found[kept], expected.last_hidden_state[kept], **TOLERANCE)


@torch.no_grad()
def test_tokens_are_placed_as_in_python(ask, tmp_path):
    """With their window scales, in a batch of two images; by the placer too."""
    placer = {"grid_size": 3, "thumbnail_size": 16, "hidden_size": 16, "head": "heatmap"}
    model = tiny_model(num_hidden_layers=1, placer=placer, placement="learned")
    export_model(model, tmp_path, image_processor=tiny_processor())
    images = random_images(2)
    names = ["isotropic", "center", "grid", "foveated_center", "foveated_edge", "learned"]
    found = ask("placements", directory=tmp_path, pixel_values=images, num_tokens=9, placements=names)
    assert not any("Too many inputs" in one for one in ask.warnings)
    for name in names:
        answer = {key: to_tensor(value) for key, value in found[name].items()}
        if name == "learned":
            placed = model.placer.place(images, 9)
        else:
            each = [place_windows(name, None if name == "grid" else 9, image, 8) for image in images]
            placed = [
                torch.stack([coordinates for coordinates, _ in each]),
                torch.stack([torch.ones(len(coordinates)) if scales is None else scales for coordinates, scales in each]),
            ]
        inputs = {key: answer.pop(key) for key in ("coordinates", "window_scales")}
        for one, expected in zip(inputs.values(), placed, strict=True):
            # Edges and densities are float32 in Python, and another's float32 or double here; the lattice follows them.
            torch.testing.assert_close(one, expected, rtol=1e-5, atol=1e-5, msg=lambda text, name=name: f"{name}: {text}")
        torch.testing.assert_close(answer["logits"], model(images, **inputs).logits, **TOLERANCE)


# -------------------------------------------------------------------------------------------------------- the document


def code(language: str) -> str:
    page = (ROOT / "docs/transformers_js.md").read_text(encoding="utf-8")
    (body,) = re.findall(rf"^```{language}\n(.*?)^```", page, re.DOTALL | re.MULTILINE)
    return body


def expected_rows(directory: Path, picture: str) -> list[dict]:
    """Of Python's pipeline at 25 tokens, float32."""
    classifier = SpotImageClassificationPipeline(
        model=SpotViTForImageClassification.from_pretrained(directory).eval(),
        image_processor=SpotViTImageProcessorPil.from_pretrained(directory),
    )
    return classifier(picture, num_tokens=25, placement="isotropic", top_k=3)


def check_rows(printed: str, expected: list[dict]) -> None:
    rows = [line.rsplit(" ", 1) for line in printed.strip().splitlines()]
    assert [label for label, _ in rows] == [row["label"] for row in expected]
    # Printed with four digits.
    assert np.allclose([float(score) for _, score in rows], [row["score"] for row in expected], rtol=0, atol=1e-4)


def test_the_program_for_node(digits, pictures, folder):
    (folder / "classify.mjs").write_text(code("js"), encoding="utf-8")
    command = ["node", "classify.mjs", str(digits), pictures[3]]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr[-4000:]
    check_rows(done.stdout, expected_rows(digits, pictures[3]))


# Chooses a file, as a person does, and sends what the page says.
CHOOSE = """
<script type="module">
  const blob = await (await fetch("photo.png")).blob();
  const files = new DataTransfer();
  files.items.add(new File([blob], "photo.png", { type: "image/png" }));
  const [input, output] = [document.querySelector("input"), document.querySelector("pre")];
  const report = (text) => fetch("answer", { method: "POST", body: text });
  addEventListener("unhandledrejection", ({ reason }) => report(`error: ${reason}`));
  while (!input.onchange) await new Promise((done) => setTimeout(done, 50));
  new MutationObserver(() => report(output.textContent)).observe(output, { childList: true });
  input.files = files.files;
  input.dispatchEvent(new Event("change"));
</script>
"""


def test_the_page_for_browsers(digits, pictures, folder, tmp_path):
    """As it stands in the document, but that the package and the model come from here."""
    chromium = shutil.which("chromium") or shutil.which("google-chrome")
    if chromium is None:
        pytest.skip("needs Chromium: no `chromium` here")
    page = code("html")
    settings = """
  import { env } from "@huggingface/transformers";
  Object.assign(env, { allowLocalModels: true, allowRemoteModels: false, localModelPath: "/" });
  env.backends.onnx.wasm.wasmPaths = "/node_modules/onnxruntime-web/dist/";
"""
    version = json.loads((ROOT / "tests/export/package.json").read_text(encoding="utf-8"))["dependencies"][PACKAGE]
    for old, new in (
        (f"https://cdn.jsdelivr.net/npm/{PACKAGE}@{version}", f"/node_modules/{PACKAGE}/dist/transformers.min.js"),
        ("user/spot-vit-tiny-onnx", "model"),
        ('<script type="module">', f'<script type="module">{settings}'),
    ):
        assert page.count(old) == 1
        page = page.replace(old, new)
    (folder / "index.html").write_text(page + CHOOSE, encoding="utf-8")
    (folder / "model").symlink_to(digits)
    shutil.copy(pictures[3], folder / "photo.png")
    with serve(folder) as (url, answers):
        command = [chromium, "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path}", f"{url}/index.html"]
        with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
            try:
                printed = answers.get(timeout=120)
            finally:
                process.terminate()
    check_rows(printed, expected_rows(digits, pictures[3]))


@contextmanager
def serve(directory: Path) -> Iterator[tuple[str, Queue]]:
    """A folder on loopback, and what pages there POST."""
    answers: Queue = Queue()

    class Handler(SimpleHTTPRequestHandler):
        extensions_map = {**SimpleHTTPRequestHandler.extensions_map, ".mjs": "text/javascript", ".wasm": "application/wasm"}

        def do_POST(self):
            answers.put(self.rfile.read(int(self.headers["Content-Length"])).decode())
            self.send_response(204)
            self.end_headers()

        def log_message(self, *arguments):
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, directory=str(directory))) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}", answers
        server.shutdown()


@torch.no_grad()
def test_a_pipeline_around_a_model_that_is_given_coordinates(digits, pictures, ask):
    """Its pixels are transformers.js's own."""
    points = isotropic(9)
    found = ask("pipeline", directory=digits, image=pictures[3], points=points.tolist())
    in_onnx = OnnxSpotViT.from_pretrained(digits, quantize="int8")
    logits = in_onnx(pixel_values=to_tensor(found["pixel_values"]), coordinates=points[None]).logits[0]
    rows = {row["label"]: row["score"] for row in found["predictions"]}
    expected = logits.softmax(-1)
    assert max(rows, key=rows.get) == in_onnx.config.id2label[int(expected.argmax())]
    # As of int8 above, and a probability changes by a quarter of what a logit does at the most.
    assert all(abs(expected[in_onnx.config.label2id[label]] - score) < 0.02 for label, score in rows.items())


def test_limits(digits, ask):
    assert ask("error", call="AutoModelForImageClassification", directory=digits) == "Unsupported model type: spot_vit"
    assert "spot_vit" in ask("error", call="pipeline", directory=digits)
    assert "Unknown image_processor_type" in ask("error", call="AutoProcessor", directory=digits)
    inputs = {"pixel_values": random_images(1)}
    assert "Missing the following inputs: coordinates" in ask("error", call="model", directory=digits, inputs=inputs)
    assert any('Unknown model class "spot_vit", attempting to construct from base class' in one for one in ask.warnings)
    message = ask("error", call="place", inputs=inputs, options={"name": "sobol"})
    assert message.startswith("`name` must be one of isotropic, ") and message.endswith('; got "sobol"')


def test_which_file_is_the_default(digits, ask, tmp_path):
    """By the error where there is none."""
    shutil.copy(digits / "config.json", tmp_path)
    for device, file in (("cpu", "model_quantized.onnx"), ("webgpu", "model.onnx")):
        assert f"/onnx/{file}" in ask("error", call="model", directory=tmp_path, options={"device": device})
