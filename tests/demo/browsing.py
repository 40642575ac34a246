"""The page of `spot-hf demo` in a real browser, and what PyTorch says of the same."""

import base64
import os
import re
import signal
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlparse

import numpy as np
import pytest
import torch
from PIL import Image

from spot_hf import SpotViTForImageClassification
from spot_hf.image_processing_spot_vit import SpotViTImageProcessorPil


# Both compute in float32. A link holds positions to 1/65535 of the image and sizes to 1/256 patch.
TOLERANCE = 1e-3
FIRST_ANSWER = 120_000  # milliseconds: a busy machine


def run_command(*words: str) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "spot_hf", *words]
    return subprocess.run(command, capture_output=True, text=True, timeout=600, env={**os.environ, "OMP_NUM_THREADS": "2"})


def write_page(model: str | Path, output_dir: Path, *words: str) -> Path:
    """By the command, as a user does."""
    for package in ("onnx", "onnxscript", "onnxruntime"):
        pytest.importorskip(package, reason="the extra onnx is not installed: make test-browser")
    from spot_hf.demo.npm import onnxruntime_web

    try:
        onnxruntime_web()
    except OSError as error:
        pytest.skip(f"needs the npm registry: {error}")
    done = run_command("demo", "--model", str(model), "--output_dir", str(output_dir), "--no_serve", *words)
    assert done.returncode == 0, done.stderr[-3000:]
    return output_dir


@contextmanager
def served(model: str | Path, output_dir: Path, *words: str):
    """Its address, of the command's own server. It ends as Ctrl+C ends it."""
    command = [sys.executable, "-u", "-m", "spot_hf", "demo", "--model", str(model), "--output_dir", str(output_dir)]
    process = subprocess.Popen(
        [*command, "--port", "0", *words],
        stdout=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),  # what runs in the background ignores it
    )
    try:
        assert process.stdout is not None
        lines = []
        for line in process.stdout:
            lines.append(line)
            found = re.search(r"http://127\.0\.0\.1:\d+", line)
            if found:
                yield found[0]
                break
        else:
            pytest.fail("".join(lines))
    finally:
        process.send_signal(signal.SIGINT)
        try:
            assert process.wait(timeout=30) == 0
        finally:
            process.kill()


class Visit:
    """The page in a tab of its own, with what a person does there, and what they read."""

    def __init__(self, browser: Any, address: str, width: int = 1400, height: int = 950):
        self.tab = browser.new_page(viewport={"width": width, "height": height})
        self.errors: list[str] = []
        self.tab.on("console", lambda message: message.type == "error" and self.errors.append(message.text))
        self.tab.on("pageerror", lambda error: self.errors.append(str(error)))
        self.tab.goto(address)
        self.wait()

    def wait(self) -> None:
        """Until all that was asked is answered."""
        self.tab.wait_for_function(
            "document.getElementById('answers').getAttribute('aria-busy') === 'false' "
            "&& document.body.dataset.working === 'false' && document.body.dataset.settled === 'true'",
            timeout=FIRST_ANSWER,
        )

    @property
    def probabilities(self) -> dict[int, tuple[float, float]]:
        """By the number of a class: of the tokens, and of the full grid."""
        rows = self.tab.locator("#classes tr[data-label]").all()
        return {
            int(row.get_attribute("data-label")): tuple(
                float(cell.get_attribute("data-probability")) for cell in row.locator("td").all()
            )
            for row in rows
        }

    @property
    def state(self) -> dict[str, str]:
        return {name: values[0] for name, values in parse_qs(urlparse(self.tab.url).fragment).items()}

    @property
    def tokens(self) -> np.ndarray:
        """`(num_tokens, 3)`: x, y and window scale of tokens that were moved, out of the address."""
        text = self.state["at"]
        numbers = np.frombuffer(base64.urlsafe_b64decode(text + "=" * (-len(text) % 4)), ">u2").reshape(-1, 3)
        return numbers / [65535, 65535, 256]

    def set(self, selector: str, value: Any) -> None:
        """Of a control, as a person does it."""
        control = self.tab.locator(selector)
        if control.evaluate("one => one.tagName") == "SELECT":
            control.select_option(str(value))
        else:
            control.evaluate(
                "(one, value) => { one.value = value; one.dispatchEvent(new Event('input', {bubbles: true})); }", str(value)
            )
        self.wait()

    def drag(self, start: tuple[float, float], *through: tuple[float, float]) -> None:
        """The mouse, pressed, from a point of the tab to others, in pixels."""
        self.tab.mouse.move(*start)
        self.tab.mouse.down()
        for point in through:
            self.tab.mouse.move(*point)
        self.tab.mouse.up()
        self.wait()

    def drop(self, path: Path) -> None:
        """A file onto the page."""
        kind = {".jpg": "image/jpeg", ".png": "image/png"}.get(path.suffix, "application/octet-stream")
        transfer = self.tab.evaluate_handle(
            """([text, name, type]) => {
                const bytes = Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0));
                const transfer = new DataTransfer();
                transfer.items.add(new File([bytes], name, {type}));
                return transfer;
            }""",
            [base64.b64encode(path.read_bytes()).decode(), path.name, kind],
        )
        self.tab.dispatch_event("body", "drop", {"dataTransfer": transfer})


class Reference:
    """The model in PyTorch, with its image processor."""

    def __init__(self, directory: Path):
        self.model = SpotViTForImageClassification.from_pretrained(directory).eval()
        self.processor = SpotViTImageProcessorPil.from_pretrained(directory)

    @torch.no_grad()
    def probabilities(self, image: Path, **arguments: Any) -> np.ndarray:
        """Of a file, at what the image processor places, or at `tokens` `(num_tokens, 3)` in the model frame."""
        tokens = arguments.pop("tokens", None)
        with Image.open(image) as opened:
            inputs = self.processor(opened.convert("RGB"), return_tensors="pt", **arguments)
        if tokens is not None:
            values = torch.as_tensor(np.array(tokens, dtype=np.float32))[None]
            inputs["coordinates"], inputs["window_scales"] = values[..., :2], values[..., 2]
        return self.model(**inputs).logits.softmax(-1)[0].numpy()


def assert_equal(visit: Visit, tokens: np.ndarray, grid: np.ndarray) -> None:
    """What is shown is what PyTorch computes; and no class that is likelier by the tokens is missing."""
    shown = visit.probabilities
    assert tokens.argmax() in shown and grid.argmax() in shown
    for label, (by_tokens, by_grid) in shown.items():
        assert abs(by_tokens - tokens[label]) < TOLERANCE, (label, by_tokens, tokens[label])
        assert abs(by_grid - grid[label]) < TOLERANCE, (label, by_grid, grid[label])
