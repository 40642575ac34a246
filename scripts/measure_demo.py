"""
How long the page of `spot-hf demo` takes, in headless Chromium, and pictures of it.

    spot-hf demo --model MODEL --output_dir runs/demo --no_serve
    python scripts/measure_demo.py --page runs/demo --output_dir docs/results        # half a minute

Needs `make test-browser`'s environment. Prints medians, as JSON: seconds from the page's address to its first answer, of
several new tabs with empty caches; and milliseconds from a movement of the mouse to the answer that is shown, while a token is
dragged.
"""

import json
import shutil
from argparse import ArgumentParser
from pathlib import Path
from statistics import median
from threading import Thread
from typing import Any

from playwright.sync_api import Browser, Page, sync_playwright

from spot_hf.demo.server import PageServer


ARGUMENTS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--disable-background-networking",
    "--disable-component-update",
]
MOVES = 40
EVERY = 120  # milliseconds: each movement is answered before the next
# In the page: when the mouse moves, and when an answer is shown.
WATCH = """() => {
    window.moved = null;
    window.taken = [];
    document.addEventListener('pointermove', () => { window.moved ??= performance.now(); }, true);
    new MutationObserver(() => {
        if (window.moved !== null) window.taken.push(performance.now() - window.moved);
        window.moved = null;
    }).observe(document.body, {attributeFilter: ['data-answered']});
}"""
IS_DONE = (
    "document.getElementById('answers').getAttribute('aria-busy') === 'false' && document.body.dataset.working === 'false'"
)


def open_page(browser: Browser, address: str, width: int = 1400, height: int = 800) -> Page:
    page = browser.new_context(viewport={"width": width, "height": height}).new_page()  # of its own caches
    page.goto(address)
    return page


def first_answer(browser: Browser, address: str) -> float:
    """Seconds."""
    page = open_page(browser, address)
    page.wait_for_function("document.body.dataset.answered >= 1", polling=5)
    taken = page.evaluate("performance.now()") / 1000
    page.wait_for_function(IS_DONE)
    page.context.close()
    return float(taken)


def dragging(browser: Browser, address: str, num_tokens: int) -> list[float]:
    """Milliseconds of each movement."""
    page = open_page(browser, f"{address}#image=0&placement=isotropic&tokens={num_tokens}&windows=cover")
    page.wait_for_function(IS_DONE)
    page.evaluate(WATCH)
    box = page.locator("#overlay").bounding_box()
    assert box is not None
    x, y = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
    page.mouse.move(x, y)
    page.mouse.down()
    page.evaluate("window.taken = []; window.moved = null")
    for i in range(MOVES):
        page.mouse.move(x + 2 * i, y + i)
        page.wait_for_timeout(EVERY)
    page.mouse.up()
    taken: list[float] = page.evaluate("window.taken")
    page.context.close()
    return taken


def save_pictures(browser: Browser, address: str, output_dir: Path, hash: str) -> None:
    for name, width, height in (("demo_wide", 1400, 800), ("demo_narrow", 390, 844)):
        page = open_page(browser, address + hash, width, height)
        page.wait_for_function(IS_DONE)
        page.screenshot(path=output_dir / f"{name}.png", full_page=True)
        page.context.close()


def main() -> None:
    parser = ArgumentParser(description=__doc__.split("\n\n")[0].strip())
    parser.add_argument("--page", required=True, help="What `spot-hf demo` wrote.")
    parser.add_argument("--output_dir", help="Where pictures go (default: none are taken).")
    parser.add_argument("--hash", default="", help="Of the pictures' address, as a link has it.")
    parser.add_argument("--repeats", type=int, default=7, help="New tabs.")
    arguments = parser.parse_args()
    server = PageServer(Path(arguments.page), 0)
    Thread(target=server.serve_forever, daemon=True).start()
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=ARGUMENTS)
        loads = [first_answer(browser, server.address) for _ in range(arguments.repeats)]
        found: dict[str, Any] = {"chromium": browser.version, "first_answer_seconds": _summary(loads)}
        for num_tokens in (25, 49):
            found[f"drag_milliseconds_{num_tokens}"] = _summary(dragging(browser, server.address, num_tokens))
        if arguments.output_dir:
            Path(arguments.output_dir).mkdir(parents=True, exist_ok=True)
            save_pictures(browser, server.address, Path(arguments.output_dir), arguments.hash)
        browser.close()
    print(json.dumps(found, indent=2))


def _summary(values: list[float]) -> dict[str, float]:
    return {
        "median": round(median(values), 2),
        "least": round(min(values), 2),
        "most": round(max(values), 2),
        "of": len(values),
    }


if __name__ == "__main__":
    main()
