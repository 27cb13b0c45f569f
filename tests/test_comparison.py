"""Runs beside published figures and peers: made-up run folders, against means by hand."""

import csv
import io
import sys
from statistics import fmean

import numpy as np
import pytest
from conftest import refused
from skimage.restoration import denoise_nl_means
from test_figures import made, with_pictures

from dip_recon import comparison, data, images, metrics, noise, peers, tasks
from dip_recon.cli import main
from dip_recon.comparison import compare
from dip_recon.data.sets import manifest
from dip_recon.figures.records import load
from dip_recon.options import SuperResolutionOptions

DIGESTS = {(own, name): digest for digest, (own, name) in comparison._pictures().items()}
MASK = {"task": "inpainting", "mask_type": "bernoulli", "zero_fraction": 0.5}


def of_set(root, own, name, psnr, seed=7, luma=None, **config):
    """A finished run on a picture of a data set; ``luma``: PSNR of the result's."""
    config = {"picture_sha256": DIGESTS[own, name], **config}
    run = made(root, "any", seed, psnr, **config)
    if luma:
        run.write_result({**run.result(), "psnr_luma_stopped": luma, "psnr_luma_bicubic": luma - 2})
    return run


def rows(this):
    return {(row.method, row.figures): row for row in this.rows}


# ---------------------------------------------------------------- what is published


@pytest.mark.parametrize(
    "own, setting, method, picture, psnr",
    [
        ("bernoulli11", "50 % missing", "Papyan", "Barbara", 28.14),
        ("bernoulli11", "50 % missing", "DIP", "House", 39.16),
        ("bernoulli11", "50 % missing", "DIP", "Montage", 34.54),
        ("bernoulli11", "50 % missing", "Delft reproduction", "C.man", 26.19),
        ("set9", "sigma 25", "DIP", "Baboon", 24.51),
        ("set9", "sigma 25", "CBM3D", "kod03", 34.03),
        ("set9", "sigma 25", "NLM", "Peppers", 30.34),
        ("set5", "×4", "DIP", "butterfly", 26.23),
    ],
)
def test_published_figures(own, setting, method, picture, psnr):
    [row] = [row for row in comparison.quoted(own, setting) if row.method == method]
    assert row.psnr[picture] == psnr and row.figures == "quoted" and row.source


def test_published_means():
    """Those printed are the means of those of the pictures, and some stand alone."""
    printed = {
        ("bernoulli11", "50 % missing"): {
            "Papyan": 31.19, "DIP": 33.48, "Delft reproduction": 28.53,
        },
        ("set9", "sigma 25"): {
            "DIP": 31.29, "CBM3D": 31.42, "NLM": 30.23, "DIP, last output": 29.22,
            "DIP, moving average": 30.43, "DIP, mean of two runs": 31.00,
        },
        ("set9", "sigma 50"): {"DIP": 27.69, "CBM3D": 27.78, "NLM": 26.69},
        ("set5", "×4"): {"bicubic": 28.44, "TV": 28.86, "DIP": 29.90},
        ("set14", "×4"): {"bicubic": 26.05, "TV": 26.42, "DIP": 27.01},
    }  # fmt: skip
    sizes = {"bernoulli11": 11, "set9": 9, "set5": 5, "set14": 14}
    assert set(comparison._quoted()) == set(printed)
    for (own, setting), means in printed.items():
        found = comparison.quoted(own, setting)
        assert {row.method for row in found} == set(means)
        for row in found:
            mean = fmean(row.psnr.values()) if row.psnr else row.mean
            assert mean == pytest.approx(means[row.method], abs=0.0051), row.method
            assert (len(row.psnr) or row.over) == sizes[own]
            assert all((own, picture) in DIGESTS for picture in row.psnr)
    assert {own: sum(o == own for o, _ in DIGESTS) for own in sizes} == sizes


def test_digests_are_of_the_published_files():
    for own in ("bernoulli11", "set9"):
        known = {digest for (o, _), digest in DIGESTS.items() if o == own}
        assert known == {entry.sha256 for entry in manifest(own)}


# ---------------------------------------------------------------- the table


def test_rows_means_and_differences(tmp_path):
    for seed, shift in ((7, 0), (8, 1)):
        of_set(tmp_path, "bernoulli11", "House", 38 + shift, seed, **MASK)
        of_set(tmp_path, "bernoulli11", "Barbara", 30 + shift, seed, **MASK)
    of_set(tmp_path, "bernoulli11", "House", 33, model_type="reproduction_unet", **MASK)
    [this] = compare(load([tmp_path]))
    assert this.title == "bernoulli11, 50 % missing" and len(this.pictures) == 11
    found = rows(this)
    assert [row.method for row in this.rows] == [
        "Papyan", "DIP", "Delft reproduction", "DIP_2_scaled", "reproduction_unet",
        "DIP_2_scaled − DIP", "reproduction_unet − DIP",
    ]  # fmt: skip
    assert found["DIP_2_scaled", "measured"].psnr == {"Barbara": 30.5, "House": 38.5}
    difference = found["DIP_2_scaled − DIP", "difference"]
    assert difference.psnr == pytest.approx({"Barbara": 30.5 - 32.22, "House": 38.5 - 39.16})
    # only House is in every row
    means = {row.method: (row.mean, row.over) for row in this.rows}
    assert means["Papyan"] == (34.58, 1) and means["DIP_2_scaled"] == (38.5, 1)
    assert means["DIP_2_scaled − DIP"] == (pytest.approx(38.5 - 39.16), 1)
    text = comparison.markdown([this])
    assert text.startswith("### bernoulli11, 50 % missing\n\n| method")
    assert "| quoted" in text and "| measured" in text and "seeds 7, 8" in text
    assert "quoted, Delft reproduction: Deep Image Prior Reproducibility Project" in text
    line = next(line for line in text.splitlines() if line.startswith("| DIP_2_scaled  "))
    assert "38.50" in line and line.count("–") == 9
    read = list(csv.DictReader(io.StringIO(comparison.to_csv([this]))))
    assert list(read[0])[:3] == ["table", "method", "figures"] and read[0]["House"] == "34.58"
    assert list(read[0])[-3:] == ["mean", "pictures", "source"] and "Papyan" in read[0]["source"]


def test_means_over_other_pictures_are_said_to_be(tmp_path):
    for picture, network in (("p", "DD"), ("q", "ConvDecoder")):
        made(tmp_path, picture, psnr=30.0, model_type=network)
    [this] = compare(load([tmp_path]))
    assert any("not all over the same pictures" in note for note in this.notes)
    exact = made(tmp_path, "r", model_type="DD")  # without a mistake
    exact.write_result({**exact.result(), "psnr_stopped": None})
    [this] = compare(load([tmp_path]))
    assert rows(this)["DD", "measured"].mean == 30.0


def test_a_mean_alone_is_compared_over_the_whole_set_only(tmp_path):
    sigma = {"noise_sigma": 50.0}
    names = [name for own, name in DIGESTS if own == "set9"]
    for name in names[:-1]:
        of_set(tmp_path, "set9", name, 27.0, **sigma)
    [this] = compare(load([tmp_path]))
    assert this.title == "set9, sigma 50"
    assert ("DIP", "quoted") in rows(this) and not [r for r in this.rows if "−" in r.method]
    assert any("not all over the same pictures" in note for note in this.notes)
    of_set(tmp_path, "set9", names[-1], 27.0, **sigma)
    [this] = compare(load([tmp_path]))
    difference = rows(this)["DIP_2_scaled − DIP", "difference"]
    assert (difference.mean, difference.over) == (pytest.approx(27 - 27.69), 9)
    assert not any("not all over" in note for note in this.notes)


def test_super_resolution_is_by_luma_beside_bicubic(tmp_path):
    settings = {"task": "sr", "sr_factor": 4}
    of_set(tmp_path, "set5", "baby", 20, luma=31.0, **settings)
    of_set(tmp_path, "set14", "zebra", 20, luma=27.0, **settings)
    assert [c.title for c in compare(load([tmp_path]))] == ["set5, ×4", "set14, ×4"]
    five = rows(compare(load([tmp_path]))[0])
    assert five["bicubic", "measured"].psnr["baby"] == 29.0
    assert five["bicubic", "quoted"].mean == 28.44
    assert five["DIP_2_scaled", "measured"].mean == 31.0
    assert five["DIP_2_scaled − DIP", "difference"].mean == pytest.approx(31.0 - 31.49)


@pytest.mark.parametrize("task", ["denoising", "sr"])
def test_the_last_output_has_a_row_beside_the_average(tmp_path, task):
    key = "psnr_luma_" if task == "sr" else "psnr_"
    averaged = {"task": task, "sr_factor": 4, "exp_weight": 0.99, "stopping": "fixed"}
    for network, more, result in (
        ("DD", {}, {"stopped": 29.0, "out": 28.0}),
        ("ConvDecoder", {"exp_weight": 0}, {"stopped": 27.0, "out": 27.0}),
        ("DIP_orig", {"stopping": "ES-WMV"}, {"stopped": 26.0, "out": 25.0}),
        ("ViT", {}, {"stopped": 24.0}),  # by an older version
    ):
        run = made(tmp_path, model_type=network, **{**averaged, **more})
        named = {key + name: psnr for name, psnr in result.items()}
        run.write_result({**run.result(), **named, f"{key}bicubic": 20.0})
    [this] = compare(load([tmp_path]), published=False)
    measured = {row.method.split(", ")[0] + row.method[-12:]: row.mean for row in this.rows}
    assert [psnr for method, psnr in measured.items() if "last output" in method] == [28.0]
    assert {29.0, 27.0, 26.0, 24.0} <= set(measured.values())


def test_the_last_output_has_no_row_that_makes_means_smaller(tmp_path):
    for picture, out in (("a", {"psnr_out": 28.0}), ("b", {})):  # by an older version
        run = made(tmp_path, picture, exp_weight=0.99, stopping="fixed")
        rest = {k: v for k, v in run.result().items() if k != "psnr_out"}
        run.write_result({**rest, **out, "psnr_stopped": 29.0})
    [this] = compare(load([tmp_path]), published=False)
    assert [row.over for row in this.rows] == [2]


def test_the_baseline_is_cubic_convolution():
    places = (np.arange(24) + 0.5) / 24
    low = ((np.arange(12) + 0.5) / 12) ** 2  # Keys' kernel makes parabolas of parabolas
    large = tasks.bicubic(np.broadcast_to(low, (2, 12, 12)).astype(np.float32), (24, 24))
    assert large.shape == (2, 24, 24) and large.dtype == np.float32
    assert np.abs(large - places**2)[:, :, 4:-4].max() < 1e-5
    edge = np.zeros((1, 8, 8), np.float32)
    edge[:, :, 4:] = 1
    assert tasks.bicubic(edge, (16, 16)).min() == 0 and tasks.bicubic(edge, (16, 16)).max() == 1


def test_the_baseline_lies_where_the_low_resolution_picture_does(picture, tmp_path):
    images.save_png(tmp_path / "x.png", picture(1, (63, 66)))
    settings = SuperResolutionOptions(folder_path=str(tmp_path), sr_factor=4)
    job = tasks.super_resolution_job(data.resolve(tmp_path / "x.png")[0], settings)
    x, low = job.problem.x[0].numpy(), job.problem.y[0].numpy()
    assert job.seen.shape == x.shape and low.shape == (1, 15, 16)
    whole = tasks.bicubic(low, (60, 64))
    np.testing.assert_array_equal(job.seen[:, :60, :64], whole)
    np.testing.assert_array_equal(job.seen[:, 60:, :64], np.repeat(whole[:, -1:], 3, 1))


def test_pictures_that_are_cut_resized_or_unknown_have_no_published_figure(tmp_path):
    of_set(tmp_path, "bernoulli11", "House", 38, **MASK, crop=[96])
    [this] = compare(load([tmp_path]))
    assert this.title == "other pictures, 50 % missing" and this.pictures == ["any"]
    assert [row.method for row in this.rows] == [
        "Papyan", "DIP", "Delft reproduction", "DIP_2_scaled",
    ]  # fmt: skip
    assert all(not row.psnr and row.mean is None for row in this.rows[:3])
    assert comparison.markdown([this]).count(" – ") == 9
    of_set(tmp_path, "bernoulli11", "House", 38, **MASK, imsize=[64, 64])
    of_set(tmp_path, "set9", "House", 30, noise_sigma=10.0)
    titles = [this.title for this in compare(load([tmp_path]))]
    assert titles == ["other pictures, 50 % missing", "set9, sigma 10"]


def test_without_ground_truth_there_is_nothing_to_compare(tmp_path):
    run = made(tmp_path, truth=False)
    refused(lambda: compare(load([tmp_path])), run.folder, "ground truth")


def test_the_command(tmp_path, capsys):
    runs, out = tmp_path / "runs", tmp_path / "out.csv"
    of_set(runs, "bernoulli11", "House", 38, **MASK)
    assert main(["table", str(runs), "--published"]) == 0
    assert capsys.readouterr().out == comparison.markdown(compare(load([runs])))
    assert main(["table", str(runs), "--published", "-o", str(out)]) == 0
    assert out.read_text() == comparison.to_csv(compare(load([runs])))
    assert main(["table", str(runs), "--published", "--pictures"]) == 2
    assert "--pictures" in capsys.readouterr().err


# ---------------------------------------------------------------- peers


@pytest.fixture
def noisy_run(tmp_path, picture):
    """A run with its pictures in the folder; returns it, the clean and the noisy one."""
    x = picture(3, (32, 32))
    y = noise.add_gaussian(x, 25, np.random.RandomState(7))
    run = made(tmp_path / "runs")
    with_pictures(run, x, {}, y)
    return run, x, y


def test_peers_are_measured_once_and_kept(noisy_run, monkeypatch):
    run, x, y = noisy_run
    monkeypatch.setitem(sys.modules, "bm3d", None)
    found, notes = peers.measure(run, 25)
    assert list(found) == ["NLM"] and "dip-recon[peers]" in notes[0]
    restored = denoise_nl_means(
        np.moveaxis(y, 0, -1), patch_size=5, patch_distance=6, h=0.6 * 25 / 255, sigma=25 / 255,
        channel_axis=-1,
    )  # fmt: skip
    # the folder's picture is rounded to 8 bits, which hardly matters
    assert found["NLM"] == pytest.approx(metrics.psnr(np.moveaxis(restored, -1, 0), x), abs=0.02)
    assert found["NLM"] > metrics.psnr(y, x) + 3
    (run.folder / "clean.png").unlink()
    assert peers.measure(run, 25)[0] == found
    run.begin(run.config(), overwrite=False)
    assert run.peers() == {}


@pytest.mark.parametrize("channels, name", [(3, "CBM3D"), (1, "BM3D")])
def test_bm3d_where_it_is_installed(tmp_path, picture, channels, name):
    pytest.importorskip("bm3d")
    x = picture(channels, (32, 32))
    y = noise.add_gaussian(x, 25, np.random.RandomState(7))
    run = made(tmp_path)
    with_pictures(run, x, {}, y)
    found, notes = peers.measure(run, 25)
    assert found[name] > metrics.psnr(y, x) + 3 and not notes


def test_peers_have_a_row_each(noisy_run, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "bm3d", None)
    run, *_ = noisy_run
    told = []
    [this] = compare(load([tmp_path / "runs"]), published=False, with_peers=True, say=told.append)
    assert [row.method for row in this.rows] == ["NLM", "DIP_2_scaled"]
    assert this.rows[0].psnr == {"a": run.peers()["NLM"]} and told == [
        "peers on a, sigma 25, noise 7"
    ]
    assert any("8 bits" in note for note in this.notes)
    assert any("dip-recon[peers]" in note for note in this.notes)
    images.save_png(run.folder / "clean.png", np.zeros((3, 32, 32), np.float32))
    assert compare(load([tmp_path / "runs"]), False, True)[0].rows[0].psnr == this.rows[0].psnr


def test_peers_see_every_noisy_picture(tmp_path, picture, monkeypatch):
    """Two pictures of one name, a picture cut in two ways, two noise seeds of which one is 0."""
    monkeypatch.setitem(sys.modules, "bm3d", None)
    x = picture(1, (32, 32))
    for sha, more in (
        ("1", {}), ("2", {}), ("1", {"crop": [24]}), ("1", {"noise_seed": 0}), ("1", {"lr": 0.5}),
    ):  # fmt: skip
        run = made(tmp_path, picture_sha256=sha * 64, **more)
        with_pictures(run, x, {}, noise.add_gaussian(x, 25, np.random.RandomState(7)))
    told = []
    compare(load([tmp_path]), published=False, with_peers=True, say=told.append)
    assert len(told) == 4 and told.count("peers on a, sigma 25, noise 0") == 1


def test_bm3d_has_one_row_for_grey_and_colour(tmp_path, picture, monkeypatch):
    monkeypatch.setattr(peers, "bm3d_function", lambda: lambda y, s: y)
    for name, channels in (("a", 1), ("b", 3)):
        x = picture(channels, (32, 32))
        run = made(tmp_path, name)
        with_pictures(run, x, {}, noise.add_gaussian(x, 25, np.random.RandomState(7)))
    [this] = compare(load([tmp_path]), published=False, with_peers=True)
    assert [row.method for row in this.rows] == ["NLM", "BM3D, CBM3D in colour", "DIP_2_scaled"]
    assert all(set(row.psnr) == {"a", "b"} and row.over == 2 for row in this.rows)


def test_pairs_have_noise_of_their_own(tmp_path):
    run = made(tmp_path)
    run.write_result({**run.result(), "sigma": None})
    assert [this.title for this in compare(load([tmp_path]))] == ["other pictures, real noise"]
