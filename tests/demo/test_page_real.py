"""The page of a real model, on real photographs."""

import pytest
from browsing import Reference, Visit, assert_equal, served, write_page

from spot_hf import convert_checkpoint


pytestmark = pytest.mark.browser


def test_vit_tiny_on_photographs(chromium, vit_tiny, nips2017, tmp_path):
    model = tmp_path / "model"
    convert_checkpoint(str(vit_tiny), model)
    files = []
    for row, suffix in ((0, "png"), (1, "jpg")):
        files.append(tmp_path / f"photograph{row}.{suffix}")
        nips2017[row]["image"].convert("RGB").save(files[-1])
    folder = write_page(model, tmp_path / "page", "--image", *map(str, files))
    reference = Reference(model)
    with served(model, folder, "--image", *map(str, files)) as address:
        there = Visit(chromium, f"{address}#tokens=49&windows=cover")
        for file in files:
            there.drop(file)
            there.tab.wait_for_function("!location.hash.includes('image=')")
            there.wait()
            grid = reference.probabilities(file)
            assert_equal(there, reference.probabilities(file, num_tokens=49, window_scales="cover"), grid)
            box = there.tab.locator("#overlay").bounding_box()
            there.drag(
                (box["x"] + box["width"] / 2, box["y"] + box["height"] / 2),
                (box["x"] + box["width"] / 3, box["y"] + box["height"] / 3),
            )
            assert_equal(there, reference.probabilities(file, tokens=there.tokens), grid)
            there.tab.click("#examples button:first-child")
            there.tab.wait_for_function("location.hash.includes('image=0')")
            there.wait()
        assert there.errors == []
        there.tab.close()
