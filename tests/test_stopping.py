"""Stopping rules: they stop, return the recorded picture, stay small, survive a resume."""

import pytest
import torch

from dip_recon import stopping
from dip_recon.errors import UserError


def outputs(n=60, lowest=30, size=(1, 1, 8, 8)):
    """Outputs whose spread shrinks until ``lowest`` and grows after it."""
    generator = torch.Generator().manual_seed(0)
    for i in range(n):
        spread = 0.01 + 0.01 * abs(i - lowest)
        yield i, 0.5 + spread * torch.randn(size, generator=generator)


def plain_wmv(outs, window):
    """ES-WMV's variance straight from its definition: mean over the window of MSE to its mean."""
    last = torch.stack(outs[-window:]).double()
    return float((last - last.mean(0)).square().mean())


def test_windowed_variance_equals_its_definition():
    rule = stopping.WindowedVariance(window=7, start=0)
    seen = []
    for _, out in outputs():
        seen.append(out)
        value = rule._variance(rule._sample(out))
        if len(seen) < 7:
            assert value is None
        else:
            assert value == pytest.approx(plain_wmv(seen, 7), rel=1e-6)


def test_moving_variance_equals_its_recursion():
    rule = stopping.MovingVariance(alpha=0.2, start=0)
    ema, emv = None, 0.0
    for _, out in outputs():
        value = rule._variance(rule._sample(out))
        if ema is None:
            ema = out.clone()
            assert value is None
            continue
        d = out - ema
        ema = ema + 0.2 * d
        emv = 0.8 * (emv + 0.2 * float(d.square().mean()))
        assert value == pytest.approx(emv, rel=1e-4)


@pytest.mark.parametrize("name", ["ES-WMV", "ES-EMV"])
def test_stops_after_patience_and_returns_the_recorded_picture(name):
    rule = stopping.make(name, patience=12, window=5)
    rule.start = 10
    pictures, average, ended = {}, torch.zeros(1, 1, 8, 8), None
    for i, out in outputs(200):
        average.lerp_(out, 0.1)  # changed in place, as the loop does
        pictures[i] = average.clone()
        if rule.update(i, out, average):
            ended = i
            break
    assert ended == rule.iteration + 12
    assert 25 <= rule.iteration <= 40
    assert torch.equal(rule.picture, pictures[rule.iteration])


@pytest.mark.parametrize("name", ["ES-WMV", "ES-EMV"])
def test_early_minima_do_not_count(name):
    rule = stopping.make(name, patience=10, window=5)
    rule.start = 50
    for i, out in outputs(60, lowest=10):
        assert not rule.update(i, out, out)
    assert rule.iteration >= 50


def test_a_run_too_short_for_the_rule_ends_with_its_last_picture():
    rule = stopping.make("ES-WMV", window=50)
    for i, out in outputs(20):
        rule.update(i, out, out)
    assert rule.iteration == 19 and torch.equal(rule.picture, out)


def test_memory_is_bounded_by_the_samples():
    rule = stopping.WindowedVariance(window=10, samples=100)
    for i, out in outputs(15, size=(1, 3, 32, 32)):
        rule.update(i, out, out)
    assert rule.outputs.shape == (10, 100)


@pytest.mark.parametrize("name", list(stopping.RULES))
def test_resumed_rule_decides_alike(name, tmp_path):
    whole = stopping.make(name, patience=12, window=5)
    first, second = (stopping.make(name, patience=12, window=5) for _ in range(2))
    for rule in (whole, first, second):
        rule.start = 5
        rule.samples = 40  # of 64: the same ones are picked again
    for i, out in outputs(100):
        decided = whole.update(i, out, out)
        if i < 36:  # between the minimum and the end
            first.update(i, out, out)
            continue
        if i == 36:
            torch.save(first.state_dict(), tmp_path / "rule.pt")
            second.load_state_dict(torch.load(tmp_path / "rule.pt", weights_only=True))
        assert second.update(i, out, out) == decided
        if decided:
            break
    assert decided == (name != "fixed")
    assert second.iteration == whole.iteration and torch.equal(second.picture, whole.picture)


@pytest.mark.parametrize(
    "name, settings", [("ES-WVM", {}), ("ES-WMV", {"patience": 0}), ("ES-WMV", {"window": 1})]
)
def test_bad_settings_are_refused(name, settings):
    with pytest.raises(UserError, match="--"):
        stopping.make(name, **settings)
