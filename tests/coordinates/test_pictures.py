"""Pictures show what they are of: decoded, and looked at pixel by pixel."""

import io

import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image

from spot_hf.coordinates.pictures import (
    draw_windows,
    save_oracle_picture,
    save_reconstruction_picture,
    save_run_picture,
    save_windows_picture,
)
from spot_hf.coordinates.summary import DENSITY_CELLS, Summary


ORANGE = (255, 176, 0)  # of a window's edge


def decode(buffer: io.BytesIO) -> np.ndarray:
    """`(height, width, 3)`, in [0, 1]."""
    buffer.seek(0)
    image = Image.open(buffer)
    assert image.format == "PNG"
    return np.asarray(image.convert("RGB")).astype(float) / 255


def drawn(height: int, width: int, draw) -> np.ndarray:
    """What is drawn on axes that fill a figure, ten pixels of it per pixel of the image."""
    figure = Figure(figsize=(width / 10, height / 10), dpi=100)
    draw(figure.add_axes((0, 0, 1, 1)))
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=100)
    pixels = decode(buffer)
    assert pixels.shape == (10 * height, 10 * width, 3)
    return pixels


def patches(pixels: np.ndarray, height: int, width: int) -> np.ndarray:
    """The middle of each image pixel as it was drawn, without the lines between."""
    return pixels.reshape(height, 10, width, 10, 3)[:, 4:6, :, 4:6].mean((1, 3))


def test_windows_are_bright_and_the_rest_is_dimmed():
    """On an image of one colour: 0.8 in a window, a quarter of it outside."""
    height, width = 32, 48
    image = Image.new("RGB", (width, height), (204, 204, 204))
    coordinates = np.array([[0.25, 0.5], [1.0, 0.0]])  # the second sticks out at a corner
    pixels = drawn(height, width, lambda axes: draw_windows(axes, image, coordinates, 8, "title"))
    found = patches(pixels, height, width)
    seen = np.zeros((height, width), dtype=bool)
    seen[12:20, 8:16] = True
    seen[0:4, 44:48] = True
    # A colour is rounded to one of 256 values, twice.
    np.testing.assert_allclose(found[seen], 0.8, atol=0.01)
    np.testing.assert_allclose(found[~seen], 0.2, atol=0.01)


def test_windows_have_an_edge_of_their_own():
    image = Image.new("RGB", (48, 32), (0, 0, 0))
    coordinates = np.array([[0.25, 0.5]])
    pixels = drawn(32, 48, lambda axes: draw_windows(axes, image, coordinates, 8, ""))
    coloured = np.argwhere(abs(pixels - np.array(ORANGE) / 255).max(-1) < 0.3)
    # From (8, 12) to (16, 20), ten pixels each, and a line of a pixel on either side.
    assert coloured.min(0) == pytest.approx([120, 80], abs=2) and coloured.max(0) == pytest.approx([200, 160], abs=2)


def test_the_image_is_the_right_way_up():
    gradient = np.zeros((32, 48, 3), dtype=np.uint8)
    gradient[:16, :24] = (250, 0, 0)
    gradient[16:, 24:] = (0, 0, 250)
    coordinates = np.array([[(i + 0.5) / 6, (j + 0.5) / 4] for i in range(6) for j in range(4)])  # all of it
    pixels = drawn(32, 48, lambda axes: draw_windows(axes, Image.fromarray(gradient), coordinates, 8, ""))
    np.testing.assert_allclose(patches(pixels, 32, 48), gradient / 255, atol=0.01)


def test_a_table_of_windows(tmp_path):
    """A row shorter than others, and a cell that is brighter than the one beside it: all is seen, or one window."""
    image = Image.new("RGB", (32, 32), (200, 200, 200))
    everywhere = np.array([[(i + 0.5) / 4, (j + 0.5) / 4] for i in range(4) for j in range(4)])
    one = np.array([[0.5, 0.5]])
    save_windows_picture(tmp_path / "x.png", [[(image, everywhere, 8, "all"), (image, one, 8, "one")], [(image, one, 8, "")]])
    pixels = decode(io.BytesIO((tmp_path / "x.png").read_bytes()))
    assert pixels.shape == (round(2 * 1.9 * 150), round(2 * 1.7 * 150), 3)
    height, width = pixels.shape[0] // 2, pixels.shape[1] // 2
    # Ten pixels each, off the lines: near the middle, and near the corner.
    middle = (slice(height // 2, height // 2 + 10), slice(width // 2 + 10, width // 2 + 20))
    corner = (slice(70, 80), slice(40, 50))
    cells = [pixels[i * height :, j * width :] for i, j in ((0, 0), (0, 1), (1, 0), (1, 1))]
    bright, dim = 200 / 255, 50 / 255
    assert [cell[middle].mean() for cell in cells[:3]] == pytest.approx([bright] * 3, abs=0.02)
    assert [cell[corner].mean() for cell in cells[:3]] == pytest.approx([bright, dim, dim], abs=0.02)
    assert (cells[3] == 1).all(), "nothing is there"


def test_a_reconstruction_stands_beside_its_image():
    images = [Image.new("RGB", (16, 16), colour) for colour in ((200, 0, 0), (0, 200, 0), (0, 0, 200))]
    pixels = [np.full((16, 16, 3), np.nan) for _ in images]
    for i, one in enumerate(pixels):
        one[:, :8] = (np.arange(3) == i) * 0.6  # the left half alone
    buffer = io.BytesIO()
    save_reconstruction_picture(buffer, images, [np.array([[0.25, 0.25]])] * 3, pixels, 8)
    found = decode(buffer)
    assert found.shape == (2 * 330, 1710, 3)
    for i in range(3):
        cell = found[330 * (i // 2) :][:330, 855 * (i % 2) :][:, :855]
        channel = cell[..., i] - cell[..., (i + 1) % 3]
        for third, (left, right) in enumerate([(None, None), (0.6, 0.0), (200 / 255, 200 / 255)]):
            part = channel[150:200, 285 * third :][:, :285]
            if left is not None:
                assert part[:, 70:110].mean() == pytest.approx(left, abs=0.03), (i, third)
                assert part[:, 180:220].mean() == pytest.approx(right, abs=0.03), (i, third)
            else:  # what the encoder sees: one window, and the rest a quarter as bright
                assert channel[:, :285].max() == pytest.approx(200 / 255, abs=0.02)


# ------------------------------------------------------------------------------------------------------------- the oracle


def oracle_picture(trajectory: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Its three parts."""
    image = Image.new("RGB", (64, 64), (128, 128, 128))
    buffer = io.BytesIO()
    save_oracle_picture(buffer, image, trajectory, image, trajectory[0], trajectory[-1], 8, ["paths", "start", "end"])
    pixels = decode(buffer)
    assert pixels.shape == (570, 1575, 3)
    return tuple(pixels[28:, 525 * i : 525 * (i + 1)] for i in range(3))


def inked(part: np.ndarray) -> np.ndarray:
    """Where something is drawn over the plain image, `(x, y)` relative to it: it reaches as far as what is no white paper."""
    rows, columns = (np.flatnonzero((part < 0.99).any(-1).mean(axis) > 0.5) for axis in (1, 0))
    box = part[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    assert min(box.shape[:2]) > 300
    places = np.argwhere(abs(box - np.median(box, axis=(0, 1))).max(-1) > 0.2)[:, ::-1]
    return places / np.array(box.shape[1::-1])


def test_a_path_leads_from_start_to_end():
    steps = np.linspace(0, 1, 6)[:, None, None]
    start, end = np.array([[[0.2, 0.25]]]), np.array([[[0.7, 0.5]]])
    paths, first, last = oracle_picture((1 - steps) * start + steps * end)
    at = inked(paths)
    # A line is 1.4 points thick: 3 pixels of 400, and its dots are as large.
    assert at.min(0) == pytest.approx([0.2, 0.25], abs=0.02) and at.max(0) == pytest.approx([0.7, 0.5], abs=0.02)
    away = abs((at[:, 1] - 0.25) - (at[:, 0] - 0.2) / 2)
    assert away.max() < 0.02, "no straight line"
    # The windows: centred where the path begins and ends, 8 pixels of 64 wide.
    for part, centre in ((first, start[0, 0]), (last, end[0, 0])):
        edge = inked(part)
        assert edge.min(0) == pytest.approx(centre - 4 / 64, abs=0.01)
        assert edge.max(0) == pytest.approx(centre + 4 / 64, abs=0.01)


def test_a_path_is_dark_where_it_begins_and_bright_where_it_ends():
    steps = np.linspace(0, 1, 6)[:, None, None]
    paths, _, _ = oracle_picture(np.array([[[0.2, 0.5]]]) + steps * np.array([[[0.6, 0.0]]]))
    rows, columns = (np.flatnonzero((paths < 0.99).any(-1).mean(axis) > 0.5) for axis in (1, 0))
    line = paths[(rows[0] + rows[-1]) // 2]
    brightness = [line[round(columns[0] + x * len(columns))].mean() for x in (0.25, 0.36, 0.5, 0.6, 0.75)]
    # `inferno`: from black to a light orange. The paper is a grey of 0.8.
    assert brightness[0] < 0.05 and brightness[-1] > 0.5 and brightness == sorted(brightness)


# ---------------------------------------------------------------------------------------------------------------- a run


def summary_of(start_at: tuple[float, float], end_at: tuple[float, float], accuracy: list[float]) -> Summary:
    densities = []
    for x, y in (start_at, end_at):
        density = np.zeros((DENSITY_CELLS, DENSITY_CELLS))
        density[int(y * DENSITY_CELLS) :, int(x * DENSITY_CELLS) :][:6, :6] = 1 / 36
        densities.append(density)
    return Summary(
        num_images=12, num_labelled=12, num_steps=24, num_bytes=1, download_size=1, failed=[], accuracy_per_step=accuracy,
        accuracy_before=None, accuracy_after=None, loss_per_step=[2.0, 1.5, 0.5], start_density=densities[0],
        end_density=densities[1],
    )  # fmt: skip


def run_picture(summary: Summary) -> np.ndarray:
    buffer = io.BytesIO()
    save_run_picture(buffer, "a title", summary)
    return decode(buffer)


def bright_spots(pixels: np.ndarray) -> list[np.ndarray]:
    """Of the two densities, in viridis: the middle of the yellow spot, `(x, y)` relative to the purple square around it."""
    purple = abs(pixels - np.array([68, 1, 84]) / 255).max(-1) < 0.05
    columns = np.flatnonzero(purple.mean(0) > 0.3)
    squares = np.split(columns, np.flatnonzero(np.diff(columns) > 60) + 1)
    squares = [one for one in squares if len(one) > 100]
    found = []
    for square in squares:
        left, right = square[0], square[-1]
        rows = np.flatnonzero(purple[:, left : right + 1].mean(1) > 0.3)
        inside = pixels[rows[0] : rows[-1] + 1, left : right + 1]
        yellow = np.argwhere(abs(inside - np.array([253, 231, 37]) / 255).max(-1) < 0.1)
        found.append(yellow.mean(0)[::-1] / np.array(inside.shape[1::-1]))
    return found


@pytest.mark.parametrize("accuracy", [[10.0, 40.0, 90.0], []], ids=["labelled", "unlabelled"])
def test_a_runs_picture_shows_where_tokens_were_and_are(accuracy):
    pixels = run_picture(summary_of((0.1, 0.6), (0.7, 0.2), accuracy))
    assert pixels.shape[0] > 350 and pixels.shape[1] > (1500 if accuracy else 1100)
    start, end = bright_spots(pixels)
    # Six of 56 cells from there on.
    assert start == pytest.approx([0.1 + 3 / 56, 0.6 + 3 / 56], abs=0.03)
    assert end == pytest.approx([0.7 + 3 / 56, 0.2 + 3 / 56], abs=0.03)


def test_a_runs_picture_shows_its_curves():
    pixels = run_picture(summary_of((0.1, 0.6), (0.7, 0.2), [10.0, 40.0, 90.0]))
    blue = np.argwhere(abs(pixels - np.array([0, 114, 178]) / 255).max(-1) < 0.05)[:, ::-1]
    gaps = np.flatnonzero(np.diff(np.unique(blue[:, 0])) > 60)
    assert len(gaps) == 1, "two curves, of loss and accuracy"
    border = np.unique(blue[:, 0])[gaps[0]]
    loss, accuracy = blue[blue[:, 0] <= border], blue[blue[:, 0] > border]

    def heights(curve):
        """At its three steps, from the left: of the markers' middles."""
        left, right = curve[:, 0].min() + 3, curve[:, 0].max() - 3
        return [curve[abs(curve[:, 0] - x) <= 3][:, 1].mean() for x in (left, (left + right) / 2, right)]

    down, up = heights(loss), heights(accuracy)
    assert down[0] < down[1] < down[2] and up[0] > up[1] > up[2]  # rows are counted from the top
    # In proportion: from 2 to 1.5 to 0.5, and from 10 to 40 to 90. A marker is 7 pixels wide.
    assert (down[1] - down[0]) / (down[2] - down[0]) == pytest.approx(0.5 / 1.5, abs=0.08)
    assert (up[0] - up[1]) / (up[0] - up[2]) == pytest.approx(30 / 80, abs=0.08)


def test_a_finished_runs_picture(made):
    from pathlib import Path

    pixels = decode(io.BytesIO(Path(made.run, made.config, "test.png").read_bytes()))
    assert pixels.shape[1] > 1500 and 0.05 < (pixels < 0.99).any(-1).mean() < 0.9


# ---------------------------------------------------------------------------------------------------------- side effects


def draw_with_a_backend_of_ones_own():
    """In its process: what somebody has set up stays as it is."""
    import sys

    import matplotlib

    matplotlib.use("svg")
    matplotlib.rcParams["figure.dpi"] = 77
    before = dict(matplotlib.rcParams)
    import numpy
    from PIL import Image

    from spot_hf.coordinates.pictures import save_windows_picture

    pyplot_by_us = "matplotlib.pyplot" in sys.modules
    import matplotlib.pyplot as plt

    plt.figure(7)
    save_windows_picture("x.png", [[(Image.new("RGB", (32, 32)), numpy.array([[0.5, 0.5]]), 8, "")]])
    return [pyplot_by_us, matplotlib.get_backend(), dict(matplotlib.rcParams) == before, plt.get_fignums()]


def test_drawing_changes_no_state_of_pyplot(fresh_process):
    assert fresh_process(draw_with_a_backend_of_ones_own) == [False, "svg", True, [7]]
