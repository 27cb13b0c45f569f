"""Tiles cover a picture without a seam, whatever its size."""

import numpy as np
import pytest
from conftest import refused
from hypothesis import given, settings
from hypothesis import strategies as st

from dip_recon.tiling.layout import Layout, Tile, blend

sides = st.integers(1, 150)


@st.composite
def layouts(draw):
    tile = draw(st.integers(1, 40))
    overlap = draw(st.integers(0, (tile - 1) // 2))
    return Layout((draw(sides), draw(sides)), tile, overlap)


class Crops:
    """A picture [C, H, W] read by windows; remembers which."""

    def __init__(self, data):
        self.data = data
        self.windows = []

    def read(self, top, bottom, left, right):
        self.windows.append((top, bottom, left, right))
        return self.data[:, top:bottom, left:right]


def noise(layout, channels=2):
    return np.random.default_rng(0).random((channels, *layout.size), dtype=np.float32)


def by_hand(layout, window):
    """The tiles whose grown regions share a pixel with the window."""
    top, bottom, left, right = window
    return [
        tile
        for tile in layout
        if tile.grown[0] < bottom and tile.grown[1] > top
        if tile.grown[2] < right and tile.grown[3] > left
    ]


@given(layouts())
@settings(deadline=None)
def test_regions_partition_the_picture_and_are_nearly_equal(layout):
    covered = np.zeros(layout.size, int)
    for tile in layout:
        top, bottom, left, right = tile.region
        covered[top:bottom, left:right] += 1
    assert (covered == 1).all()
    assert len(layout) == layout.shape[0] * layout.shape[1]
    assert [tile.index for tile in layout] == list(range(len(layout)))
    for axis in (0, 2):
        lengths = {tile.region[axis + 1] - tile.region[axis] for tile in layout}
        assert max(lengths) - min(lengths) <= 1
        if layout.shape[axis // 2] > 1:
            assert min(lengths) >= 2 * layout.overlap  # fades do not meet


@given(layouts())
@settings(deadline=None)
def test_weights_add_up_to_1(layout):
    total = np.zeros(layout.size, np.float32)
    for tile in layout:
        top, bottom, left, right = layout.inside(tile)
        weights = layout.weights(tile)
        assert weights.dtype == np.float32 and weights.min() > 0
        total[top:bottom, left:right] += weights
    np.testing.assert_allclose(total, 1, atol=1e-6)


@given(layouts(), st.data())
@settings(deadline=None)
def test_exact_tiles_blend_to_the_picture(layout, data):
    picture = noise(layout)
    height, width = layout.size
    top = data.draw(st.integers(0, height - 1))
    left = data.draw(st.integers(0, width - 1))
    window = (
        top, data.draw(st.integers(top + 1, height)), left, data.draw(st.integers(left + 1, width))
    )  # fmt: skip
    source, asked = Crops(picture), []

    def restored(tile):
        asked.append(tile)
        return layout.read(tile, source)

    blended = blend(layout, window, restored)
    assert blended.dtype == np.float32
    top, bottom, left, right = window
    np.testing.assert_allclose(blended, picture[:, top:bottom, left:right], atol=1e-6)
    assert asked == layout.touching(window) == by_hand(layout, window)


@given(layouts())
@settings(deadline=None)
def test_reading_reflects_as_numpy_does(layout):
    picture, o = noise(layout), layout.overlap
    padded = np.pad(picture, ((0, 0), (o, o), (o, o)), "reflect")
    source = Crops(picture)
    for tile in layout:
        top, bottom, left, right = tile.grown
        data = layout.read(tile, source)
        assert data.dtype == np.float32 and data.flags.c_contiguous
        np.testing.assert_array_equal(data, padded[:, top + o : bottom + o, left + o : right + o])
        assert source.windows[-1] == layout.inside(tile)


@pytest.mark.parametrize(
    ("size", "shape", "first", "last"),
    [
        ((130, 70), (1, 1), (0, 130, 0, 70), (0, 130, 0, 70)),
        ((1, 1), (1, 1), (0, 1, 0, 1), (0, 1, 0, 1)),
        ((5, 3000), (1, 23), (0, 5, 0, 130), (0, 5, 2869, 3000)),
        ((192, 191), (2, 1), (0, 96, 0, 191), (96, 192, 0, 191)),
        ((512, 1000), (4, 8), (0, 128, 0, 125), (384, 512, 875, 1000)),
        ((65536, 65536), (512, 512), (0, 128, 0, 128), (65408, 65536, 65408, 65536)),
    ],
)
def test_sizes_of_old_and_new(size, shape, first, last):
    layout = Layout(size, tile=128, overlap=16)
    assert layout.shape == shape
    assert layout[0].region == first
    assert layout[len(layout) - 1].region == last


def test_fewer_regions_where_fades_would_meet():
    assert Layout((250, 1), tile=100, overlap=10).shape == (3, 1)
    assert Layout((250, 1), tile=100, overlap=49).shape == (2, 1)


def test_a_tile():
    layout = Layout((200, 300), tile=100, overlap=8)
    tile = layout[4]
    assert tile == Tile(4, 1, 1, (100, 200, 100, 200), (92, 208, 92, 208))
    assert tile.size == (116, 116)
    assert layout.inside(tile) == (92, 200, 92, 208)
    for index in (-1, 6):
        with pytest.raises(IndexError):
            layout[index]


def test_weights_are_linear_ramps_without_fade_at_the_edge():
    layout = Layout((100, 300), tile=100, overlap=2)
    left, middle, right = (layout.weights(tile) for tile in layout)
    assert [w.shape for w in (left, middle, right)] == [(100, 102), (100, 104), (100, 102)]
    assert (left[:, :98] == 1).all() and (right[:, 4:] == 1).all()
    np.testing.assert_allclose(left[50, 98:], [0.875, 0.625, 0.375, 0.125])
    np.testing.assert_allclose(middle[50, :4], [0.125, 0.375, 0.625, 0.875])


def test_cross_fade_of_two_levels_is_linear_and_leaves_no_step():
    layout = Layout((64, 128), tile=64, overlap=8)
    level = {0: 0.25, 1: 0.75}
    row = blend(layout, (0, 64, 0, 128), lambda t: np.full((1, *t.size), level[t.index]))[0, 30]
    np.testing.assert_allclose(row[:56], 0.25)
    np.testing.assert_allclose(row[72:], 0.75)
    steps = np.diff(row[56:72])
    np.testing.assert_allclose(steps, 0.5 / 16, atol=1e-6)
    assert np.abs(np.diff(row)).max() < 0.5 / 16 + 1e-6  # no larger at the border than beside it


def test_a_corner_is_bilinear():
    layout = Layout((64, 64), tile=32, overlap=4)
    level = np.random.default_rng(1).random(4)
    out = blend(layout, (28, 36, 28, 36), lambda t: np.full((1, *t.size), level[t.index]))[0]
    a = (np.arange(8) + 0.5) / 8
    up, down = (level[i] * (1 - a) + level[i + 1] * a for i in (0, 2))
    np.testing.assert_allclose(out, np.outer(1 - a, up) + np.outer(a, down), atol=1e-6)


def test_noise_of_tiles_is_no_rougher_across_borders():
    layout = Layout((96, 96), tile=32, overlap=4)
    picture = np.random.default_rng(2).random((1, 96, 96), dtype=np.float32)
    source = Crops(picture)
    bias = np.random.default_rng(3).normal(0, 0.01, len(layout))
    out = blend(layout, (0, 96, 0, 96), lambda t: layout.read(t, source) + bias[t.index])[0]
    steps = np.abs(np.diff(out, axis=1)).mean(0)  # between column i and i + 1
    across = steps[[31, 63]].mean()
    inside = np.delete(steps, [31, 63]).mean()
    assert across < 1.1 * inside


@given(layouts(), st.integers(1, 60))
@settings(deadline=None)
def test_windows_partition_the_picture(layout, side):
    seen = np.zeros(layout.size, int)
    times = np.zeros(len(layout), int)
    for window in layout.windows(side):
        top, bottom, left, right = window
        seen[top:bottom, left:right] += 1
        assert top % side == left % side == 0
        for tile in layout.touching(window):
            times[tile.index] += 1
    assert (seen == 1).all()
    for tile in layout:
        if max(tile.size) <= side:
            assert times[tile.index] <= 4


def test_wrong_settings():
    refused(lambda: Layout((100, 100), 128, 64), "--overlap 64", "half of --tile 128")
    refused(lambda: Layout((100, 100), 128, -1), "--overlap -1", "negative")
    refused(lambda: Layout((100, 100), 0, 0), "--tile 0", "at least 1")
    refused(lambda: Layout((0, 100), 128, 16), "0×100")


def test_wrong_windows_and_tiles():
    layout = Layout((100, 100), 50, 5)
    for window in [(0, 101, 0, 10), (-1, 5, 0, 10), (5, 5, 0, 10), (0, 10, 8, 3)]:
        with pytest.raises(ValueError, match="window"):
            layout.touching(window)
    with pytest.raises(ValueError, match="tile 0"):
        blend(layout, (0, 10, 0, 10), lambda tile: np.zeros((1, 50, 50)))
