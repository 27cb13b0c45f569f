"""Steps recorded once and carried out from then on: the same fit. A tape stands in for the card."""

import copy
import json
import math
from dataclasses import replace
from functools import partial

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from dip_recon import images, models, prepare, recorded, stopping
from dip_recon.experiment import main
from dip_recon.fit import Backtracking, Decay, LastOutputs, State, fit, iterate, make_optimizer
from dip_recon.flags import fill
from dip_recon.growing import Growing, phases
from dip_recon.guard import Guard
from dip_recon.operators import Downsample, FourierSampling, Kept, Mask
from dip_recon.options import DenoisingOptions
from dip_recon.problem import Problem
from dip_recon.recorded import Recorded, recordable
from dip_recon.tasks import Job
from dip_recon.together import Batch, fit_together

LR = 2.0**-7  # the same number in single precision, which a card reads


def tensors(values):
    return [t for t in tree_leaves(values) if isinstance(t, torch.Tensor)]


class Tape(TorchDispatchMode):
    """Operations with the very tensors that they were given and that they gave, as a graph has it.

    What they change is put back once all are recorded: a graph carries out nothing by then.
    """

    def __init__(self):
        super().__init__()
        self.calls, self.made, self.before = [], [], []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if func is torch.ops.aten._local_scalar_dense.default:
            raise RuntimeError("operation not permitted when stream is capturing")
        given = tensors((args, kwargs))
        if func._schema.is_mutable:
            self.before += [(t, t.clone()) for t in given]
        found = func(*args, **kwargs)
        known = {t.untyped_storage().data_ptr() for t in given}
        new = [t for t in tensors(found) if t.untyped_storage().data_ptr() not in known]
        self.calls.append((func, args, kwargs, new))
        return found

    def carry_out(self):
        with torch.no_grad():
            for func, args, kwargs, new in self.calls:
                again = func(*args, **kwargs)
                for was, now in zip(new, tensors(again), strict=False):
                    was.copy_(now)


def on_tape(work):
    tape = Tape()
    with tape:
        found = work()
    with torch.no_grad():
        for t, kept in reversed(tape.before):
            t.copy_(kept)
    return tape.carry_out, found


def recording(state):
    state.recorded = Recorded(on_tape)
    return state


def same(one, other):
    assert one.iteration == other.iteration and one.stopped == other.stopped
    for name in ("out", "smoothed", "measured", "loss"):
        assert torch.equal(getattr(one, name), getattr(other, name)), name
    pairs = zip(one.network.state_dict().values(), other.network.state_dict().values(), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)


def replayed(state):
    return not state.recorded.why_not and state.recorded.replay is not None


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("name", models.names())
def test_every_network_can_be_recorded(name, precision, picture):
    def made():
        y = torch.from_numpy(picture(3, (64, 64)))[None]
        given = {"model_type": name, "progressive": models.get(name).progressive, "lr": LR}
        if "dim" in models.get(name).options:
            given["dim"] = [8]
        if name == "reproduction_unet":
            given["num_scales"] = 3
        o, _ = prepare.resolve(fill(DenoisingOptions, given)[0])
        job = Job("picture", Problem.denoising(y), y[0].numpy(), "")
        return prepare.prepare(job, o, torch.device("cpu"), precision)

    plain, taped = made(), recording(made())
    assert recordable(taped)
    for state in (plain, taped):
        iterate(state, 7, [])
    assert replayed(taped)
    same(plain, taped)


@pytest.mark.parametrize(
    "settings",
    [
        {"schedule": Decay(0.5, 2)},
        {"tv_weight": 0.1, "jitter": 0.0},
        {"average": LastOutputs(3)},
        {"ema": 0.0},
        {"optimizer": "adamw"},
        {"guard": Guard(every=3)},
        {"rule": "ES-WMV"},
    ],
    ids=lambda settings: next(iter(settings)),
)
def test_the_fit_is_the_same(fresh, settings):
    plain, taped = (fresh(lr=LR, **copy.deepcopy(settings)) for _ in range(2))
    results = [fit(s, 20) for s in (plain, recording(taped))]
    assert replayed(taped)
    same(plain, taped)
    assert torch.equal(results[0].restored, results[1].restored)


@pytest.mark.parametrize(
    "A",
    [Mask(torch.rand(32, 32) < 0.5), Downsample(2), FourierSampling(torch.rand(32, 32) < 0.5)],
    ids=lambda A: type(A).__name__,
)
def test_operators_can_be_recorded(fresh, A):
    plain, taped = fresh(lr=LR), recording(fresh(lr=LR))
    for s in (plain, taped):
        s.problem = Problem(A(s.problem.y), A, s.problem.size)
        assert recordable(s)
        iterate(s, 8, [])
    assert replayed(taped)
    same(plain, taped)


def test_what_was_left_before_is_not_changed_by_the_next_step(fresh):
    s = recording(fresh(lr=LR, ema=0.0))
    iterate(s, 8, [])
    kept = [s.out, s.measured, s.loss]
    before = [t.clone() for t in kept]
    iterate(s, 9, [])
    assert replayed(s) and all(map(torch.equal, kept, before))


def test_a_growing_network_is_recorded_anew_for_each_level():
    def made():
        x = torch.rand(1, 3, 32, 32, generator=torch.Generator().manual_seed(1))
        network = models.build(
            "PG_DIP", in_channels=4, out_channels=3, in_size=(32, 32), out_size=(32, 32),
            num_scales=2, dim=6, generator=torch.Generator().manual_seed(0),
        )  # fmt: skip
        return State(
            Problem.denoising(x, x), network, x[:, :1].repeat(1, 4, 1, 1),
            make_optimizer("adam", network.parameters(), LR), torch.Generator().manual_seed(3), LR,
            schedule=Growing(phases(2, [3, 3], [8, 8])),
        )  # fmt: skip

    plain, taped = made(), made()
    times = []
    taped.recorded = Recorded(lambda work: times.append(taped.iteration) or on_tape(work))
    for s in (plain, taped):
        iterate(s, 24, [])
    assert not taped.recorded.why_not and times == [3, 14], "a level each, once it is faded in"
    # its learning rate is a cosine, which the card reads in single precision
    assert torch.allclose(plain.out, taped.out, atol=1e-5)


def test_where_the_guard_goes_back_it_is_recorded_anew(fresh):
    def spoilt(state):
        if state.iteration == 9 and not state.guard.troubles:
            with torch.no_grad():
                next(state.network.parameters()).fill_(math.nan)

    states = [fresh(lr=LR, guard=Guard(every=4), precision="bf16") for _ in range(2)]
    plain, taped = states
    recording(taped)
    for s in states:
        iterate(s, 24, [spoilt])
    assert taped.precision == "fp32" and len(taped.guard.troubles) == 1
    assert replayed(taped) and taped.recorded.precision == "fp32"
    same(plain, taped)


def test_resumed_is_identical(fresh):
    whole, broken, resumed = (recording(fresh(lr=LR)) for _ in range(3))
    iterate(whole, 20, [])
    iterate(broken, 11, [])
    resumed.load_state_dict(copy.deepcopy(broken.state_dict()))
    iterate(resumed, 20, [])
    same(whole, resumed)
    # and in a state that has recorded another
    broken.load_state_dict(copy.deepcopy(broken.state_dict()))
    assert broken.recorded.replay is None
    iterate(broken, 20, [])
    same(whole, broken)


def test_a_step_that_waits_for_the_card_is_not_recorded(fresh):
    class Asking(torch.nn.Module):
        def forward(self, x):
            return x * (1.0 if float(x.detach().sum()) < math.inf else 0.0)

    plain, taped = fresh(lr=LR), recording(fresh(lr=LR))
    for s in (plain, taped):
        s.problem.A = Asking()
        iterate(s, 10, [])
    assert "not permitted" in taped.recorded.why_not and taped.recorded.replay is None
    assert not recordable(taped), "nobody knows what it does"
    same(plain, taped)
    assert taped.optimizer.param_groups[0]["lr"] == LR
    assert taped.optimizer.param_groups[0]["capturable"] is False


@pytest.mark.parametrize("wrong", ["idle", "weights"])
def test_a_recording_that_does_something_else_is_not_used(fresh, wrong):
    def record(work):
        replay, found = on_tape(work)
        network = taped.network

        def other():
            before = [p.clone() for p in network.parameters()]
            if wrong == "weights":
                replay()
                with torch.no_grad():  # are left as they were
                    for p, was in zip(network.parameters(), before, strict=True):
                        p.copy_(was)

        return other, found

    plain, taped = fresh(lr=LR), fresh(lr=LR)
    taped.recorded = Recorded(record)
    for s in (plain, taped):
        iterate(s, 10, [])
    assert "the same" in taped.recorded.why_not
    same(plain, taped)


def test_what_is_not_recorded(fresh):
    assert recordable(fresh())
    assert not recordable(fresh(backtracking=Backtracking()))
    assert not recordable(fresh(optimizer="sgd")) and not recordable(fresh(optimizer="radam"))
    held = fresh()
    held.problem = stopping.HeldOut(held.problem).fitted(held.problem)
    assert recordable(held)
    held.problem = replace(held.problem, A=Kept(lambda x: x, torch.ones(1, 1, 32, 32)))
    assert not recordable(held)


def test_a_batch_that_is_not_recorded_says_why(fresh):
    def refused(work):
        tries.append(1)
        raise RuntimeError("not permitted")

    tries, states = [], [fresh(lr=LR, guard=Guard(every=4)) for _ in range(3)]
    for n, s in enumerate(states):
        s.generator.manual_seed(n)
        s.recorded = Recorded(refused)

    def spoil(s):  # it leaves the batch
        if s.iteration == 8 and not s.guard.troubles:
            with torch.no_grad():
                next(s.network.parameters()).view(-1)[0] = math.nan

    fit_together(states, 16, [[], [spoil], []])
    assert states[1].guard.troubles and tries == [1]
    assert all("not permitted" in s.recorded.why_not for s in (states[0], states[2]))


def test_memory_that_is_short_for_a_recording_ends_no_fit(fresh, monkeypatch):
    def short(s):
        raise torch.OutOfMemoryError("CUDA out of memory")

    plain, taped = fresh(lr=LR), recording(fresh(lr=LR))
    monkeypatch.setattr(recorded, "_changed", short)
    for s in (plain, taped):
        iterate(s, 8, [])
    assert "out of memory" in taped.recorded.why_not
    same(plain, taped)


def test_it_is_tried_again_where_the_guard_went_back(fresh):
    def spoil(s):  # just before it is recorded
        if s.iteration == 2 and not s.guard.troubles:
            with torch.no_grad():
                next(s.network.parameters()).fill_(math.nan)

    s = recording(fresh(lr=LR, guard=Guard(every=5)))
    iterate(s, 20, [spoil])
    assert s.guard.troubles and replayed(s)


def test_a_recording_is_let_go_while_another_level_fades_in(fresh):
    s = recording(fresh(lr=LR))
    iterate(s, 8, [])
    assert replayed(s)
    s.steady = False
    iterate(s, 9, [])
    assert s.recorded.replay is None and not s.recorded.found


def test_a_run_says_why_its_steps_are_not_recorded(monkeypatch, tmp_path, folder, capsys):
    def refused(work):
        raise TypeError("not permitted")

    monkeypatch.setattr(prepare, "on_gpu", lambda device: True)
    monkeypatch.setattr(prepare, "Recorded", partial(Recorded, refused))
    words = f"--folder_path {folder}/grey.png --dim 8 --num_iters 6 --save_folder {tmp_path}/runs"
    assert main(DenoisingOptions, f"{words} --device cpu".split()) == 0
    assert "grey: a step cannot be recorded: not permitted; steps took" in capsys.readouterr().out


def test_a_batch_is_recorded(fresh):
    def made(taped):
        states = [fresh(lr=LR, rule="ES-WMV") for _ in range(3)]
        for n, s in enumerate(states):
            s.generator.manual_seed(n)
        return [recording(s) for s in states] if taped else states

    plain, taped = made(False), made(True)
    assert Batch(made(True)).stack().recorded and Batch(made(False)).stack().recorded is None
    times = []
    for s in taped:
        s.recorded.record = lambda work: times.append(1) or on_tape(work)
    for states in (plain, taped):
        fit_together(states, 12, [[] for _ in states])
    assert times == [1], "all fits as one"
    for one, other in zip(plain, taped, strict=True):
        same(one, other)


@pytest.mark.parametrize("more", ["--stopping held-out", "--stopping ES-WMV --window 5"])
def test_a_whole_run_as_on_a_card(monkeypatch, tmp_path, folder, more):
    words = f"--folder_path {folder}/grey.png --dim 8 --num_iters 30 --lr {LR} --eval_every 5"
    words += f" --device cpu --precision fp32 {more}"

    def run(where, begins=""):
        assert main(DenoisingOptions, f"{words} --save_folder {where} {begins}".split()) == 0
        (result,) = where.rglob("result.json")
        told = json.loads(result.read_text())
        return told, images.read(result.parent / "restored.png").data

    plain, expected = run(tmp_path / "plain")
    monkeypatch.setattr(prepare, "on_gpu", lambda device: True)
    monkeypatch.setattr(prepare, "Recorded", partial(Recorded, on_tape))
    taped, found = run(tmp_path / "taped")
    assert taped["psnr_stopped"] == plain["psnr_stopped"]
    assert taped["stop_iteration"] == plain["stop_iteration"]
    assert (found == expected).all()


def test_a_card_is_given_both(monkeypatch, fresh):
    """What a GPU is prepared with; none is needed to see it."""
    y = torch.rand(1, 3, 32, 32)
    o, _ = prepare.resolve(fill(DenoisingOptions, {"model_type": "DIP_2_scaled", "dim": [8]})[0])
    job = Job("picture", Problem.denoising(y), y[0].numpy(), "")
    monkeypatch.setattr(prepare, "on_gpu", lambda device: True)
    s = prepare.prepare(job, o, torch.device("cpu"), "fp32")
    assert s.ask_every == 8 and s.recorded.record is recorded.on_card
    o.optimizer = "sgd"
    assert prepare.prepare(job, o, torch.device("cpu"), "fp32").recorded is None
