"""Stopping rules: they stop, return the recorded picture, stay small, survive a resume."""

import copy
import math

import numpy as np
import pytest
import torch
from conftest import refused

from dip_recon import data, images, stopping
from dip_recon.errors import UserError
from dip_recon.fit import State, fit, iterate, make_optimizer
from dip_recon.guard import Guard
from dip_recon.noise import add_gaussian, clipped_deviation, clipped_moments, estimate_sigma
from dip_recon.operators import FourierSampling, Mask
from dip_recon.problem import Problem


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


def variance(rule, out):
    figures = rule.measure(out, out)
    return rule._variance([] if figures is None else figures.tolist())


def test_windowed_variance_equals_its_definition():
    rule = stopping.WindowedVariance(window=7, start=0)
    seen = []
    for _, out in outputs():
        seen.append(out)
        value = variance(rule, out)
        if len(seen) < 7:
            assert value is None
        else:
            assert value == pytest.approx(plain_wmv(seen, 7), rel=1e-6)


def test_moving_variance_equals_its_recursion():
    rule = stopping.MovingVariance(alpha=0.2, start=0)
    ema, emv = None, 0.0
    for _, out in outputs():
        value = variance(rule, out)
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


def test_the_same_values_are_looked_at_however_the_picture_lies_in_memory():
    rule = stopping.WindowedVariance(samples=100)
    out = torch.rand(1, 3, 16, 20)
    larger = torch.zeros(1, 3, 24, 24).contiguous(memory_format=torch.channels_last)
    larger[..., 2:18, 3:23] = out
    values = rule._sample(out)
    assert len(values.unique()) == 100 and torch.isin(values, out).all()
    for same in (out.contiguous(memory_format=torch.channels_last), larger[..., 2:18, 3:23], out):
        assert torch.equal(rule._sample(same), values)


@pytest.mark.parametrize("name", list(stopping.RULES))
def test_resumed_rule_decides_alike(name, tmp_path):
    settings = {"patience": 12, "window": 5, "mns_hold": 16, "least": 12}
    size = (1, 1, 24, 24)
    problem = Problem.denoising(torch.full(size, 0.5), sigma=25)
    rules = [stopping.make(name, problem=problem, **settings) for _ in range(3)]
    whole, first, second = rules
    for rule in rules:
        rule.start = 5
        rule.samples = 40  # the same ones are picked again
    for i, out in outputs(100, size=size):
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


# ---------------------------------------------------------------- method noise


def noisy(sigma, x=0.5, size=(64, 64)):
    clean = torch.full((1, 1, *size), x)
    noise = torch.randn(clean.shape, generator=torch.Generator().manual_seed(5)) * sigma / 255
    return Problem.denoising((clean + noise).clamp(0, 1), clean, sigma=sigma)


@pytest.mark.parametrize("x", [0.0, 0.02, 0.3, 0.97, 1.0])
@pytest.mark.parametrize("sigma", [5, 25, 75])
def test_the_moments_of_clipped_noise_are_those_of_a_sample(x, sigma):
    n = np.random.RandomState(1).standard_normal(400_000)
    sampled = np.clip(x + sigma / 255 * n, 0, 1)
    mean, variance = clipped_moments(x, sigma)
    assert float(mean) == pytest.approx(sampled.mean(), abs=2e-3)
    assert float(variance) == pytest.approx(sampled.var(), rel=0.01)


@pytest.mark.parametrize("name", ["astronaut", "rocket", "coffee", "moon"])
@pytest.mark.parametrize("sigma", [10, 25, 50, 75])
def test_the_deviation_of_clipped_noise_is_told_from_the_noisy_picture(name, sigma):
    [item] = data.resolve(f"bundled/{name}")
    clean = images.read(item.path).data[:, :200, :200]
    y = add_gaussian(clean, sigma, np.random.RandomState(7))
    true = 255 * float(np.sqrt(clipped_moments(clean, sigma)[1].mean()))
    assert clipped_deviation(y, sigma) == pytest.approx(true, rel=0.02)


@pytest.mark.parametrize("name", ["SMNS", "AMNS"])
def test_method_noise_ends_the_run_when_it_was_low_often_enough(name):
    problem = noisy(25)
    rule = stopping.make(name, problem=problem, mns_hold=3)
    assert not rule.estimated and rule.sigma == 25
    rms = rule.target()
    assert rms == pytest.approx({"SMNS": 24.45, "AMNS": 25}[name] / 255, rel=0.06)

    def at(distance):  # a candidate that is this far from y
        return problem.y + distance

    # above, below, above again: what was below still counts
    said = [rule.update(i, None, at(rms * f)) for i, f in enumerate([1.2, 0.97, 1.2, 0.97, 0.97])]
    assert said == [False, False, False, False, True]
    assert rule.iteration == 4 and rule.picture.equal(at(rms * 0.97))


def test_method_noise_resumes_where_it_was():
    problem = noisy(25)
    first, second = (stopping.make("AMNS", problem=problem, mns_hold=2) for _ in range(2))
    assert not first.update(0, None, problem.y)
    second.load_state_dict(first.state_dict())
    assert second.update(1, None, problem.y)


def test_the_noise_level_is_estimated_where_it_is_not_known():
    problem = noisy(20)
    problem.sigma = None
    rule = stopping.make("AMNS", problem=problem)
    assert rule.estimated and rule.sigma == pytest.approx(20, rel=0.1)
    assert rule.target() == pytest.approx(rule.sigma / 255)
    assert stopping.make("SMNS", problem=problem, sigma=13.0).sigma == 13


def test_the_adaptive_target_allows_for_clipping_and_not_for_texture():
    grey, dark = (stopping.make("AMNS", problem=noisy(25, x)).target() for x in (0.5, 0.0))
    assert grey == pytest.approx(25 / 255, rel=0.06)
    assert dark == pytest.approx(25 / 255 * math.sqrt(0.5 - 0.5 / math.pi), rel=0.1)
    textured = noisy(10)
    stripes = 0.3 * (torch.arange(64) % 2) - 0.15
    textured.y = (textured.y + stripes * stripes[:, None].sign()).clamp(0, 1)
    assert estimate_sigma(textured.y[0].numpy()) > 30
    assert stopping.make("AMNS", problem=textured).target() <= 10.2 / 255


@pytest.mark.parametrize(("name", "beside"), [("AMNS", 0.0), ("SMNS", 0.0), ("SMNS", 0.12)])
def test_method_noise_is_asked_where_clipping_leaves_it(name, beside):
    problem, dark = noisy(25), noisy(25, beside)
    problem.y = torch.cat([problem.y, dark.y], -1)
    rule = stopping.make(name, problem=problem, mns_hold=1)
    assert rule.target() == pytest.approx(25 / 255, rel=0.06), "what the bright half has"
    assert rule.where[..., :64].all() and rule.where[..., 64:].float().mean() < 0.2

    def at(bright, dark):
        return problem.y + rule.target() * torch.where(rule.where, bright, dark)

    assert not rule.update(0, None, at(1.1, 0.0))
    assert rule.update(1, None, at(0.9, 9.0))
    assert stopping.make(name, problem=dark).where is None, "where nothing else is left"
    told = Problem.denoising(problem.y)  # its level is that of all pixels
    assert stopping.make(name, problem=told).where is None


def test_method_noise_wants_noise():
    problem = noisy(25)
    masked = Problem(problem.y, Mask(torch.ones(1, 1, 64, 64)), (64, 64))
    refused(lambda: stopping.make("SMNS", problem=masked), "SMNS", "--sigma")
    refused(lambda: stopping.make("AMNS", problem=masked, sigma=9), "AMNS", "SMNS")
    flat = Problem.denoising(torch.full((1, 1, 64, 64), 0.5))
    refused(lambda: stopping.make("SMNS", problem=flat), "no noise")


def test_unknown_pixels_are_no_method_noise():
    problem = noisy(25)
    mask = torch.zeros(1, 1, 64, 64)
    mask[..., :32] = 1
    masked = Problem(problem.y * mask, Mask(mask), (64, 64), sigma=25)
    rule = stopping.make("SMNS", problem=masked, mns_hold=1)
    candidate = problem.y.clone()
    candidate[..., 32:] = 5  # nobody knows
    assert rule.update(0, None, candidate)
    candidate[..., :32] += 0.2
    assert not stopping.make("SMNS", problem=masked, mns_hold=1).update(0, None, candidate)


@pytest.mark.parametrize("times, below", [(0.9, True), (1.5, False)])
def test_unmeasured_frequencies_are_no_method_noise(times, below):
    mask = (torch.rand(64, 64, generator=torch.Generator().manual_seed(0)) < 0.3).float()
    A, x = FourierSampling(mask), noisy(25).y
    problem = Problem(A(x) + mask * times * 25 / 255, A, (64, 64), sigma=25)
    assert stopping.make("SMNS", problem=problem, mns_hold=1).update(0, None, x) == below
    assert problem.psnr_measured(x) == pytest.approx(-20 * math.log10(times * 25 / 255), abs=0.01)


@pytest.mark.parametrize("name", ["ES-WMV", "ES-EMV"])
def test_a_rule_that_is_told_late_counts_from_there(name):
    rule = stopping.make(name, start=20, window=2, patience=1000)
    for iteration in range(400, 430):  # it varies least in the middle
        out = torch.tensor([0.0, 1.0]) * (iteration % 2) * (0.1 + abs(iteration - 415))
        rule.update(iteration, out, out)
    assert rule.iteration >= 420 and rule.minimum < math.inf


# ---------------------------------------------------------------- held out


def picture_of(level, size=64):
    return torch.full((1, 3, size, size), level)


def test_held_out_pixels_are_not_fitted_and_tell_when_to_stop():
    problem = Problem.denoising(picture_of(0.5))
    rule = stopping.make("held-out", problem=problem, least=3)
    held = rule.held.expand_as(problem.y) > 0
    assert 0.02 < held.float().mean() < 0.031
    fitted = rule.fitted(problem)
    anywhere = torch.where(held, torch.tensor(9.0), problem.y)
    assert fitted.A(anywhere).equal(fitted.y), "what is said there does not matter"
    assert not fitted.A(problem.y + 0.1).equal(fitted.y)

    def off(error, elsewhere):  # a candidate with one error there and another elsewhere
        return problem.y + torch.where(held, error, elsewhere)

    errors = [(0.4, 0.4), (0.1, 0.3), (0.2, 0.2), (0.2, 0.1), (0.3, 0.0)]
    said = [rule.update(i, None, off(*e)) for i, e in enumerate(errors)]
    assert said == [False, False, False, False, True]
    assert rule.iteration == 1 and rule.picture.equal(off(0.1, 0.3))


def test_what_is_held_out_was_measured():
    mask = torch.zeros(1, 1, 64, 64)
    mask[..., :32] = 1
    problem = Problem(picture_of(0.5) * mask, Mask(mask), (64, 64))
    rule = stopping.make("held-out", problem=problem)
    assert rule.held[..., :32].sum() == rule.held.sum() > 0
    fitted = rule.fitted(problem)
    assert fitted.psnr_measured(picture_of(0.5)) > 100
    assert fitted.psnr_measured(picture_of(0.4)) == pytest.approx(20, abs=0.01)
    one = Problem.denoising(torch.zeros(1, 1, 1, 1))
    refused(lambda: stopping.make("held-out", problem=one), "held-out", "too few")


def test_frequencies_held_out_were_measured_and_are_not_the_mean():
    mask = torch.zeros(64, 64)
    mask[:16], mask[40:48] = 1, 1
    A = FourierSampling(mask)
    problem = Problem(A(picture_of(0.5)), A, (64, 64))
    for _ in range(3):
        rule = stopping.make("held-out", problem=problem)
        assert (rule.held[0, 0] <= mask).all() and rule.held.sum() > 30
        assert not rule.held[..., 0, 0]


@pytest.mark.parametrize("shape", [(600,), (1, 600), (1, 20, 30), (2, 3, 20, 30)])
def test_any_measurement_can_be_held_out(shape):
    y = torch.rand(shape, generator=torch.Generator().manual_seed(0))
    problem = Problem(y, torch.nn.Identity(), (20, 30))
    rule = stopping.make("held-out", problem=problem, least=2)
    assert rule.held.sum() == 18, "3 % of 600"
    off = y + torch.where(rule.held > 0, 0.1, 0.0)
    assert not rule.update(0, None, off)
    assert rule.best == pytest.approx(0.01 * 18 * y.numel() / 600)
    assert rule.fitted(problem).A(off).equal(rule.fitted(problem).y)


def test_held_out_waits_the_longer_the_longer_it_took():
    problem = Problem.denoising(picture_of(0.5))
    rule = stopping.make("held-out", problem=problem, least=10)
    for i in range(401):
        assert not rule.update(i, None, problem.y + (0.5 - i / 1000))
    ended = next(i for i in range(401, 900) if rule.update(i, None, problem.y + 0.3))
    assert ended == 471 and rule.iteration == 400  # 71 of 471 are 15 %


def test_held_out_resumes_where_it_was():
    problem = Problem.denoising(picture_of(0.5))
    first, second = (stopping.make("held-out", problem=problem, least=2) for _ in range(2))
    first.update(0, None, problem.y + 0.1)
    second.load_state_dict(first.state_dict())
    assert not second.update(1, None, problem.y + 0.2)
    assert second.update(2, None, problem.y + 0.2)
    assert second.iteration == 0 and second.picture.equal(problem.y + 0.1)
    assert first.state_dict().keys() == second.state_dict().keys()
    first.update(1, None, problem.y + 0.2)
    assert second.errors.equal(first.errors) and second.count == first.count == 1


def test_what_is_not_significantly_worse_passes_for_as_good():
    problem = noisy(25)
    far, near = 26 / 255, 10 / 255  # method noise at the noise level, and clearly below
    draws = torch.randn(9, *problem.y.shape, generator=torch.Generator().manual_seed(0))

    def rule():
        return stopping.make("held-out", problem=problem, least=3)

    def off(i, error, elsewhere):  # errors of that power there, other ones in each iteration
        held = one.held.expand_as(problem.y) > 0
        d = draws[i] * (error / draws[i][held].square().mean().sqrt())
        return problem.y + torch.where(held, d, elsewhere)

    one, seen = rule(), []
    for i, error in enumerate([0.1, 0.1001, 0.1002, 0.1003, 0.1004]):
        seen.append(off(i, error, far))
        assert not one.update(i, None, seen[-1])
    elsewhere = (one.held.expand_as(problem.y) == 0).nonzero()[0].tolist()
    assert one.iteration == 4, "the last that passed"
    mean = torch.cat(seen).mean(0)[tuple(elsewhere[1:])]
    torch.testing.assert_close(one.picture[tuple(elsewhere)], mean)
    better = off(5, 0.09, near)
    assert not one.update(5, None, better)
    assert one.picture[tuple(elsewhere)] == better[tuple(elsewhere)], "a new best begins anew"
    ended = [one.update(i, None, off(i, 0.0901, near)) for i in (6, 7, 8)]
    assert ended == [False, False, True] and one.iteration == 5, "noise is fitted: none passes"
    one = rule()
    for i, error in enumerate([0.1, 0.1001, 0.1002]):
        one.update(i, None, off(i, error, 60 / 255))
    assert one.iteration == 2 and one.count == 1, "a coarse fit is no part of the mean"
    one = rule()
    ended = [one.update(i, None, off(i, 0.2 if i else 0.1, far)) for i in range(4)]
    assert ended[-1] and one.iteration == 0, "significantly worse, whatever the method noise"


def test_what_was_held_out_comes_in_with_the_weight_of_least_error():
    problem = noisy(25)
    rule = stopping.make("held-out", problem=problem)
    held = rule.held.expand_as(problem.y) > 0
    candidate = problem.y + 2 * rule.level  # its error there is s²·4, e² = 3s², so 3/4 is y's
    rule.update(0, None, candidate)
    assert rule.picture[~held].equal(candidate[~held])
    expected = problem.y + 0.5 * rule.level
    torch.testing.assert_close(rule.picture[held], expected[held])
    rule = stopping.make("held-out", problem=problem)
    rule.update(0, None, problem.y + 0.9 * rule.level)  # better than noise explains: no share
    torch.testing.assert_close(rule.picture, problem.y + 0.9 * rule.level)


# ---------------------------------------------------------------- decided on later


class Told(torch.nn.Module):
    """A network whose outputs are told beforehand."""

    def __init__(self):
        super().__init__()
        self.outputs = [out for _, out in outputs(100, size=(1, 1, 24, 24))]
        self.weight = torch.nn.Parameter(torch.zeros(()))
        self.register_buffer("n", torch.tensor(0))

    def forward(self, z):
        self.n += 1
        return self.outputs[self.n - 1] + 0 * self.weight


def told(name, every, **settings):
    y = torch.full((1, 1, 24, 24), 0.5)
    problem = Problem.denoising(y, sigma=25)
    rule = stopping.make(
        name, problem=problem, patience=12, window=5, mns_hold=16, least=12, **settings
    )
    rule.start, rule.samples = 5, 40
    network = Told()
    return State(
        problem, network, y, make_optimizer("adam", network.parameters(), 0.01),
        torch.Generator(), 0.01, ema=0.5, stopping=rule, ask_every=every,
    )  # fmt: skip


@pytest.mark.parametrize("name", [name for name in stopping.RULES if name != "fixed"])
@pytest.mark.parametrize("resumed", [False, True])
def test_decided_on_later_it_is_the_same(name, resumed):
    at_once, later = told(name, 1), told(name, 8)
    expected = fit(at_once, 100)
    if resumed:
        fit(later, 37)
        saved = copy.deepcopy(later.state_dict())
        later = told(name, 8)
        later.load_state_dict(saved)
    found = fit(later, 100)
    assert expected.stopped_by_rule and found.stopped_by_rule
    assert expected.stop_iteration == found.stop_iteration
    assert torch.equal(expected.stopped, found.stopped)
    assert 0 <= found.iterations - expected.iterations < 8
    assert later.stopped and not later.undecided


def test_a_run_whose_last_outputs_are_undecided_is_whole():
    states = [told("ES-WMV", every) for every in (1, 8)]
    first, second = (fit(s, 43) for s in states)
    assert first.stop_iteration == second.stop_iteration > 30 - 12
    assert torch.equal(first.stopped, second.stopped)
    assert first.stopped_by_rule == second.stopped_by_rule


def test_a_rule_that_looks_by_itself_is_asked_each_time(fresh):
    class Third(stopping.Fixed):
        def update(self, iteration, out, candidate):
            self.iteration, self.picture = iteration, candidate
            return iteration == 2

    s = fresh(ask_every=8)
    s.stopping = Third()
    result = fit(s, 30)
    assert result.stopped_by_rule and result.iterations == 3


def test_a_checkpoint_that_finds_the_end_ends_the_run():
    s = told("SMNS", 100)
    saves = []

    def save(state):
        if state.iteration % 30 == 0:
            saves.append(state.state_dict())

    result = fit(s, 100, [save])
    assert result.stopped_by_rule and result.iterations == 60 and saves[-1]["stopped"]


@pytest.mark.parametrize("lost", ["no number", "no number, unguarded", "collapse"])
def test_what_is_lost_after_the_end_changes_nothing(lost):
    """By the time that the rule is asked the fit has gone on, and may be lost."""

    class Lost(Told):
        def forward(self, z):
            out, factor = super().forward(z), math.nan if "number" in lost else 0
            return out if self.n <= 45 else factor * out + 5

    found, states = [], [told("ES-WMV", every) for every in (1, 8)]
    for s in states:
        s.network.__class__ = Lost
        s.guard = None if "unguarded" in lost else Guard(every=10)
        found.append(fit(s, 46 if lost == "collapse" else 100))
    at_once, later = found
    assert at_once.iterations == 45 and at_once.stopped_by_rule and later.stopped_by_rule
    assert at_once.stop_iteration == later.stop_iteration
    for name in ("stopped", "out", "ema"):
        assert torch.equal(getattr(at_once, name), getattr(later, name)), name
    assert not states[1].guard or not states[1].guard.troubles


def test_an_end_that_is_itself_lost_is_gone_back_from():
    class Lost(Told):
        def forward(self, z):
            out = super().forward(z)
            return out * (math.nan if self.n > 31 and not s.guard.troubles else 1)

    s = told("ES-WMV", 8)
    s.network.__class__ = Lost
    s.guard = Guard(every=28)  # which looks so seldom that the rule's patience ends before
    result = fit(s, 100)
    assert [t["noticed"] for t in s.guard.troubles] == [44], "not looked at, but asked by eights"
    expected = fit(told("ES-WMV", 8), 100)
    assert result.stopped_by_rule and result.stop_iteration == expected.stop_iteration
    assert torch.equal(result.restored, expected.restored)


def test_going_back_forgets_what_is_undecided(fresh):
    s = fresh(rule="ES-WMV", ask_every=8)
    iterate(s, 12, [])
    saved = copy.deepcopy(s.state_dict())
    iterate(s, 14, [])
    assert len(s.undecided) == 2
    s.load_state_dict(saved)
    assert not s.undecided and s.iteration == 12
