"""What clipping took from the mean of noise comes back, and nothing moves where there was none."""

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter

from dip_recon import auto, images, own
from dip_recon.cli import main
from dip_recon.declipping import Declipping, declipped
from dip_recon.noise import add_gaussian, add_poisson, clipped_moments
from dip_recon.tiling import tiles


def ramp(low=0.0, high=1.0, side=160):
    """Black, a slope and white."""
    x = np.linspace(low - 0.3, high + 0.3, side).clip(low, high)
    return np.broadcast_to(x, (1, side, side)).astype(np.float32)


def rms(a, b):
    return float(np.sqrt(np.square(a - b, dtype=np.float64).mean()))


def judged(restored, y):
    ends = Declipping()
    ends.add(restored, y)
    return ends.judge()


@pytest.mark.parametrize("sigma", [10, 25, 50, 75])
def test_clipped_noise_is_made_up_for(sigma):
    x = ramp()
    rng = np.random.RandomState(0)
    y = add_gaussian(x, sigma, rng)
    mean = clipped_moments(x, sigma)[0].astype(np.float32)
    assert judged(mean, y).level == pytest.approx((sigma, sigma), rel=0.05)
    restored, said = declipped(mean, y)
    assert rms(restored, x) < 0.1 * rms(mean, x)
    assert "black and white" in said
    # and with an error of its own, as a fit has
    fitted = (mean + gaussian_filter(rng.normal(scale=0.04, size=x.shape), 2)).clip(0, 1)
    assert rms(declipped(fitted, y)[0], x) < 0.6 * rms(fitted, x)


@pytest.mark.parametrize(("low", "high", "end"), [(0, 0.6, "black"), (0.4, 1, "white")])
def test_at_one_end_alone(low, high, end):
    x = ramp(low, high)
    y = add_gaussian(x, 25, np.random.RandomState(0))
    mean = clipped_moments(x, 25)[0].astype(np.float32)
    restored, said = declipped(mean, y)
    assert f"at {end} had" in said and rms(restored, x) < 0.1 * rms(mean, x)


def test_photons_are_clipped_at_white_alone():
    x, rng = ramp(), np.random.RandomState(0)
    y = add_poisson(x, 0.02, rng)
    many = np.stack([add_poisson(x, 0.02, rng) for _ in range(100)])
    black, white = judged(many.mean(0), y).level
    assert black is None and white == pytest.approx(255 * np.sqrt(0.02), rel=0.15)
    restored = declipped(many.mean(0), y)[0]
    assert np.abs(restored - x)[..., 130:].mean() < 0.3 * np.abs(many.mean(0) - x)[..., 130:].mean()
    assert np.allclose(restored[..., :40], many.mean(0)[..., :40], atol=1e-6)


def test_what_was_not_clipped_stays():
    x, rng = ramp(), np.random.RandomState(0)
    noise = rng.normal(scale=0.1, size=x.shape)
    least, most = (x + noise).min(), (x + noise).max()
    faded = noise * np.sqrt(x * (1 - x))  # nothing left of it at the ends
    for clean, y in (
        ((x - least) / (most - least), (x + noise - least) / (most - least)),  # a range of its own
        (x, x + 0.5 * faded),
        (x, x),
        (0.3 + 0.4 * x, 0.3 + 0.4 * x + 0.5 * noise),
        (np.zeros_like(x), np.zeros_like(x)),
        (np.full_like(x, 0.5), np.full_like(x, 0.5) + 0.5 * noise),
    ):
        clean, y = clean.astype(np.float32), y.clip(0, 1).astype(np.float32)
        restored, said = declipped(clean, y)
        assert said == "" and np.array_equal(restored, clean)
    assert Declipping().judge().level == (None, None)


def test_a_flat_picture_near_black():
    x = np.full((1, 160, 160), 0.1, np.float32)
    y = add_gaussian(x, 40, np.random.RandomState(0))
    restored, said = declipped(clipped_moments(x, 40)[0].astype(np.float32), y)
    # how strong the noise is elsewhere is not to be seen: it is left
    assert said == "" and restored.min() > 0.1


def test_windows_come_to_the_same():
    x = ramp()
    y = add_gaussian(x, 25, np.random.RandomState(0))
    mean = clipped_moments(x, 25)[0].astype(np.float32)
    ends = Declipping()
    for top in range(0, 160, 50):
        ends.add(mean[:, top : top + 50], y[:, top : top + 50])
    assert ends.judge().level == pytest.approx(judged(mean, y).level)
    assert np.allclose(ends.undo(mean[:, 50:100]), declipped(mean, y)[0][:, 50:100], atol=1e-6)


def test_the_command_does_it_and_can_be_told_not_to(tmp_path, monkeypatch, capsys):
    x = ramp(0, 0.6)
    y = add_gaussian(x, 25, np.random.RandomState(0))
    mean = clipped_moments(x, 25)[0].astype(np.float32)
    done = own.denoise(own.job_of_array(y), {}, lambda *_: [mean])
    assert rms(done.picture, x) < 0.1 * rms(mean, x) and "clipped at black" in done.notes[-1]
    left = own.denoise(own.job_of_array(y), {}, lambda *_: [mean], declipping=False)
    assert np.array_equal(left.picture, mean) and not left.notes

    def smoothed(task, cancelled=None):
        picture = gaussian_filter(task.y, (0, 3, 3))
        return tiles.Fitted(picture, 1, 1, True, 0.1)

    monkeypatch.setattr(tiles, "fit_tile", smoothed)
    monkeypatch.setattr(auto, "CLEAN", 0)
    images.save_png(tmp_path / "a.png", y)
    words = ["denoise", str(tmp_path / "a.png"), "--tile", "80", "-o"]
    assert main([*words, str(tmp_path / "b.png")]) == 0
    assert "clipped at black" in capsys.readouterr().out
    assert main([*words, str(tmp_path / "c.png"), "--no-declipping"]) == 0
    assert "clipped" not in capsys.readouterr().out
    assert rms(images.read(tmp_path / "b.png").data, x) < 0.5 * rms(
        images.read(tmp_path / "c.png").data, x
    )
