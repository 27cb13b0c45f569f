"""Several fits as one batch: each is what it would have been by itself."""

import copy
import math
import os
import signal
import threading
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch

from dip_recon import batch, data, experiment, images, models, needs, own, together
from dip_recon.cli import main as command
from dip_recon.cluster import Cluster
from dip_recon.errors import Kept, UserError
from dip_recon.fit import Backtracking, LastOutputs, descend, fit, make_optimizer
from dip_recon.flags import Switches
from dip_recon.guard import Guard
from dip_recon.models import build
from dip_recon.options import DenoisingOptions
from dip_recon.prepare import resolve
from dip_recon.problem import Problem
from dip_recon.runs import Run
from dip_recon.sweeps import work
from dip_recon.together import Batch, fit_together, run_together, stackable

TINY = {
    "model_type": "DIP_2_scaled", "dim": [8], "num_iters": 6, "eval_every": 2,
    "stopping": "held-out", "device": "cpu", "precision": "fp32",
}  # fmt: skip


@pytest.fixture
def seeds(fresh):
    """A function that makes the same three small fits, of other weights, noise and pictures."""

    def make(count=3, model="DIP_2_scaled", options=None, optimizer="adam", **settings):
        states = []
        for seed in range(count):
            s = fresh(**{k: copy.deepcopy(v) for k, v in settings.items()})
            if model == "DIP_orig":  # has five scales, always
                s.z, y = s.z.repeat(1, 1, 2, 2), s.problem.y.repeat(1, 1, 2, 2)
                s.problem = Problem.denoising(y)
            weights = torch.Generator().manual_seed(10 + seed)
            given = {"dim": 8} if options is None else options
            whole = s.problem.size
            small = models.input_size(model, whole, model == "ConvDecoder_LPF", **given)
            size = {"in_size": small, "out_size": whole}
            s.network = build(
                model, in_channels=8, out_channels=3, **size, **given, generator=weights
            )
            # in float32 Adam's first steps make much of the rounding of little gradients
            s.network, s.z = s.network.double(), s.z[..., : small[0], : small[1]].double()
            s.optimizer = make_optimizer(optimizer, s.network.parameters(), s.lr)
            s.generator = torch.Generator().manual_seed(20 + seed)
            s.problem.y = s.problem.y.roll(seed, -1)
            states.append(s)
        return states

    return make


def close(a, b, most=1e-5):
    assert float((a - b).abs().max()) < most


def nothing(line):
    pytest.fail(line)


# ---------------------------------------------------------------- fits


@pytest.mark.parametrize("optimizer", ["adam", "adamw", "radam", "rmsprop", "sgd"])
def test_each_is_its_single_run(seeds, optimizer):
    made = partial(seeds, optimizer=optimizer, rule="ES-WMV")
    histories = [[], []]

    def note(history, s):
        history.append((s.iteration, float(s.loss)))

    alone, states = made(), made()
    alone = [fit(s, 8, [partial(note, histories[0])]) for s in alone]
    assert stackable(states)
    watch = [[] for _ in states]
    found = fit_together(states, 8, [[partial(note, w)] for w in watch], nothing)
    histories[1] = [row for w in watch for row in w]
    for (i, a), (j, b) in zip(*histories, strict=True):
        assert i == j and b == pytest.approx(a, rel=1e-5)
    for a, b, s in zip(alone, found, states, strict=True):
        for name in ("out", "ema", "stopped"):
            close(getattr(a, name), getattr(b, name))
        assert (b.iterations, b.stop_iteration) == (8, 7) and s.out.shape == s.problem.y.shape
    assert not torch.allclose(found[0].out, found[1].out, atol=0.01)


def tiny(name):
    """Options by which a network is small."""
    known = models.get(name).options
    return {k: v for k, v in {"dim": 4, "num_scales": 2}.items() if k in known}


@pytest.mark.parametrize("name", models.names())
def test_every_network_is_batched_or_goes_by_itself(seeds, name):
    made = partial(seeds, 2, name, tiny(name))
    states = made()
    if not stackable(states):
        # attention has a derivative of its own on the CPU
        assert name in ("Swin_upsample", "Swin_expand")
        return
    found = fit_together(states, 2, [[], []], nothing)
    for s, together_ in zip(made(), found, strict=True):
        close(fit(s, 2).out, together_.out)


def test_in_float32_as_on_the_command_line(seeds):
    """The kernels that the CPU has for one picture are batched too."""

    def made():
        states = seeds(2)
        for s in states:
            s.network, s.z = s.network.float(), s.z.float()
        return states

    assert stackable(made())
    for s, b in zip(made(), fit_together(made(), 5, [[], []], nothing), strict=True):
        close(fit(s, 5).out, b.out, 0.1)
        assert float((s.out - b.out).abs().mean()) < 0.003


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("norm", ["bn", "instance"])
def test_a_batch_takes_no_more_memory_than_its_fits(seeds, precision, norm):
    """Layers of several networks are one layer, in the precision of one."""

    def made():
        states = seeds(4, options={"dim": 16, "norm_func": norm}, precision=precision)
        for s in states:
            s.network, s.z = s.network.float(), s.z.float()
            s.optimizer = make_optimizer("adam", s.network.parameters(), s.lr)
        return states

    def most(s):
        descend(s, s.z)  # from the second on it has gradients and moments
        with needs._Live() as live:
            descend(s, s.z)
        return live.most

    alone = max(most(s) for s in made())
    assert most(Batch(made()).stack()) < 1.4 * 4 * alone


def test_statistics_of_a_batch_are_those_of_its_fits(seeds):
    states = seeds()
    fit_together(states, 4, [[], [], []], nothing)
    for s, batched in zip(seeds(), states, strict=True):
        fit(s, 4)
        buffers = dict(batched.network.named_buffers())
        assert any("running_var" in name for name in buffers)
        for name, buffer in s.network.named_buffers():
            close(buffer, buffers[name])


def test_one_that_stops_no_longer_changes_and_the_rest_go_on(seeds):
    states = seeds()
    states[1].stopping.update = stop_after(states[1].stopping, 5)
    kept = {}

    def note(s):
        if s.iteration == 5:
            kept.update(copy.deepcopy(s.state_dict()))

    found = fit_together(states, 12, [[], [note], []], nothing)
    assert [r.iterations for r in found] == [12, 5, 12]
    assert found[1].stopped_by_rule and not found[0].stopped_by_rule
    for name, value in states[1].state_dict()["network"].items():
        assert torch.equal(value, kept["network"][name])
    assert torch.equal(states[1].smoothed, kept["smoothed"])
    assert torch.equal(found[1].restored, kept["smoothed"].clamp(0, 1))
    for n in (0, 2):
        close(fit(seeds()[n], 12).out, found[n].out)


def stop_after(rule, count):
    def update(iteration, out, candidate):
        rule.iteration, rule.picture = iteration, candidate
        return iteration + 1 >= count

    return update


def poison(at):
    def spoil(s):
        if s.iteration == at and not s.guard.troubles:
            with torch.no_grad():
                next(s.network.parameters()).view(-1)[0] = math.nan

    return spoil


def test_a_lost_one_is_put_back_and_goes_on_alone(seeds):
    def guarded(count=3):
        return seeds(count, guard=Guard(every=5, patience=2))

    states = guarded()
    watch = [[], [poison(12)], []]
    found = fit_together(states, 30, watch, nothing)
    lost = states[1]
    assert found[1] is None and lost.iteration == 10 and lost.lr == 0.0025
    assert [t["back_to"] for t in lost.guard.troubles] == [10]
    others = [t.untyped_storage().data_ptr() for s in (states[0], states[2]) for t in tensors(s)]
    mine = {t.untyped_storage().data_ptr() for t in tensors(lost)}
    assert not mine & set(others)
    alone = guarded()
    expected = [fit(s, 30, w) for s, w in zip(alone, watch, strict=True)]
    for n in (0, 2):
        close(expected[n].out, found[n].out)
        assert not states[n].guard.troubles
    went_on = fit(lost, 30, watch[1])
    assert lost.guard.troubles == alone[1].guard.troubles and went_on.iterations == 30
    close(expected[1].out, went_on.out)


def tensors(s):
    moments = [t for m in s.optimizer.state.values() for t in m.values()]
    return [*s.network.parameters(), *s.network.buffers(), *moments]


def test_a_lost_one_without_a_guard_ends_and_disturbs_no_other(seeds):
    states = seeds()
    states[0].problem.y[0, 0, 0, 0] = math.nan
    found = fit_together(states, 4, [[], [], []], nothing)
    assert isinstance(found[0], FloatingPointError)
    for n in (1, 2):
        close(fit(seeds()[n], 4).out, found[n].out)


def test_what_a_callback_raises_ends_its_own_fit_alone(seeds):
    def full(s):
        if s.iteration == 3:
            raise UserError("the disk is full")

    found = fit_together(seeds(), 6, [[], [full], []], nothing)
    assert isinstance(found[1], UserError) and [found[n].iterations for n in (0, 2)] == [6, 6]


def test_goes_on_from_single_checkpoints_and_leaves_them(seeds):
    whole = fit_together(seeds(), 9, [[]] * 3, nothing)
    states = seeds()
    fit_together(states, 4, [[]] * 3, nothing)
    saved = [copy.deepcopy(s.state_dict()) for s in states]
    resumed = seeds()
    for s, state in zip(resumed, saved, strict=True):
        s.load_state_dict(state)
    for a, b in zip(whole, fit_together(resumed, 9, [[]] * 3, nothing), strict=True):
        assert torch.equal(a.out, b.out) and torch.equal(a.ema, b.ema)
    single = seeds()[2]
    single.load_state_dict(saved[2])
    close(fit(single, 9).out, whole[2].out)


def test_what_was_at_its_end_takes_no_further_step(seeds):
    states = seeds()
    fit_together(states, 4, [[]] * 3, nothing)
    before = [s.out.clone() for s in states]
    assert fit_together(states, 4, [[]] * 3, nothing) == [None] * 3
    for s, out in zip(states, before, strict=True):
        assert torch.equal(fit(s, 4).out, out.clamp(0, 1)) and s.iteration == 4


def test_their_own_jitter_average_and_rule(seeds):
    def made():
        states = seeds()
        states[0].jitter, states[1].ema, states[2].average = 0.0, 0.0, LastOutputs(2)
        return states

    assert stackable(made())
    for s, b in zip(made(), fit_together(made(), 4, [[]] * 3, nothing), strict=True):
        close(fit(s, 4).ema, b.ema)


def test_what_cannot_be_one_batch(seeds, fresh):
    assert stackable(seeds()) and not stackable(seeds(1))
    changes = {"lr": 0.02, "iteration": 3, "backtracking": Backtracking(), "tv_weight": 0.1,
               "precision": "bf16", "stopped": True}  # fmt: skip
    for name, value in changes.items():
        states = seeds()
        setattr(states[1], name, value)
        assert not stackable(states), name
    states = seeds()
    size = {"in_size": (32, 32), "out_size": (32, 32)}
    narrow = build("DIP_2_scaled", in_channels=8, out_channels=3, **size, dim=4)
    states[2].network = narrow
    assert not stackable(states)
    states = seeds()
    states[1].optimizer = make_optimizer("sgd", states[1].network.parameters(), 0.01)
    assert not stackable(states)


@pytest.mark.parametrize("at", [1, 3])
def test_without_memory_they_go_on_one_after_another(seeds, monkeypatch, at):
    forward, calls, said = together.Stack.forward, [], []

    def short(self, z):
        calls.append(z)
        if len(calls) == at:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return forward(self, z)

    monkeypatch.setattr(together.Stack, "forward", short)
    states = seeds()
    assert fit_together(states, 6, [[]] * 3, said.append) == [None] * 3
    assert len(said) == 1 and "one after another" in said[0]
    assert [s.iteration for s in states] == [at - 1] * 3
    for s, alone in zip(states, seeds(), strict=True):
        close(fit(s, 6).out, fit(alone, 6).out)


# ---------------------------------------------------------------- runs


def options(*seeds_, **more):
    return [replace(DenoisingOptions(**TINY | more), seed=seed) for seed in seeds_]


def works(job, chosen, keeps):
    return [partial(own.restore, job, o, {}, k) for o, k in zip(chosen, keeps, strict=True)]


def test_run_folders_are_those_of_single_runs(tmp_path, picture):
    job, chosen = own.job_of_array(picture()), options(1, 2)
    alone = [work() for work in works(job, chosen, [tmp_path / "a1", tmp_path / "a2"])]
    found = run_together(works(job, chosen, [tmp_path / "t1", tmp_path / "t2"]), nothing)
    for (summary, a), (_, b) in zip(alone, found, strict=True):
        assert float(np.abs(a - b).max()) < 0.02 and summary["iterations"] == 6
    for n in (1, 2):
        alone, together_ = Run(tmp_path / f"a{n}"), Run(tmp_path / f"t{n}")
        files = [sorted(p.name for p in run.folder.rglob("*")) for run in (alone, together_)]
        assert files[0] == files[1] and "restored.npy" in files[0]
        assert alone.config() == together_.config()
        for a, b in zip(alone.history(), together_.history(), strict=True):
            for key in ("iteration", "loss", "psnr_noisy"):
                assert a[key] == pytest.approx(b[key], rel=1e-3)
        a, b = alone.result(), together_.result()
        for changed in ("seconds", "peak_memory_bytes"):
            del a[changed], b[changed]
        assert a == b


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_batch_leaves_checkpoints_and_goes_on(
    tmp_path, picture, monkeypatch, number
):
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    job, chosen = own.job_of_array(picture()), options(1, 2)
    keeps = [tmp_path / "a", tmp_path / "b"]
    whole = run_together(works(job, chosen, [None, None]), nothing)
    with monkeypatch.context() as patch:
        patch.setattr(experiment, "Snapshots", lambda *_: interrupt_at(4, number))
        with pytest.raises(Kept):
            run_together(works(job, chosen, keeps), nothing)
    signal.signal(signal.SIGINT, before)
    sizes = [(keep / "checkpoint.pt").stat().st_size for keep in keeps]
    iterations = [Run(keep).load_checkpoint()["state"]["iteration"] for keep in keeps]
    assert iterations == [5, 5], "they leave at the same one"
    for (_, a), (_, b) in zip(run_together(works(job, chosen, keeps), nothing), whole, strict=True):
        assert np.array_equal(a, b)
    with monkeypatch.context() as patch:
        patch.setattr(experiment, "Snapshots", lambda *_: interrupt_at(iterations[0], number))
        with pytest.raises(Kept):
            own.restore(job, chosen[0], {}, tmp_path / "single")
    single = (tmp_path / "single/checkpoint.pt").stat().st_size
    assert max(sizes) < 1.1 * single, "a view is saved without what it is a view of"


def interrupt_at(iteration, number=signal.SIGTERM):
    sent = []

    def watch(s):
        if s.iteration == iteration and not sent:
            sent.append(os.kill(os.getpid(), number))
            done = threading.Event()
            done.wait(0.3)  # by then the main thread has heard it

    return watch


def test_without_a_folder_an_interrupt_promises_nothing(picture, monkeypatch):
    monkeypatch.setattr(experiment, "Snapshots", lambda *_: interrupt_at(3))
    with pytest.raises(KeyboardInterrupt) as caught:
        run_together(works(own.job_of_array(picture()), options(1, 2), [None] * 2), nothing)
    assert not isinstance(caught.value, Kept)


def test_those_at_different_iterations_go_on_in_turn(tmp_path, picture, monkeypatch):
    job, chosen = own.job_of_array(picture()), options(1, 2)
    keeps = [tmp_path / "a", tmp_path / "b"]
    with monkeypatch.context() as patch:
        patch.setattr(experiment, "Snapshots", lambda *_: interrupt_at(4))
        with pytest.raises(Kept):
            own.restore(job, chosen[0], {}, keeps[0])
    monkeypatch.setattr(together, "_fit_members", lambda *_: pytest.fail("as one batch"))
    found = run_together(works(job, chosen, keeps), nothing)
    assert [summary["iterations"] for summary, _ in found] == [6, 6]
    whole = own.restore(job, chosen[0], {}, None)
    assert np.array_equal(whole[1], found[0][1])


def test_an_error_in_one_preparation_holds_nobody_up(tmp_path, picture, monkeypatch):
    prepare = experiment.prepare

    def failing(job, o, *where):
        if o.seed == 2:
            raise UserError("no")
        return prepare(job, o, *where)

    monkeypatch.setattr(experiment, "prepare", failing)
    keeps = [tmp_path / name for name in "abc"]
    chosen = options(1, 2, 3)
    with pytest.raises(UserError, match="no"):
        run_together(works(own.job_of_array(picture()), chosen, keeps), nothing)
    assert [Run(keep).finished for keep in keeps] == [True, False, True]


def test_an_error_of_the_batch_itself_is_everybodys(picture, monkeypatch):
    def failing(*_):
        raise RuntimeError("CUDA error: unspecified launch failure")

    monkeypatch.setattr(together, "_fit_members", failing)
    with pytest.raises(RuntimeError, match="launch failure"):
        run_together(works(own.job_of_array(picture()), options(1, 2), [None] * 2), nothing)


def test_one_lost_in_a_batch_of_runs_is_told_of_as_ever(tmp_path, picture, monkeypatch):
    def spoilt(run, _):
        def spoil(s):
            if s.iteration == 3 and not s.guard.troubles and run.folder.name == "b":
                next(s.network.parameters()).data.fill_(math.nan)

        return spoil

    monkeypatch.setattr(experiment, "Snapshots", spoilt)
    keeps = [tmp_path / name for name in "abc"]
    chosen = options(1, 2, 3)
    found = run_together(works(own.job_of_array(picture()), chosen, keeps), nothing)
    assert [len(s.get("troubles", [])) for s, _ in found] == [0, 1, 0]
    assert found[1][0]["troubles"][0]["back_to"] == 0 and found[1][0]["iterations"] == 6
    assert all(Run(keep).finished for keep in keeps)


def test_only_one_thread_works_at_a_time(picture, monkeypatch):
    """What is one for all threads, as the default generator, is not drawn from by two at once."""
    working, most = [], []
    prepare, write = experiment.prepare, images.write

    def alone(call):
        def called(*args, **more):
            working.append(1)
            most.append(len(working))
            threading.Event().wait(0.02)
            found = call(*args, **more)
            working.pop()
            return found

        return called

    monkeypatch.setattr(experiment, "prepare", alone(prepare))
    monkeypatch.setattr(images, "write", alone(write))
    before = torch.get_rng_state()
    run_together(works(own.job_of_array(picture()), options(1, 2, 3), [None] * 3), nothing)
    assert max(most) == 1 and len(most) == 6 and torch.equal(before, torch.get_rng_state())


def test_on_the_cpu_it_stays_one_after_another(monkeypatch):
    chosen = DenoisingOptions(**TINY)
    assert together.at_once(chosen, lambda: pytest.fail("read for nothing")) == 1
    monkeypatch.setattr(together, "choose", lambda *_: (torch.device("cuda"), "bf16"))
    monkeypatch.setattr(together.needs, "needed", lambda job, o: 100)
    for free, count in ((10**9, 16), (1000, 8), (10, 1)):
        monkeypatch.setattr(together.memory, "free", lambda device, free=free: free)
        assert together.at_once(chosen, lambda: None) == count
    assert together.at_once(replace(chosen, tile=32), lambda: None) == 1


def test_what_torch_has_put_by_on_a_card_is_free(monkeypatch):
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (100, 1000))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda device: 50)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda device: 20)
    assert together.memory.free(torch.device("cuda")) == 130


@pytest.mark.drawn
def test_a_sweep_takes_the_seeds_of_a_picture_together(folder, tmp_path, monkeypatch):
    sizes = []
    monkeypatch.setattr(work, "at_once", lambda o, job: 2)
    monkeypatch.setattr(
        work, "run_together", lambda w, say: sizes.append(len(w)) or run_together(w, say)
    )
    plans = []
    for seed in (1, 2):
        o, _ = resolve(DenoisingOptions(**TINY | {"seed": seed}))
        for item in data.resolve(str(folder)):
            place = Run(tmp_path / f"{item.name}{seed}")
            plans.append(experiment.Plan(item, place, o))
    found = list(work.outcomes(plans, Switches(resume=True), Cluster(), nothing))
    assert sizes == [2, 2] and all(outcome.result for outcome in found)
    assert {id(o.plan) for o in found} == {id(plan) for plan in plans}
    assert all("stopped at" in (plan.run.folder / "log.txt").read_text() for plan in plans)
    assert all((plan.run.folder / "comparison.png").is_file() for plan in plans)
    again = list(work.outcomes(plans, Switches(resume=True), Cluster(), nothing))
    assert all(outcome.result == first.result for outcome, first in zip(again, found, strict=True))


def test_one_at_a_time_the_runs_of_a_sweep_stay_in_order(folder, tmp_path, monkeypatch):
    o, _ = resolve(DenoisingOptions(**TINY))
    items = data.resolve(str(folder))
    plans = [
        experiment.Plan(item, Run(tmp_path / f"{item.name}{seed}"), replace(o, seed=seed))
        for seed in (1, 2, 3)
        for item in items
    ]
    assert list(work.batches(plans)) == [[plan] for plan in plans]
    monkeypatch.setattr(work, "at_once", lambda o, job: 2)
    a1, b1, a2, b2, a3, b3 = plans
    assert list(work.batches(plans)) == [[a1, a2], [b1, b2], [a3], [b3]]


def test_best(tmp_path, picture, monkeypatch, capsys):
    noisy = picture() + 0.1 * np.random.RandomState(0).randn(3, 32, 32)
    images.save_png(tmp_path / "a.png", noisy.clip(0, 1).astype(np.float32))
    words = ["denoise", str(tmp_path / "a.png"), "--runs", "3", "--width", "4", "--iterations",
             "5", "--device", "cpu", "--precision", "fp32"]  # fmt: skip

    def restored(name):
        assert command([*words, "-o", str(tmp_path / f"{name}.png"), "--keep",
                        str(tmp_path / name)]) == 0  # fmt: skip
        return images.read(tmp_path / f"{name}.png").data

    alone = restored("alone")
    counts = []
    monkeypatch.setattr(together, "choose", lambda *_: (torch.device("cuda"), "fp32"))
    monkeypatch.setattr(together.memory, "free", lambda device=None: 10**9)
    monkeypatch.setattr(
        batch, "run_all", lambda w, n, say: counts.append(n) or together.run_all(w, n, say)
    )
    found = restored("together")
    assert counts == [16]
    assert float(np.abs(alone - found).max()) < 0.02
    assert all((tmp_path / f"together/run{n}/result.json").is_file() for n in (1, 2, 3))
    assert (tmp_path / "together_uncertainty.png").is_file()
