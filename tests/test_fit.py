"""The loop: it fits, the same each time, resumed or not, and what watches it changes nothing."""

import pytest
import torch

from dip_recon.callbacks import Evaluation
from dip_recon.errors import UserError
from dip_recon.fit import (
    LOSSES,
    OPTIMIZERS,
    Backtracking,
    Decay,
    LastOutputs,
    MovingAverage,
    bf16_available,
    choose,
    fit,
    jittered,
    make_optimizer,
    step,
)
from dip_recon.metrics import psnr
from dip_recon.operators import Mask
from dip_recon.problem import Problem


def test_restores_better_than_the_measurement(fresh):
    state = fresh(ema=0.95, lr=0.02)
    result = fit(state, 150)
    x = state.problem.x
    assert psnr(result.restored, x) > psnr(state.problem.y, x) + 2
    assert result.iterations == 150 and result.stop_iteration == 149
    assert torch.equal(result.restored, result.ema) and not torch.equal(result.ema, result.out)


def test_same_seed_same_result_and_callbacks_change_nothing(fresh):
    plain = fit(fresh(), 20)
    watched = fit(fresh(), 20, [Evaluation(3, 5), lambda state: torch.rand(3)])
    assert torch.equal(plain.out, watched.out) and torch.equal(plain.ema, watched.ema)


@pytest.mark.parametrize("rule", ["fixed", "ES-WMV", "ES-EMV"])
@pytest.mark.parametrize("backtracking", [None, 0.0001])
def test_resumed_is_identical(fresh, tmp_path, rule, backtracking):
    def make():
        undo = Backtracking(backtracking, 0.9) if backtracking else None
        state = fresh(rule=rule, backtracking=undo, patience=8)
        state.stopping.start = 5
        return state

    whole = make()
    expected = fit(whole, 30)
    broken = make()
    fit(broken, 13)
    torch.save(broken.state_dict(), tmp_path / "state.pt")
    resumed = make()
    resumed.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    result = fit(resumed, 30)
    assert resumed.iteration == whole.iteration
    if backtracking:
        assert whole.backtracking.count == resumed.backtracking.count > 0
    for name in ("out", "ema", "stopped"):
        assert torch.equal(getattr(result, name), getattr(expected, name))


def test_a_run_that_its_rule_has_ended_stays_ended(fresh):
    state = fresh()
    state.stopping.update = lambda i, out, candidate: i == 4
    state.stopping.iteration, state.stopping.picture = 4, torch.zeros(1, 3, 32, 32)
    assert fit(state, 30).iterations == 5
    assert state.state_dict()["stopped"]
    assert fit(state, 30).iterations == 5


def test_no_average_means_the_output_is_the_result(fresh):
    result = fit(fresh(ema=0.0), 5)
    assert torch.equal(result.restored, result.out)


def test_operator_and_loss_are_whatever_is_given(fresh):
    state = fresh()
    y = state.problem.y
    state.problem = Problem(2 * y.flip(-1), lambda x: 2 * x.flip(-1), (32, 32), state.problem.x)
    state.loss_fn = torch.nn.functional.smooth_l1_loss
    before = psnr(fit(state, 1).out, y)
    assert psnr(fit(state, 80).out, y) > before + 3


def test_psnr_to_the_measurement_counts_known_pixels_only():
    mask = torch.zeros(1, 1, 4, 4)
    mask[..., :2] = 1
    problem = Problem(mask.clone() * 0.5, Mask(mask), (4, 4))
    assert problem.psnr_measured(torch.full((1, 1, 4, 4), 0.6)) == pytest.approx(20, abs=1e-3)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_the_noise_on_the_input_is_fresh_and_leaves_the_input(fresh, layout):
    s = fresh()
    s.z = s.z.to(memory_format=layout)
    before, drawn = s.z.clone(), torch.Generator().set_state(s.generator.get_state())
    for _ in range(2):
        noise = torch.empty(s.z.numel()).normal_(generator=drawn)
        expected = s.z + s.jitter * noise.as_strided(s.z.shape, s.z.stride())
        found = jittered(s)
        assert torch.equal(found, expected) and torch.equal(s.z, before)
        assert found.stride() == s.z.stride()


def test_schedule_sets_the_learning_rate(fresh):
    seen = []
    state = fresh(schedule=Decay(0.5, 2))
    fit(state, 4, [lambda s: seen.append(s.optimizer.param_groups[0]["lr"])])
    assert seen == [0.01, 0.01, 0.005, 0.005]


def test_the_moving_average_may_begin_late(fresh, tmp_path):
    outs, averages = [], []

    def watch(state):
        outs.append(state.out)
        averages.append(state.smoothed.clone())

    fit(fresh(ema=0.9, average=MovingAverage(3)), 6, [watch])
    for out, average in zip(outs[:4], averages, strict=False):
        assert torch.equal(out, average)
    expected = outs[3]
    for i in (4, 5):
        expected = 0.9 * expected + 0.1 * outs[i]
        torch.testing.assert_close(averages[i], expected)
    for cut in (2, 4, 5):
        state = fresh(ema=0.9, average=MovingAverage(3))
        fit(state, cut)
        torch.save(state.state_dict(), tmp_path / "c.pt")
        again = fresh(ema=0.9, average=MovingAverage(3))
        again.load_state_dict(torch.load(tmp_path / "c.pt", weights_only=True))
        assert torch.equal(fit(again, 6).ema, averages[5])


def test_the_mean_of_the_last_outputs(fresh, tmp_path):
    outs = []
    state = fresh(average=LastOutputs(3))
    fit(state, 5, [lambda s: outs.append(s.out)])
    torch.testing.assert_close(state.smoothed, torch.stack(outs[-3:]).mean(0))
    torch.save(state.state_dict(), tmp_path / "c.pt")
    fit(state, 8)
    again = fresh(average=LastOutputs(3))
    again.load_state_dict(torch.load(tmp_path / "c.pt", weights_only=True))
    fit(again, 8)
    assert torch.equal(again.smoothed, state.smoothed)


def test_total_variation_smooths(fresh):
    def roughness(weight):
        out = fit(fresh(tv_weight=weight), 60).out
        return float(out.diff(dim=-1).abs().mean())

    assert roughness(5.0) < 0.8 * roughness(0.0)


@pytest.mark.parametrize("name", LOSSES)
def test_losses_take_what_an_operator_may_give(fresh, name):
    state = fresh(loss_fn=LOSSES[name])
    state.problem.A = lambda x: 1.2 * x - 0.1  # beyond [0, 1], as Lanczos does
    assert torch.isfinite(fit(state, 3).out).all()


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_optimisers_fit(fresh, name):
    state = fresh(optimizer=name, lr=0.001)
    first = float(fit(state, 1).out.sub(state.problem.y).square().mean())
    assert float(fit(state, 40).out.sub(state.problem.y).square().mean()) < first


def test_unknown_optimiser(fresh):
    with pytest.raises(UserError, match="did you mean 'adam'"):
        make_optimizer("adm", [], 0.1)


def test_backtracking_restores_weights_and_moments(fresh):
    state = fresh(backtracking=Backtracking(5.0, 0.5))
    fit(state, 80)
    undo = state.backtracking

    def tensors():
        return [t.clone() for t in undo._tensors(state)]

    before = tensors()
    step(state)  # notes ``before`` as good, then moves on
    with torch.no_grad():
        for p in state.network.parameters():
            p.add_(torch.randn(p.shape, generator=torch.Generator().manual_seed(5)))
        state.network.state_dict()
    good, average = [t.clone() for t in undo._good], state.smoothed.clone()
    assert not step(state)
    assert undo.count == 1 and undo.scale == 0.5
    for was, noted, now in zip(before, good, tensors(), strict=True):
        assert torch.equal(noted, now) and was.shape == now.shape
    assert torch.equal(state.smoothed, average), "the bad output must not be averaged in"
    step(state)
    assert state.optimizer.param_groups[0]["lr"] == pytest.approx(0.005)


def test_backtracking_without_a_collapse_changes_nothing(fresh):
    assert torch.equal(fit(fresh(), 15).out, fit(fresh(backtracking=Backtracking(5.0)), 15).out)


def test_a_loss_that_is_no_number_is_said_to_be(fresh):
    state = fresh()
    state.problem.y[0, 0, 0, 0] = float("nan")
    with pytest.raises(FloatingPointError, match="iteration 2"):
        fit(state, 2)


def test_device_and_precision():
    assert choose("cpu", "fp32") == (torch.device("cpu"), "fp32")
    assert choose("cpu", "auto")[1] == ("bf16" if bf16_available("cpu") else "fp32")
    for wrong in (("gpu", "auto"), ("cpu", "fp16")):
        with pytest.raises(UserError, match="--"):
            choose(*wrong)
    if not torch.cuda.is_available():
        with pytest.raises(UserError, match="--device cuda"):
            choose("cuda", "auto")


def test_bf16_is_close_to_fp32(fresh):
    a, b = fit(fresh(), 60), fit(fresh(precision="bf16"), 60)
    assert psnr(a.ema, b.ema) > 25
