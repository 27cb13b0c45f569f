import numpy as np
import pytest
import torch
from skimage.transform import resize

from dip_recon.errors import UserError
from dip_recon.inputs import METHODS, channels_of, make_input


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("size", [(32, 32), (37, 31), (1, 5), (1, 1)])
def test_every_method_gives_what_it_says(method, size):
    picture = np.random.RandomState(0).rand(3, 20, 24).astype(np.float32)
    z = make_input(method, channels=7, size=size, generator=seeded(), picture=picture)
    assert z.shape == (1, channels_of(method, 7, picture=picture), *size)
    assert z.dtype == torch.float32 and z.is_contiguous()
    assert torch.isfinite(z).all()


def test_noise_range_scale_and_seed():
    def draw(**options):
        return make_input("noise", channels=8, size=(64, 64), generator=seeded(3), **options)

    u, n = draw(), draw(noise_type="n")
    assert u.min() >= 0 and 0.099 < u.max() < 0.1
    assert u.mean() == pytest.approx(0.05, abs=1e-3)
    assert n.std() == pytest.approx(0.1, rel=0.02) and abs(n.mean()) < 2e-3
    torch.testing.assert_close(draw(scale=0.2), 2 * u)
    assert torch.equal(draw(), u)
    other = make_input("noise", channels=8, size=(64, 64), generator=seeded(4))
    assert not torch.equal(other, u)


def test_only_noise_draws():
    picture = np.zeros((1, 8, 8), np.float32)
    for method in METHODS[1:]:
        generator = seeded()
        make_input(method, channels=2, size=(8, 8), generator=generator, picture=picture)
        assert torch.equal(generator.get_state(), seeded().get_state())
        make_input(method, channels=2, size=(8, 8), generator=None, picture=picture)


def test_meshgrid():
    z = make_input("meshgrid", channels=32, size=(3, 5), generator=None)
    np.testing.assert_allclose(z[0, 0], np.tile([0, 0.25, 0.5, 0.75, 1], (3, 1)))
    np.testing.assert_allclose(z[0, 1], np.tile([[0], [0.5], [1]], (1, 5)))
    assert not make_input("meshgrid", channels=2, size=(1, 1), generator=None).any()


@pytest.mark.parametrize("cosine_only", [False, True])
def test_fourier_features_in_the_published_order(cosine_only):
    options = {"n_freqs": 5, "base": 1.7, "cosine_only": cosine_only}
    z = make_input("fourier", channels=32, size=(9, 12), generator=None, **options)
    y, x = np.mgrid[0:9, 0:12] / np.array([8, 11])[:, None, None]
    expected = []
    for axis in (x, y):
        for wave in (np.cos,) if cosine_only else (np.cos, np.sin):
            expected += [wave(1.7**k * axis) for k in range(5)]
    assert (
        z.shape[1]
        == len(expected)
        == channels_of("fourier", 32, n_freqs=5, cosine_only=cosine_only)
    )
    np.testing.assert_allclose(z[0], expected, atol=1e-5)


def test_default_frequencies_end_at_256():
    z = make_input("fourier", channels=1, size=(2, 2), generator=None)
    assert z.shape[1] == 32
    assert z[0, 7, 0, 1] == pytest.approx(np.cos(256.0), abs=1e-3)


@pytest.mark.parametrize("method", ["image", "noisy_image"])
def test_picture_as_it_is_or_resized(method):
    picture = np.random.RandomState(0).rand(3, 20, 24).astype(np.float32)
    before = picture.copy()

    def fed(size):
        return make_input(method, channels=32, size=size, generator=None, picture=picture)

    z = fed((20, 24))
    np.testing.assert_array_equal(z[0], picture)
    z.zero_()
    np.testing.assert_array_equal(picture, before)
    small = fed((10, 9))
    for channel, plane in zip(small[0], picture, strict=True):
        np.testing.assert_allclose(channel, resize(plane, (10, 9), anti_aliasing=True), atol=1e-6)
    assert fed((50, 40)).min() >= 0 and fed((50, 40)).max() <= 1


def test_refusals():
    with pytest.raises(UserError, match=r"--noise_method meshgird.*did you mean 'meshgrid'"):
        make_input("meshgird", channels=2, size=(4, 4), generator=None)
    with pytest.raises(UserError, match=r"--noise_type z.*Choices: u, n"):
        make_input("noise", channels=2, size=(4, 4), generator=seeded(), noise_type="z")
    with pytest.raises(UserError, match="--input_image_name"):
        make_input("image", channels=2, size=(4, 4), generator=None)
    with pytest.raises(UserError, match="no such input"):
        channels_of("nosie", 3)
