"""The guard: it puts back what is lost, is not noticed otherwise, and says what it did."""

import json
import math

import pytest
import torch

from dip_recon import images, memory, prepare
from dip_recon.callbacks import Evaluation, Snapshots
from dip_recon.cli import main as command
from dip_recon.experiment import main
from dip_recon.fit import LOSSES, State, fit
from dip_recon.growing import Growing, phases
from dip_recon.guard import Guard
from dip_recon.options import DenoisingOptions
from dip_recon.problem import Problem
from dip_recon.runs import Run
from dip_recon.tasks import Job

QUICK = {"every": 5, "patience": 2}


class Poison:
    """A callback that spoils a weight after iteration ``at``, once, or each time."""

    def __init__(self, at, once=True, value=math.nan):
        self.at, self.once, self.value = at, once, value

    def __call__(self, state):
        if state.iteration == self.at:
            with torch.no_grad():
                weights = next(state.network.parameters())
                weights[(0,) * weights.ndim] = self.value
            self.at = -1 if self.once else self.at


@pytest.mark.parametrize("rule", ["fixed", "ES-WMV"])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_healthy_run_has_the_same_bits(fresh, rule, precision):
    plain = fit(fresh(rule=rule, precision=precision), 30)
    state = fresh(rule=rule, precision=precision, guard=Guard(**QUICK))
    guarded = fit(state, 30)
    assert not state.guard.troubles and state.lr == 0.01 and state.precision == precision
    for name in ("out", "ema", "stopped"):
        assert torch.equal(getattr(plain, name), getattr(guarded, name))


def test_no_look_calls_the_operator_or_draws_a_number(fresh):
    state = fresh(guard=Guard(every=1))
    calls, operator = [], state.problem.A
    state.problem.A = lambda x: calls.append(torch.initial_seed()) or operator(x)
    before = torch.get_rng_state()
    fit(state, 10)
    assert len(calls) == 10 and torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("at", [3, 12])
def test_a_poisoned_weight_is_put_back(fresh, at, value):
    state = fresh(guard=Guard(**QUICK), precision="bf16")
    result = fit(state, 40, [Poison(at, value=value)])
    [trouble] = state.guard.troubles
    assert trouble["back_to"] == at // 5 * 5 and trouble["noticed"] <= at + 5
    assert "no finite number" in trouble["what"]
    assert state.lr == trouble["lr"] == 0.0025 and state.precision == "fp32"
    assert result.iterations == 40 and torch.isfinite(result.restored).all()


def test_without_room_for_float32_it_stays_in_bfloat16(fresh, monkeypatch):
    monkeypatch.setattr(memory, "free", lambda device=None: 10**6)
    state = fresh(guard=Guard(**QUICK), precision="bf16")
    fit(state, 20, [Poison(12)])
    [trouble] = state.guard.troubles
    assert trouble["precision"] == state.precision == "bf16" and state.lr == 0.0025
    assert "bf16" in state.guard.told()


def test_from_where_it_went_back_it_is_a_run_with_a_smaller_rate(fresh):
    """Weights, statistics, moments, average, rule and generator are all those of iteration 10."""
    expected = fresh(rule="ES-WMV")
    fit(expected, 10)
    expected.lr = 0.0025
    expected = fit(expected, 30)
    state = fresh(rule="ES-WMV", guard=Guard(**QUICK))
    result = fit(state, 30, [Poison(13)])
    assert len(state.guard.troubles) == 1
    for name in ("out", "ema", "stopped"):
        assert torch.equal(getattr(result, name), getattr(expected, name))


@pytest.mark.parametrize("once", [True, False])
def test_snapshots_are_of_what_was_kept(fresh, tmp_path, once):
    run = Run(tmp_path)
    (tmp_path / "snapshots").mkdir()
    state = fresh(guard=Guard(**QUICK))
    fit(state, 40, [Snapshots(run, [3, 11, 12, 35]), Poison(14, once)])
    assert bool(state.guard.gave_up) != once
    assert list(run.snapshots()) == ([3, 11, 12, 35] if once else [3])


def test_an_operator_that_fails_once(fresh):
    state = fresh(guard=Guard(**QUICK))
    calls = []

    def operator(x):
        calls.append(1)
        return x * math.nan if len(calls) == 13 else x

    state.problem.A = operator
    evaluation = Evaluation(1, 100)
    fit(state, 20, [evaluation])
    [trouble] = state.guard.troubles
    assert (trouble["noticed"], trouble["back_to"]) == (7, 5)
    rows = [row["iteration"] for row in evaluation.rows]
    assert rows == list(range(20)), "what came after is forgotten"


@pytest.mark.parametrize("loss", LOSSES)
def test_no_number_with_any_loss(fresh, loss):
    state = fresh(guard=Guard(**QUICK), loss_fn=LOSSES[loss])
    fit(state, 15, [Poison(7)])
    assert state.guard.troubles[0]["back_to"] == 5 and not state.guard.gave_up


def test_a_huge_learning_rate_is_made_smaller(fresh):
    state = fresh(guard=Guard(every=5, patience=3), lr=3.0)
    first = float((fit(state, 1).out - state.problem.y).square().mean())
    result = fit(state, 100)
    assert state.lr < 1 and not state.guard.gave_up
    assert "further off than where it began" in state.guard.troubles[0]["what"]
    assert float((result.out - state.problem.y).square().mean()) < first


def test_what_has_collapsed_for_long_is_put_back_and_a_dip_is_not(fresh):
    def spoilt(until):
        def spoil(state):
            if 40 < state.iteration <= until and not state.guard.troubles:
                state.measured = state.measured + 3
                state.guard._first = None  # by which it would be astray as well

        return spoil

    for until, troubles in ((44, 0), (46, 0), (400, 1)):
        state = fresh(guard=Guard(every=5, patience=4), lr=0.02)
        look = state.guard.look
        spoil = spoilt(until)
        state.guard.look = lambda s, last, spoil=spoil, look=look: (spoil(s), look(s, last))
        fit(state, 80)
        assert len(state.guard.troubles) == troubles, until
    assert "collapsed" in state.guard.troubles[0]["what"]
    assert state.guard.troubles[0] | {"what": ""} == {
        "what": "", "noticed": 50, "back_to": 40, "lr": 0.005, "precision": "fp32",
    }  # fmt: skip


def falling(state, *iterations):
    """The state, whose guard sees a fall at each of these iterations, in this order."""
    look, left = state.guard.look, list(iterations)

    def looked(s, last):
        if left and s.iteration == left[0]:
            s.measured = s.measured + 3
            left.pop(0)
        look(s, last)

    state.guard.look = looked
    return state


def test_a_run_does_not_end_in_a_fall(fresh):
    state = falling(fresh(guard=Guard(**QUICK)), 33)
    expected = fresh()
    fit(expected, 30)
    expected.lr /= 4
    result, expected = fit(state, 33), fit(expected, 33)
    [trouble] = state.guard.troubles
    assert (trouble["noticed"], trouble["back_to"]) == (33, 30) and "collapsed" in trouble["what"]
    assert torch.equal(result.out, expected.out) and result.iterations == 33
    state = falling(fresh(guard=Guard(**QUICK)), 32)
    fit(state, 33)
    assert not state.guard.troubles, "it was back before"


def test_a_look_at_the_end_leaves_nothing(fresh):
    """So that a run that is made longer has the bits of one that was long from the beginning."""
    state = fresh(guard=Guard(**QUICK))
    fit(state, 13)
    assert state.guard._good["iteration"] == 10 and len(state.guard._errors) == 2


def test_float32_comes_with_the_second_collapse(fresh):
    state = falling(fresh(guard=Guard(every=5, patience=6), precision="bf16"), 20, 25, 20, 25)
    fit(state, 40)
    assert [t["precision"] for t in state.guard.troubles] == ["bf16", "fp32"]
    assert [t["back_to"] for t in state.guard.troubles] == [15, 15]


def test_stuck_at_grey_is_noticed_and_a_flat_picture_is_not(fresh):
    class Grey(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.level = torch.nn.Parameter(torch.zeros(1, 3, 1, 1))

        def forward(self, z):
            return self.level.sigmoid() + 0 * z[:, :3]

    def state_of(y):
        state = fresh(guard=Guard(**QUICK), jitter=0.0)
        state.network, state.problem.y = Grey(), y
        state.optimizer = torch.optim.Adam(state.network.parameters(), 0.1)
        return state

    stuck = state_of(fresh().problem.y)
    with pytest.raises(FloatingPointError, match="one grey"):
        fit(stuck, 100)
    assert stuck.guard.gave_up and len(stuck.guard.troubles) == 4
    flat = state_of(torch.full((1, 3, 32, 32), 0.6))
    flat.guard.patience = 10
    fit(flat, 150)
    assert not flat.guard.troubles


def test_after_three_times_it_gives_up_with_what_it_had(fresh):
    state = fresh(guard=Guard(**QUICK))
    expected = fit(fresh(), 10)
    result = fit(state, 50, [Poison(12, once=False)])
    assert state.guard.gave_up and len(state.guard.troubles) == 4
    assert result.iterations == 10 and torch.equal(result.restored, expected.restored)


def test_without_anything_good_it_says_so(fresh):
    state = fresh(guard=Guard(**QUICK))
    state.problem.y[0, 0, 0, 0] = math.nan
    with pytest.raises(FloatingPointError, match="no finite number"):
        fit(state, 30)


@pytest.mark.parametrize("cut", [11, 13, 15, 27])
def test_resumed_is_unbroken(fresh, tmp_path, cut):
    """Before the trouble, at a look, and after it; the guard's own memory is in the checkpoint."""

    def make():
        return fresh(guard=Guard(**QUICK), rule="ES-WMV")

    whole = make()
    expected = fit(whole, 40, [Poison(17)])
    broken, poison = make(), Poison(17)
    fit(broken, cut, [poison])
    torch.save(broken.state_dict(), tmp_path / "state.pt")
    again = make()
    again.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    result = fit(again, 40, [poison])
    assert again.guard.troubles == whole.guard.troubles and again.lr == whole.lr < 0.01
    for name in ("out", "ema", "stopped"):
        assert torch.equal(getattr(result, name), getattr(expected, name))


def test_a_checkpoint_of_before_there_was_a_guard(fresh, tmp_path):
    old = fresh()
    fit(old, 12)
    torch.save(old.state_dict(), tmp_path / "state.pt")
    state = fresh(guard=Guard(**QUICK))
    state.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    fit(state, 30, [Poison(13)])
    assert state.guard.troubles[0]["back_to"] == 12


def growing(guard, **more):
    """A State of two levels; the second begins at iteration 4."""
    options, _ = prepare.resolve(
        DenoisingOptions(model_type="PG_DIP", dim=[4], growing=True, num_scales=2, **more)
    )
    y = torch.rand(1, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    job = Job("p", Problem.denoising(y.clone()), y[0].numpy(), "")
    state = prepare.prepare(job, options, torch.device("cpu"), "fp32")
    plan = phases(len(state.network.levels), [4, 6], [4, 30])
    state.schedule, state.guard = Growing(plan), guard
    return state


@pytest.mark.parametrize("rule", ["fixed", "ES-WMV", "ES-EMV", "SMNS"])
def test_a_growing_network_is_put_back_into_its_phase(rule):
    def make():
        return growing(Guard(every=3, patience=100), stopping=rule, window=5, sigma=50.0)

    at = make().schedule.plan[1].start  # at a level that is gone on to in the middle
    state, other = make(), make()
    fit(state, at + 20, [Poison(at + 1)])
    back = state.guard.troubles[0]["back_to"]
    assert back <= at + 1
    fit(other, back)
    other.lr /= 4
    assert torch.equal(fit(other, at + 20).out, state.out)
    lost, unbroken = (s.stopping.state_dict() for s in (state, other))
    for name, value in unbroken.items():
        assert torch.equal(torch.as_tensor(lost[name]), torch.as_tensor(value)), name


def test_errors_of_a_smaller_picture_are_no_measure():
    """Of noise little is left in it."""
    state = growing(Guard(every=6, patience=1))
    fit(state, 14)
    assert not state.guard.troubles


# ---------------------------------------------------------------- as the user sees it


@pytest.fixture
def poisoned(monkeypatch):
    """Every run looks every 5 iterations and is poisoned after 12; ``once`` or each time."""

    def make(once):
        monkeypatch.setattr(prepare, "Guard", lambda: Guard(**QUICK))
        init = State.__post_init__

        def post_init(state):
            init(state)
            poison, schedule = Poison(12, once), state.schedule
            restore = schedule.restore
            state.schedule = lambda s: poison(s) or schedule(s)
            state.schedule.restore = restore

        monkeypatch.setattr(State, "__post_init__", post_init)

    return make


SMALL = ["--dim", "4", "--num_scales", "1", "--num_iters", "30", "--eval_every", "5"]
SMALL += ["--device", "cpu"]


def test_the_log_and_result_json_tell(folder, tmp_path, poisoned, capsys):
    poisoned(once=True)
    words = ["--folder_path", str(folder / "grey.png"), "--save_folder", str(tmp_path / "runs")]
    assert main(DenoisingOptions, words + SMALL) == 0
    run = Run(tmp_path / "runs/denoising/DIP_2_scaled/grey")
    [trouble] = run.result()["troubles"]
    assert trouble["back_to"] == 10 and "gave_up" not in run.result()
    log = (run.folder.parent / "log.txt").read_text()
    assert "no finite number" in log and "back to iteration 10, with learning rate 0.0025" in log
    assert [row["iteration"] for row in run.history()] == [0, 5, 10, 15, 20, 25, 29]


def test_tensorboard_has_no_more_than_the_history(folder, tmp_path, poisoned):
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    poisoned(once=False)
    words = ["--folder_path", str(folder / "grey.png"), "--save_folder", str(tmp_path / "runs")]
    assert main(DenoisingOptions, [*words, *SMALL, "--tensorboard"]) == 1
    run = Run(tmp_path / "runs/denoising/DIP_2_scaled/grey")
    events = accumulator.EventAccumulator(str(run.folder / "tensorboard"))
    events.Reload()
    kept = [int(row["iteration"]) for row in run.history() if row["iteration"] % 5 == 0]
    assert [event.step for event in events.Scalars("loss")] == kept


def test_a_run_given_up_leaves_a_picture_and_status_1(folder, tmp_path, poisoned, capsys):
    poisoned(once=False)
    words = ["--folder_path", str(folder), "--save_folder", str(tmp_path / "runs"), *SMALL]
    assert main(DenoisingOptions, words) == 1
    assert "given up, back at iteration 10" in capsys.readouterr().out
    for name in ("grey", "colour"):
        run = Run(tmp_path / "runs/denoising/DIP_2_scaled" / name)
        assert run.result()["gave_up"] and run.result()["iterations"] == 10
        assert images.read(run.folder / "restored.png").data.max() > 0
        assert not (run.folder / "checkpoint.pt").exists()
    assert main(DenoisingOptions, [*words, "--resume"]) == 1
    sweep = tmp_path / "s.yaml"
    sweep.write_text(f"options: {{folder_path: {folder / 'grey.png'}}}\ngrid: {{seed: [7]}}\n")
    words = ["sweep", str(sweep), "--save_folder", str(tmp_path / "out"), *SMALL]
    assert command(words) == 1
    assert "1 gave up" in capsys.readouterr().out


@pytest.mark.parametrize("more", [[], ["--tile", "32", "--overlap", "4"]])
def test_the_command_says_that_it_gave_up(folder, tmp_path, poisoned, capsys, more):
    poisoned(once=False)
    out = tmp_path / "out.png"
    words = ["denoise", str(folder / "grey.png"), "-o", str(out), "--width", "4", "--device", "cpu"]
    words += ["--iterations", "30", "--stopping", "none", "--sigma", "20", *more]
    assert command(words) == 1
    assert out.is_file() and "lost again and again" in capsys.readouterr().out


def test_json_can_hold_what_is_told():
    guard = Guard()
    guard.troubles = [{"what": "x", "noticed": 1, "back_to": 0, "lr": 0.1, "precision": "fp32"}]
    assert json.dumps(guard.troubles) and "back to iteration 0" in guard.told()


@pytest.mark.parametrize(
    "wrong",
    [{"_bad": 5}, {"_first": torch.zeros(3)}, {"troubles": [{"lr": "x", "precision": "fp32"}]}],
)
def test_a_guard_that_is_none_is_refused(fresh, wrong):
    old = fresh(guard=Guard(**QUICK))
    fit(old, 6)
    saved = old.state_dict()
    saved["guard"] |= wrong
    with pytest.raises((TypeError, ValueError, AttributeError)):
        fresh(guard=Guard(**QUICK)).load_state_dict(saved)


def test_names_from_a_checkpoint_set_nothing_else(fresh):
    old = fresh(guard=Guard(**QUICK))
    fit(old, 6)
    saved = old.state_dict()
    saved["guard"]["look"] = 3
    again = fresh(guard=Guard(**QUICK))
    again.load_state_dict(saved)
    assert callable(again.guard.look)
