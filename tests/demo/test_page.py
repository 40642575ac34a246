"""The page of `spot-hf demo`, in headless Chromium: what it shows is what PyTorch computes."""

import json

import numpy as np
import pytest
from browsing import FIRST_ANSWER, Reference, Visit, assert_equal, run_command, served, write_page
from conftest import CHROMIUM, ROOT, find_chromium
from PIL import Image
from sklearn.datasets import load_sample_images

from spot_hf import convert_checkpoint


pytestmark = pytest.mark.browser

DIGITS = ROOT / "tests/fixtures/digits-vit"
GRID = 36  # tokens of that model's grid


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    """A trained classifier of digits, of 36 tokens."""
    directory = tmp_path_factory.mktemp("digits") / "model"
    convert_checkpoint(str(DIGITS), directory)
    return directory


@pytest.fixture(scope="module")
def page(digits, tmp_path_factory):
    """Its page, and the address where the command serves it."""
    folder = write_page(digits, tmp_path_factory.mktemp("page") / "page")
    with served(digits, folder) as address:
        yield folder, address


@pytest.fixture
def visit(chromium, page):
    """A new tab on the page. Whatever happens there, the console has no errors."""
    opened = []

    def visit(hash: str = "", **options) -> Visit:
        opened.append(Visit(chromium, page[1] + hash, **options))
        return opened[-1]

    yield visit
    for one in opened:
        one.tab.close()
        assert one.errors == []


@pytest.fixture(scope="module")
def reference(digits):
    return Reference(digits)


def test_the_first_answer_is_pytorchs(visit, page, reference):
    there = visit()
    example = page[0] / "examples/0.png"
    tokens = reference.probabilities(example, num_tokens=25, window_scales="cover")
    assert_equal(there, tokens, reference.probabilities(example))
    assert there.state == {"image": "0", "placement": "isotropic", "tokens": "25", "windows": "cover"}
    assert there.tab.evaluate("crossOriginIsolated")  # or WebAssembly has one thread


@pytest.mark.parametrize("placement", ["isotropic", "center", "foveated_edge", "foveated_center"])
@pytest.mark.parametrize("windows", ["1", "cover"])
def test_placements_are_pythons(visit, page, reference, placement, windows):
    there = visit(f"#image=1&placement={placement}&tokens=9&windows={windows}")
    assert there.tab.locator(".token").count() == 9
    scales = {} if placement.startswith("foveated") else {"window_scales": float(windows) if windows == "1" else windows}
    example = page[0] / "examples/1.png"
    tokens = reference.probabilities(example, num_tokens=9, placement=placement, **scales)
    assert_equal(there, tokens, reference.probabilities(example))


@pytest.mark.parametrize("suffix", [".png", ".jpg"])
def test_a_dropped_image_and_a_dragged_token(visit, reference, tmp_path, suffix):
    photograph = tmp_path / f"photograph{suffix}"
    Image.fromarray(load_sample_images().images[1]).save(photograph)
    there = visit("#tokens=4&windows=cover")
    there.drop(photograph)
    there.tab.wait_for_function("!location.hash.includes('image=')")
    there.wait()
    grid = reference.probabilities(photograph)
    assert_equal(there, reference.probabilities(photograph, num_tokens=4, window_scales="cover"), grid)

    box = there.tab.locator("#overlay").bounding_box()
    start = box["x"] + box["width"] / 4, box["y"] + box["height"] / 4  # the centre of the first of four
    there.drag(start, (start[0] + 30, start[1] + 10), (start[0] + 60, start[1] + 20))
    x, y, scale = there.tokens[0]
    assert abs(x - 0.25 - 60 / box["width"]) < 2e-3 and abs(y - 0.25 - 20 / box["height"]) < 2e-3  # a pixel of the screen
    assert abs(scale - 3) < 1 / 256  # 36 cells by 4 tokens
    assert_equal(there, reference.probabilities(photograph, tokens=there.tokens), grid)
    assert there.tab.locator("#placement option:checked").inner_text() == "Moved by hand"


def test_a_window_is_resized_by_its_corner(visit, page, reference):
    there = visit("#image=0&tokens=4&windows=1")
    handle = there.tab.locator(".token.selected .handle").bounding_box()
    there.drag((handle["x"] + handle["width"] / 2, handle["y"] + handle["height"] / 2), (handle["x"] + 40, handle["y"] + 40))
    assert there.tokens[0, 2] > 1.2 and (there.tokens[1:, 2] == 1).all()
    example = page[0] / "examples/0.png"
    assert_equal(there, reference.probabilities(example, tokens=there.tokens), reference.probabilities(example))


def test_the_keyboard_does_it_all(visit, page, reference):
    there = visit("#image=0&tokens=4&windows=cover")
    there.tab.locator(".token.selected").focus()
    pressed = there.tab.keyboard.press
    for key in ("ArrowRight", "ArrowRight", "Shift+ArrowDown", "+"):
        pressed(key)
    there.wait()
    # The model's image has 48 pixels, a patch 8.
    np.testing.assert_allclose(there.tokens[0], [0.25 + 2 / 48, 0.25 + 8 / 48, 3.3], atol=1 / 256)
    pressed("PageDown")
    assert "Token 2 of 4" in there.tab.locator(".token:focus").get_attribute("aria-label")
    pressed("Delete")
    there.wait()
    assert len(there.tokens) == 3
    pressed("a")
    there.wait()
    assert len(there.tokens) == 4
    assert "Token 4 of 4" in there.tab.locator(".token:focus").get_attribute("aria-label")  # where the next key goes
    example = page[0] / "examples/0.png"
    assert_equal(there, reference.probabilities(example, tokens=there.tokens), reference.probabilities(example))
    spoken = there.tab.locator("#spoken")
    there.tab.wait_for_function("document.getElementById('spoken').textContent.startsWith('4 tokens say ')")
    assert "%" in spoken.inner_text() and "the full grid" in spoken.inner_text()


def test_buttons_and_what_is_shown(visit):
    there = visit("#image=2&tokens=9")
    there.tab.click("#add")
    there.wait()
    there.tab.click("#remove")
    there.tab.click("#remove")
    there.wait()
    assert len(there.tokens) == 8
    there.set("#size", 2.5)
    assert there.tokens[:, 2].max() == 2.5
    there.tab.click("#counts button:last-child")
    there.wait()
    assert there.state["tokens"] == str(GRID)
    assert there.tab.inner_text("#cost").startswith("100 %")
    there.set("#count", 1)
    assert there.tab.locator(".token").count() == 1 and there.tab.locator("#remove").is_disabled()
    share = float(there.tab.inner_text("#cost").split()[0])
    assert 1 < share < 100 / GRID * 2  # the class token costs as much as a token


def test_an_address_shows_what_its_sender_saw(visit):
    there = visit("#image=3&tokens=9&windows=1")
    box = there.tab.locator("#overlay").bounding_box()
    there.drag((box["x"] + box["width"] / 2, box["y"] + box["height"] / 2), (box["x"] + 20, box["y"] + 20))
    other = visit("#" + there.tab.url.partition("#")[2])
    np.testing.assert_array_equal(other.tokens, there.tokens)
    for label, found in other.probabilities.items():
        np.testing.assert_allclose(found, there.probabilities[label], atol=1e-3)


@pytest.mark.parametrize(
    "hash", ["#image=99&placement=nowhere&tokens=0&windows=huge", "#at=%%%", "#at=AAAA", "#tokens=100000"]
)
def test_an_address_that_makes_no_sense(visit, hash):
    assert 1 <= visit(hash).tab.locator(".token").count() <= GRID


def test_images_that_are_asked_for_at_once(visit, page, reference):
    """The last one counts, and what it says is not what is said of another."""
    there = visit("#tokens=9")
    there.tab.evaluate("for (const number of [1, 2, 3, 4]) document.querySelectorAll('#examples button')[number].click()")
    there.tab.wait_for_function("location.hash.includes('image=4')")
    there.wait()
    example = page[0] / "examples/4.png"
    assert_equal(
        there, reference.probabilities(example, num_tokens=9, window_scales="cover"), reference.probabilities(example)
    )


def test_moving_a_token_while_others_are_placed(visit):
    there = visit("#image=0&tokens=4&windows=1")
    there.tab.evaluate(
        """() => {
            const placement = document.getElementById('placement');
            placement.value = 'foveated_center';
            placement.dispatchEvent(new Event('change'));
            document.getElementById('add').click();
        }"""
    )
    there.wait()
    assert len(there.tokens) == 5 and (there.tokens[:, 2] == 1).all()
    assert there.tab.locator("#placement option:checked").inner_text() == "Moved by hand"
    assert there.tab.locator(".token").count() == 5


def test_nothing_can_be_moved_before_the_model_is_there(chromium, page):
    tab = chromium.new_page()
    tab.route("**/*.onnx", lambda route: None)  # never comes
    tab.goto(page[1])
    tab.wait_for_function("document.querySelectorAll('#examples img').length > 0")
    assert all(tab.locator(f"#{part}").evaluate("one => one.inert") for part in ("place", "stage", "answers"))
    tab.close()


def test_a_page_that_lacks_its_model_says_so(chromium, page):
    tab = chromium.new_page()
    tab.route("**/*.onnx", lambda route: route.fulfill(status=404))
    tab.goto(page[1])
    tab.wait_for_function("document.getElementById('message').textContent !== ''")
    assert "onnx/model.onnx: 404" in tab.inner_text("#message")
    assert tab.inner_text("#device").startswith("The model could not be loaded.")
    tab.close()


def test_a_file_that_is_no_image(visit, tmp_path):
    there = visit()
    (tmp_path / "notes.txt").write_text("no image")
    there.drop(tmp_path / "notes.txt")
    there.tab.wait_for_function("document.getElementById('message').textContent !== ''")
    assert there.tab.inner_text("#message") == "notes.txt is no image that this browser can read"
    there.tab.click("#examples button:nth-child(2)")
    there.tab.wait_for_function("location.hash.includes('image=1')")
    there.wait()
    assert there.tab.inner_text("#message") == ""


def test_by_webgpu(chromium, page, reference):
    """By a graphics card that Chromium emulates."""
    emulated = ["--enable-unsafe-webgpu", "--use-webgpu-adapter=swiftshader", "--enable-features=Vulkan"]
    arguments = [one for one in CHROMIUM if one != "--disable-gpu"]
    browser = chromium.browser_type.launch(executable_path=find_chromium(), args=[*arguments, *emulated])
    try:
        there = Visit(browser, f"{page[1]}?device=webgpu#tokens=9&windows=cover")
        if not there.tab.evaluate("navigator.gpu && navigator.gpu.requestAdapter().then(Boolean)"):
            pytest.skip("this Chromium emulates no WebGPU")
        there.tab.wait_for_function("document.body.dataset.device === 'webgpu'", timeout=FIRST_ANSWER)
        there.wait()
        example = page[0] / "examples/0.png"
        tokens = reference.probabilities(example, num_tokens=9, window_scales="cover")
        assert_equal(there, tokens, reference.probabilities(example))
        assert "WebGPU" in there.tab.inner_text("#device") and there.errors == []
    finally:
        browser.close()


@pytest.mark.parametrize("width", [1400, 900, 360])
def test_it_fits_and_is_accessible(visit, width):
    axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="the extra browser is not installed")
    there = visit(width=width)
    assert there.tab.evaluate("document.documentElement.scrollWidth") <= width
    found = axe.Axe().run(there.tab)
    assert found.violations_count == 0, found.generate_report()


def test_a_recorded_search(chromium, digits, tmp_path):
    coordinates = tmp_path / "coordinates"
    options = ["--dataset_name", "digits", "--dataset_split", "test", "--max_samples", "3", "--num_tokens", "4"]
    searched = ["--steps", "3", "--save_trajectories", "--output_dir", str(coordinates)]
    done = run_command("oracle", "--model", str(digits), *options, *searched)
    assert done.returncode == 0, done.stderr[-2000:]
    folder = write_page(digits, tmp_path / "page", "--coordinates", str(coordinates))
    site = json.loads((folder / "site.json").read_text())
    assert [len(one["recording"]["steps"]) for one in site["examples"]] == [4, 4, 4]
    with served(digits, folder, "--coordinates", str(coordinates)) as address:
        there = Visit(chromium, f"{address}#image=1&step=3")
        reference = Reference(digits)
        example = folder / "examples/1.png"
        tokens = reference.probabilities(example, coordinates=site["examples"][1]["recording"]["steps"][3])
        assert_equal(there, tokens, reference.probabilities(example))
        there.set("#step", 0)
        assert there.state == {"image": "1", "step": "0"}
        assert "step 0 of 3, loss" in there.tab.inner_text("#step-shown")
        there.tab.click("#play")
        there.tab.wait_for_function("location.hash.includes('step=3')")
        there.wait()
        assert_equal(there, tokens, reference.probabilities(example))
        assert there.errors == []
        there.tab.close()
