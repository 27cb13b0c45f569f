"""The page of finished runs: what is written, and what a reader sees of it in a browser."""

import errno
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from conftest import refused
from PIL import Image
from test_figures import made, with_pictures

from dip_recon import images, report
from dip_recon.cli import main
from dip_recon.report import page as page_module
from dip_recon.report.contents import POINTS

ROOT = Path(__file__).parents[1]
ASSETS = ROOT / "DIP-Recon" / "dip_recon" / "report" / "assets"
EVIL = "\"><script>alert(1)</script>&'</script><!--"


def flat(level, size=(24, 32), channels=3):
    return np.full((channels, *size), level, np.float32)


def run_of(root, picture="a", size=(24, 32), snapshots=(0, 5), channels=3, **more):
    """A finished run with all its pictures, each of one grey level."""
    run = made(root, picture, **more)
    clean, noisy = flat(0.5, size, channels), flat(0.7, size, channels)
    with_pictures(run, clean, {at: flat(at / 20, size, channels) for at in snapshots}, noisy)
    images.save_png(run.folder / "restored.png", flat(0.4, size, channels))
    patch(run, stop_iteration=10, stopping="fixed", iterations=11)
    return run


def tiled(root, picture="a"):
    """A finished run of two tiles, which has one row of history and no snapshots."""
    run = run_of(root, picture, snapshots=())
    run.write_history(run.history()[-1:])
    lines = ["tile,top,bottom,left,right,stop_iteration", "0,0,24,0,16,4", "1,0,24,16,32,9"]
    (run.folder / "tiles.csv").write_text("\n".join(lines))
    return run


def patch(run, **changes):
    """Change figures of result.json; None takes one out."""
    result = {**run.result(), **changes}
    run.write_result({k: v for k, v in result.items() if v is not None})


def runs_of(page):
    """What data.js says, by the runs' links."""
    text = (page / "data.js").read_text()
    found = re.fullmatch(r"window\.dipRecon = (\{.*\});\n", text)
    return {run["id"]: run for run in json.loads(found[1])["runs"]}


def only(page):
    (run,) = runs_of(page).values()
    return run


def level_of(page, address):
    """The grey level of a picture in the page, which must be 8-bit grey or RGB."""
    with Image.open(page / address) as picture:
        assert picture.mode in ("L", "RGB") and not picture.info
        return np.asarray(picture).mean() / 255


def files(folder):
    return {p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file()}


# ---------------------------------------------------------------- what is written


def test_a_run_on_the_page(tmp_path):
    run_of(tmp_path / "runs", psnr=31.25)
    notes = []
    index = report.write([tmp_path / "runs"], tmp_path / "page", say=notes.append)
    assert index == tmp_path / "page" / "index.html" and not notes
    run = only(tmp_path / "page")
    assert run["facets"] == ["a", "denoising", "DIP_2_scaled", "bilinear", ""]
    assert run["size"] == [32, 24] and run["ending"] == "after all 11 iterations"
    for name, level in (("clean", 0.5), ("measurement", 0.7), ("restored", 0.4)):
        assert level_of(index.parent, run[name]) == pytest.approx(level, abs=0.003)
    assert [m["at"] for m in run["moments"]] == [0, 5, 10], "the result is where it stopped"
    assert [m["psnr"] for m in run["moments"]] == [9, pytest.approx(29.25), 31.25]
    assert run["history"]["iteration"] == [0, 5, 10] and run["history"]["loss"] == [0.01] * 3
    assert ["noise_sigma", "25"] in run["settings"]
    html = index.read_text()
    assert "1 run of\n    1 picture\n" in html and ">31.25<" in html
    assert "31.75" in html and "Oracle" in html and "never the result" in html.replace("\n", " ")
    assert "http" not in re.sub(r"<math.*?</math>", "", html), "nothing is loaded from elsewhere"


def test_the_same_runs_give_the_same_bytes(tmp_path):
    for name in "ab":
        run_of(tmp_path / "runs", name)
    pages = [tmp_path / "one", tmp_path / "two"]
    for page in pages:
        report.write([tmp_path / "runs"], page, article=True)
    one, two = ({p: (page / p).read_bytes() for p in files(page)} for page in pages)
    assert one == two


def test_pictures_that_runs_share_are_stored_once(tmp_path):
    for mode in ("bilinear", "nearest"):
        run_of(tmp_path / "runs", upsample_mode=mode)
    report.write([tmp_path / "runs"], tmp_path / "page")
    assert len(files(tmp_path / "page" / "pictures")) == 5  # clean, noisy, restored, 2 snapshots


def test_names_are_text_wherever_they_stand(tmp_path):
    run_of(tmp_path / "runs", EVIL, model_type="DD", norm_func="</script><b>")
    report.write([tmp_path / "runs"], tmp_path / "page", article=True)
    html, data = ((tmp_path / "page" / name).read_text() for name in ("index.html", "data.js"))
    assert "<script>alert" not in html and "&lt;script&gt;alert(1)" in html
    assert not re.search("[<>&\u2028]", data)
    assert only(tmp_path / "page")["facets"][0] == EVIL
    assert all(re.fullmatch(r"[\w./-]+", name, re.A) for name in files(tmp_path / "page"))


def test_links_are_kept_and_tell_runs_apart(tmp_path):
    for n, place in enumerate(("one", "two")):
        run_of(tmp_path / place / "denoising" / "DIP_2_scaled_é<ü>", seed=7 + n)
    report.write([tmp_path / "one", tmp_path / "two"], tmp_path / "page")
    runs = runs_of(tmp_path / "page")
    assert set(runs) == {"denoising-DIP_2_scaled__-000", "denoising-DIP_2_scaled__-000~2"}
    assert {run["facets"][4] for run in runs.values()} == {"seed 7", "seed 8"}
    run_of(tmp_path / "mine" / "secret")
    report.write([tmp_path / "one", tmp_path / "mine"], tmp_path / "page")
    assert "denoising-DIP_2_scaled-000" in runs_of(tmp_path / "page")
    report.write([tmp_path / "one"], tmp_path / "page")
    assert set(runs_of(tmp_path / "page")) == {"denoising-DIP_2_scaled__-000"}


def test_alike_in_all_but_the_folder_and_two_pictures_of_one_name(tmp_path):
    for _ in range(2):
        run_of(tmp_path / "runs")
    run_of(tmp_path / "runs", picture_sha256="b" * 64, dim=[32])
    report.write([tmp_path / "runs"], tmp_path / "page")
    found = sorted(
        (run["facets"][0], run["facets"][4]) for run in runs_of(tmp_path / "page").values()
    )
    assert found == [("a", ""), ("a", "(2)"), ("a (2)", "")]
    run_of(tmp_path / "runs", "a (2)", dim=[64])  # as a browser names what it downloads again
    report.write([tmp_path / "runs"], tmp_path / "page")
    names = {run["facets"][0] for run in runs_of(tmp_path / "page").values()}
    assert names == {"a", "a (2)", "a (3)"}


def test_where_files_were_is_not_published(tmp_path):
    place = {"folder_path": "/home/me/secret/x.png", "save_folder": str(tmp_path)}
    run_of(tmp_path / "runs", mask_path="C:\\secret\\mask.png", tv_weight=1 / 3, **place)
    report.write([tmp_path / "runs"], tmp_path / "page", article=True)
    for name in ("index.html", "data.js"):
        text = (tmp_path / "page" / name).read_text()
        assert "secret" not in text and str(tmp_path) not in text
    settings = dict(only(tmp_path / "page")["settings"])
    assert settings["folder_path"] == "x.png" and settings["mask_path"] == "mask.png"
    assert settings["tv_weight"] == "0.333333" and "input_image_name" not in settings


@pytest.mark.parametrize(
    "folder_path, shown",
    [
        ("clients/acme/coins.png", "coins.png"),
        ("../clients/acme/", "acme"),
        ("set5/img_003", "set5/img_003"),
        ("texture-dip/64/a*", "texture-dip/a*"),
        ("set9", "set9"),
    ],
)
def test_nor_are_folders_from_here(tmp_path, folder_path, shown):
    run_of(tmp_path / "runs", folder_path=folder_path)
    report.write([tmp_path / "runs"], tmp_path / "page")
    assert dict(only(tmp_path / "page")["settings"])["folder_path"] == shown


def test_a_fit_that_was_given_up_says_so(tmp_path):
    patch(run_of(tmp_path / "runs"), gave_up=True)
    report.write([tmp_path / "runs"], tmp_path / "page")
    assert only(tmp_path / "page")["ending"].startswith("given up after 11 iterations")


def test_without_ground_truth(tmp_path):
    run = run_of(tmp_path / "runs", truth=False)
    (run.folder / "clean.png").unlink()
    patch(run, task="real_denoising", stopping="held-out", stopped_by_rule=True)
    report.write([tmp_path / "runs"], tmp_path / "page")
    run = only(tmp_path / "page")
    assert run["clean"] is None and run["psnr"] == {"measurement": None, "restored": None}
    assert run["oracle"] == [None, None] and set(run["history"]) == {
        "iteration",
        "loss",
        "psnr_noisy",
    }
    assert run["facets"][1] == "denoising, real noise"
    assert run["ending"] == "stopped at iteration 10 of 11 by held-out"
    assert "Oracle</button>" not in (tmp_path / "page" / "index.html").read_text()


def test_a_tiled_run(tmp_path):
    run = tiled(tmp_path / "runs")
    report.write([tmp_path / "runs"], tmp_path / "page")
    shown = only(tmp_path / "page")
    assert shown["tiles"] == [[0, 24, 0, 16, 4], [0, 24, 16, 32, 9]]
    assert shown["history"] is None and shown["moments"] == []
    assert shown["ending"] == "2 tiles, 4 to 9 iterations each"
    patch(run, gave_up=1)
    report.write([tmp_path / "runs"], tmp_path / "page")
    assert only(tmp_path / "page")["ending"].endswith("iterations each; 1 of them given up")
    patch(run, gave_up=None)
    report.write([tmp_path / "runs"], tmp_path / "page")
    (run.folder / "tiles.csv").write_text("tile,top\n0,x")
    refused(lambda: report.write([tmp_path / "runs"], tmp_path / "page"), "tiles.csv", "damaged")
    assert only(tmp_path / "page") == shown, "the page that was there is left"


def test_grey_deep_and_transparent_pictures_look_alike(tmp_path):
    run = run_of(tmp_path / "runs", channels=1)
    deep = np.full((24, 32), round(0.4 * 65535), np.uint16)
    Image.fromarray(deep).save(run.folder / "restored.png")
    rgba = np.full((24, 32, 4), 128, np.uint8)
    Image.fromarray(rgba).save(run.folder / "noisy.png")
    Image.new("RGB", (32, 24), (51, 51, 51)).save(run.folder / "clean.png", icc_profile=b"none")
    report.write([tmp_path / "runs"], tmp_path / "page")
    shown = only(tmp_path / "page")
    for name, level in (("restored", 0.4), ("measurement", 0.502), ("clean", 0.2)):
        assert level_of(tmp_path / "page", shown[name]) == pytest.approx(level, abs=0.003)


def test_where_a_picture_was_taken_is_not_published(tmp_path):
    run = run_of(tmp_path / "runs")
    exif = Image.Exif()
    exif[0x0110] = "Somebody's camera"
    Image.new("RGB", (32, 24), (51, 51, 51)).save(run.folder / "restored.png", exif=exif)
    assert b"Somebody" in (run.folder / "restored.png").read_bytes()
    report.write([tmp_path / "runs"], tmp_path / "page")
    for path in (tmp_path / "page").rglob("*.png"):
        assert b"Somebody" not in path.read_bytes()


def test_super_resolution(tmp_path):
    run = run_of(tmp_path / "runs")
    images.save_png(run.folder / "noisy.png", flat(0.7, (6, 8)))
    patch(run, task="sr")
    report.write([tmp_path / "runs"], tmp_path / "page")
    shown = only(tmp_path / "page")
    assert shown["size"] == [32, 24] and shown["enlarged"]
    assert "bicubic enlargement" in (tmp_path / "page" / "index.html").read_text()


def test_long_curves_are_thinned_but_for_what_is_marked(tmp_path):
    at = tuple(range(0, 5003, 2))
    run = run_of(tmp_path / "runs", at=at, snapshots=(0, 334, 1002))
    patch(run, stop_iteration=778, oracle_iteration=556)
    report.write([tmp_path / "runs"], tmp_path / "page")
    kept = only(tmp_path / "page")["history"]["iteration"]
    assert {0, 334, 1002, 778, 556, at[-1]} <= set(kept) and len(kept) < POINTS + 10
    assert kept == sorted(kept)


def test_figures_that_are_not_finite(tmp_path):
    run = run_of(tmp_path / "runs")
    rows = run.history()
    rows[1] |= {"psnr_gt": float("inf"), "loss": float("nan")}
    run.write_history(rows)
    report.write([tmp_path / "runs"], tmp_path / "page")
    history = only(tmp_path / "page")["history"]
    assert history["psnr_gt"][1] is None and history["loss"][1] is None


def test_unfinished_runs_are_left_out_with_a_note(tmp_path, capsys):
    run_of(tmp_path / "runs")
    for name in "bcde":
        (run_of(tmp_path / "runs", name).folder / "result.json").unlink()
    runs = str(tmp_path / "runs")
    assert main(["report", runs, runs, "-o", str(tmp_path / "page"), "--with-article"]) == 0
    out, err = capsys.readouterr()
    assert out == f"{tmp_path / 'page' / 'index.html'}\n"
    assert err.startswith("note: 4 unfinished runs left out: ") and err.count("\n") == 1
    assert err.rstrip().endswith("…") and len(runs_of(tmp_path / "page")) == 1
    text = (tmp_path / "page" / "index.html").read_text()
    assert '<article id="article"' in text
    for mean in ("31.19", "33.48", "28.53"):  # of what is published
        assert f">{mean}<" in text


def test_folders_that_will_not_do(tmp_path, monkeypatch, capsys):
    runs = tmp_path / "runs"
    run_of(runs)

    def write(output, source=runs):
        report.write([source], output)

    (tmp_path / "file").write_text("")
    refused(lambda: write(tmp_path / "file"), "--output", "is a file")
    refused(lambda: write(tmp_path / "file" / "page"), "--output", "is a file")
    refused(lambda: write(runs), "--output", runs, "holds 000")
    refused(lambda: write(tmp_path / "page", tmp_path / "none"), "no such folder")
    (tmp_path / "empty").mkdir()
    refused(lambda: write(tmp_path / "page", tmp_path / "empty"), "no finished run")
    write(tmp_path / "empty")
    assert only(tmp_path / "empty")
    write(tmp_path / "deep" / "er")
    (tmp_path / "empty" / "CNAME").write_text("mine")
    refused(lambda: write(tmp_path / "empty"), "holds CNAME")
    (tmp_path / "empty" / "CNAME").unlink()
    for name in ("pictures/mine.png", "assets/notes.txt"):
        (tmp_path / "empty" / name).write_text("mine")
        refused(lambda: write(tmp_path / "empty"), f"holds {name}")
        (tmp_path / "empty" / name).unlink()
    for place in ("pictures/.DS_Store", ".DS_Store"):
        (tmp_path / "empty" / place).touch()
    write(tmp_path / "empty")
    (tmp_path / "circle").symlink_to("circle")
    refused(lambda: write(tmp_path / "circle"), "circle")
    (tmp_path / "circle").unlink()
    (tmp_path / "index").mkdir()
    (tmp_path / "index" / "index.html").write_text("<html>mine</html>")
    refused(lambda: write(tmp_path / "index"), "holds index.html")
    monkeypatch.chdir(tmp_path / "deep" / "er")
    refused(lambda: write("."), "current folder")
    refused(lambda: write(tmp_path / "deep"), "current folder")
    assert main(["report", str(runs)]) == 2
    assert "--output" in capsys.readouterr().err
    assert {p.name for p in tmp_path.iterdir()} == {"runs", "file", "empty", "deep", "index"}


def test_a_page_is_replaced_whole_or_not_at_all(tmp_path, monkeypatch):
    run_of(tmp_path / "runs")
    (tmp_path / "link").symlink_to(tmp_path / "page")
    report.write([tmp_path / "runs"], tmp_path / "page")
    before = files(tmp_path / "page")

    def full(*_):
        raise OSError(errno.ENOSPC, "full")

    run_of(tmp_path / "runs", "b")
    with monkeypatch.context() as patched:
        patched.setattr(page_module, "_columns", full)
        refused(lambda: report.write([tmp_path / "runs"], tmp_path / "page"), "no space left")
    with monkeypatch.context() as patched:
        rename, calls = Path.rename, []

        def once(self, target):
            calls.append(self)
            return full() if len(calls) == 2 else rename(self, target)

        patched.setattr(Path, "rename", once)
        refused(lambda: report.write([tmp_path / "runs"], tmp_path / "page"), "no space left")
    assert files(tmp_path / "page") == before
    assert {p.name for p in tmp_path.iterdir()} == {"runs", "page", "link"}
    report.write([tmp_path / "runs"], tmp_path / "link")
    assert len(runs_of(tmp_path / "page")) == 2 and (tmp_path / "link").is_symlink()
    assert {p.name for p in tmp_path.iterdir()} == {"runs", "page", "link"}


def test_without_jinja(tmp_path, monkeypatch):
    run_of(tmp_path / "runs")
    monkeypatch.setitem(sys.modules, "jinja2", None)
    refused(lambda: report.write([tmp_path / "runs"], tmp_path / "page"), "dip-recon[report]")


def test_it_reads_run_folders_alone():
    code = (
        "import sys, dip_recon.report; "
        "sys.exit(any(f'dip_recon.{m}' in sys.modules for m in ('fit', 'models')))"
    )
    env = os.environ | {"PYTHONPATH": str(ROOT / "DIP-Recon")}
    assert subprocess.run([sys.executable, "-c", code], env=env).returncode == 0


def test_what_others_wrote_is_as_listed():
    rows = re.findall(
        r"^\| (\S+) \| .* \| MIT \| (\w{64}) \|$", (ASSETS / "ASSETS.md").read_text(), re.M
    )
    assert {name for name, _ in rows} | {"ASSETS.md"} == files(ASSETS)
    for name, digest in rows:
        assert hashlib.sha256((ASSETS / name).read_bytes()).hexdigest() == digest
    assert sum(p.stat().st_size for p in ASSETS.iterdir()) < 500_000
    assert '"dip_recon.report" = ["assets/*", "page/*"]' in (ROOT / "pyproject.toml").read_text()


# ---------------------------------------------------------------- what a reader sees


BROWSER = shutil.which("chromium") or shutil.which("chromium-browser")
DRIVER = shutil.which("chromedriver")
in_a_browser = pytest.mark.skipif(
    not (BROWSER and DRIVER), reason="chromium and chromedriver are not installed"
)


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    """Headless Chromium that is left alone by the network."""
    webdriver = pytest.importorskip("selenium.webdriver")
    from selenium.webdriver.chrome.service import Service

    options = webdriver.ChromeOptions()
    options.binary_location = BROWSER
    profile = tmp_path_factory.mktemp("profile")
    for flag in (
        "headless=new", "no-sandbox", "disable-gpu", "disable-quic", "no-first-run",
        "force-prefers-reduced-motion",
        "disable-background-networking", "disable-component-update", "disable-sync",
        "disable-dev-shm-usage", "force-device-scale-factor=1", "window-size=1280,1000",
        f"user-data-dir={profile}",
    ):  # fmt: skip
        options.add_argument(f"--{flag}")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driver = webdriver.Chrome(options, Service(DRIVER))
    yield driver
    driver.quit()


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    """A page of runs of several kinds, with the article."""
    folder = tmp_path_factory.mktemp("report")
    runs = folder / "runs" / "denoising"
    run_of(runs / "DIP", "a", psnr=30.0)
    run_of(runs / "DIP", "a", psnr=28.0, upsample_mode="nearest")
    run_of(runs / "DIP", "a", psnr=9.0, upsample_mode="nearest", seed=8)
    run_of(runs / "DIP", "b", psnr=31.0, size=(40, 20))
    real = run_of(runs / "DIP", EVIL, truth=False, model_type="DD")
    (real.folder / "clean.png").unlink()
    tiled(runs / "DIP", "tiled")
    small = run_of(runs / "SR", "a", psnr=27.0)
    images.save_png(small.folder / "noisy.png", flat(0.7, (6, 8)))
    patch(small, task="sr")
    report.write([folder / "runs"], folder / "page", article=True)
    return folder / "page"


@pytest.fixture
def at(browser, page):
    """A function that opens the page at a link; afterwards nothing must have gone wrong."""
    browser.get("about:blank")
    for log in ("browser", "performance"):
        browser.get_log(log)

    def go(link="", folder=page):
        browser.get("about:blank")
        browser.get((folder / "index.html").as_uri() + link)
        return Reader(browser)

    yield go
    assert [entry["message"] for entry in browser.get_log("browser")] == []
    assert {url.split(":")[0] for url in Reader(browser).asked()} <= {"file", "data", "about"}


class Reader:
    """What somebody does with the page."""

    def __init__(self, browser):
        self.browser = browser

    def asked(self):
        """The addresses of what was requested since this was last looked at."""
        sent = [json.loads(e["message"])["message"] for e in self.browser.get_log("performance")]
        requests = [m["params"] for m in sent if m["method"] == "Network.requestWillBeSent"]
        return [params["request"]["url"] for params in requests]

    def script(self, code, *arguments):
        return self.browser.execute_script(code, *arguments)

    def find(self, selector):
        return self.browser.find_element("css selector", selector)

    def all(self, selector):
        return self.browser.find_elements("css selector", selector)

    def actions(self):
        from selenium.webdriver.common.action_chains import ActionChains

        return ActionChains(self.browser, duration=20)

    def keys(self):
        from selenium.webdriver.common.keys import Keys

        return Keys

    def until(self, condition, what="it"):
        from selenium.webdriver.support.ui import WebDriverWait

        return WebDriverWait(self.browser, 5, 0.02).until(lambda _: condition(), what)

    def pick(self, selector, text):
        from selenium.webdriver.support.ui import Select

        Select(self.find(selector)).select_by_visible_text(text)

    def picked(self, selector):
        from selenium.webdriver.support.ui import Select

        return Select(self.find(selector)).first_selected_option.text

    def options(self, selector):
        return [option.text for option in self.all(f"{selector} option")]

    def level(self, side):
        """The grey level of a side's picture, once it is there."""
        image = f"document.getElementById('{side}-picture')"
        self.until(lambda: self.script(f"return {image}.complete && {image}.naturalWidth > 0"))
        path = Path(self.script(f"return new URL({image}.src).pathname"))
        with Image.open(path) as picture:
            return round(np.asarray(picture).mean() / 255, 2)

    def facts(self):
        return self.find("#facts").text

    def column(self, n):
        return [cell.text for cell in self.all(f"#results tbody tr > :nth-child({n})")]


@in_a_browser
def test_choosing_another_picture(at):
    reader = at()
    assert reader.picked("#facet-0") != "b" and reader.find("#view").is_displayed()
    reader.pick("#facet-0", "b")
    reader.until(lambda: "31.00 dB" in reader.facts())
    assert reader.find("tr[aria-current]").text.startswith("b ")
    assert reader.browser.title.startswith("b, ")
    assert "run=" in reader.script("return location.hash")
    box = reader.script("return document.getElementById('slider').getBoundingClientRect()")
    assert box["height"] / box["width"] == pytest.approx(2, rel=0.01), "a tall picture stays tall"


@in_a_browser
def test_one_can_go_back_to_the_first(at):
    reader = at()
    first = reader.picked("#facet-0")
    assert "run=" in reader.script("return location.hash")
    reader.pick("#facet-0", "b")
    reader.until(lambda: "31.00 dB" in reader.facts())
    reader.browser.back()
    reader.until(lambda: reader.picked("#facet-0") == first)


@in_a_browser
def test_the_head_of_the_table_is_above_its_rows(at):
    reader = at()
    link = reader.find("#results tbody tr:nth-child(2) a")
    before = reader.facts()
    held = reader.actions().key_down(reader.keys().CONTROL).click(link)
    held.key_up(reader.keys().CONTROL).perform()
    reader.until(lambda: len(reader.browser.window_handles) == 2)
    assert reader.facts() == before, "in a tab of its own"
    here, there = reader.browser.window_handles
    reader.browser.switch_to.window(there)
    reader.browser.close()
    reader.browser.switch_to.window(here)
    over = """
        const scroll = document.querySelector("#results .scroll, .scroll:has(#results)");
        scroll.style.maxHeight = "9rem";
        scroll.style.maxWidth = "20rem";
        scroll.scrollTo(120, 60);
        const { left, top } = scroll.getBoundingClientRect();
        return [8, 200].map((x) => document.elementFromPoint(left + x, top + 12).closest("thead"))
            .map(Boolean);
    """
    assert reader.script(over) == [True, True]


@in_a_browser
def test_a_run_is_chosen_by_task_network_upsampling_and_settings(at):
    reader = at("#run=DIP-denoising-x")  # a link that leads nowhere: the first run
    reader.pick("#facet-0", "a")
    assert set(reader.options("#facet-1")) == {"denoising", "super-resolution"}
    reader.pick("#facet-3", "nearest")
    reader.until(lambda: reader.options("#facet-4") == ["seed 7", "seed 8"])
    reader.pick("#facet-4", "seed 8")
    reader.until(lambda: "9.00 dB" in reader.facts())
    reader.pick("#facet-1", "super-resolution")
    reader.until(lambda: "Bicubic" in reader.facts())
    sizes = "return ['left', 'right'].map((s) => document.getElementById(s + '-picture')"
    one, two = reader.script(sizes + ".getBoundingClientRect().width)")
    assert one == two > 200, "a measurement of few pixels is shown at the size of the result"
    reader.browser.back()
    reader.until(lambda: "9.00 dB" in reader.facts())


@in_a_browser
def test_two_pictures_under_the_slider(at):
    reader = at("#run=denoising-DIP_2_scaled-000")
    assert (reader.level("left"), reader.level("right")) == (0.7, 0.4)
    reader.pick("#left", "Clean picture")
    assert reader.level("left") == 0.5
    others = [name for name in reader.options("#right") if "," in name]
    assert others == [
        "denoising, DIP_2_scaled, nearest, seed 7", "denoising, DIP_2_scaled, nearest, seed 8",
        "super-resolution, DIP_2_scaled, bilinear",
    ]  # fmt: skip
    reader.pick("#right", others[0])
    assert reader.find("#right-level").text == "28.00 dB"
    chosen = reader.script("return location.hash")
    again = at(chosen)
    assert again.picked("#left") == "Clean picture" and again.picked("#right") == others[0]
    assert again.find("#left-picture").get_attribute("alt") == "Clean picture: a"


@in_a_browser
def test_the_slider_by_mouse_and_by_keyboard(at):
    reader = at("#run=denoising-DIP_2_scaled-000")
    slider = reader.find("#slider")

    def value():
        return float(slider.get_attribute("aria-valuenow"))

    assert value() == 50
    quarter = slider.size["width"] / 4
    reader.actions().move_to_element(slider).click_and_hold().move_by_offset(
        -round(quarter), 0
    ).release().perform()
    reader.until(lambda: abs(value() - 25) < 2)
    reader.actions().key_down(reader.keys().ARROW_RIGHT).pause(0.3).key_up(
        reader.keys().ARROW_RIGHT
    ).perform()
    reader.until(lambda: value() > 28)


@in_a_browser
def test_scrubbing_the_iterations(at):
    reader = at("#run=denoising-DIP_2_scaled-000")

    def text():
        return reader.find("#moment-text").text

    assert text() == "iteration 10, 30.00 dB: the result"
    reader.find("#moment").send_keys(reader.keys().ARROW_LEFT)
    reader.until(lambda: text() == "iteration 5, 28.00 dB")
    assert reader.picked("#right") == "Iteration 5" and reader.level("right") == 0.25
    assert reader.find("#moment").get_attribute("aria-valuetext") == text()
    reader.find("#moment").send_keys(reader.keys().HOME)
    reader.until(lambda: reader.level("right") == 0.0)
    reader.until(lambda: "at=0" in reader.script("return location.hash"))
    again = at(reader.script("return location.hash"))
    assert again.picked("#right") == "Iteration 0" and again.level("right") == 0.0


@in_a_browser
def test_the_plot_tells_values_and_leads_to_pictures(at):
    reader = at("#run=denoising-DIP_2_scaled-000")

    def legend():
        return "".join(reader.find(".u-legend").text.split())

    reader.until(lambda: "30.00" in legend())
    over = reader.find(".u-over")
    middle = reader.actions().move_to_element(over)
    middle.perform()
    reader.until(lambda: "vsclean28.00rawoutputvsclean29.00" in legend())
    assert "vsmeasured20.00" in legend() and "loss0.0100" in legend()
    middle.click().perform()
    reader.until(lambda: reader.picked("#right") == "Iteration 5")
    reader.actions().move_to_element(reader.find("h1")).perform()
    over.send_keys(reader.keys().ARROW_LEFT)
    reader.until(lambda: "vsclean9.00" in legend())
    said = "iteration 0, vs clean 9.00, raw output vs clean 10.00, vs measured 20.00, loss 0.0100"
    assert over.get_attribute("aria-valuetext") == said
    over.send_keys(reader.keys().END)
    reader.until(lambda: "iteration 10" in over.get_attribute("aria-valuetext"))


@in_a_browser
def test_a_double_click_on_the_plot_leaves_the_pictures(at):
    reader = at("#run=denoising-DIP_2_scaled-000")
    reader.pick("#right", "Clean picture")
    before = reader.script("return location.hash")
    reader.actions().double_click(reader.find(".u-over")).perform()
    assert reader.picked("#right") == "Clean picture"
    assert reader.script("return location.hash") == before


@in_a_browser
def test_the_links_of_the_page_lead_there_by_keyboard_too(at):
    reader = at()
    link = reader.find('nav a[href="#results"]')
    link.send_keys(reader.keys().ENTER)
    focused = "return document.activeElement"
    assert reader.script(f"{focused}.id") == "results-title"
    reader.actions().send_keys(reader.keys().TAB).perform()
    assert reader.script(f"{focused}.closest('#results') !== null")


@in_a_browser
def test_the_run_at_hand_chosen_again_is_brought_into_view(at):
    reader = at()
    row = "tr[aria-current] td:last-child", "tr[aria-current] a"
    inside = "return document.getElementById('stage').getBoundingClientRect().bottom > 0"
    for selector in row:
        end = "scrollTo({top: document.body.scrollHeight, behavior: 'instant'})"
        reader.script("document.querySelector('main').style.paddingBottom = '3000px'")
        reader.script(end)
        assert not reader.script(inside)
        # at once, as with less motion: Chromium loses a smooth scroll that begins within another
        reader.script(f"document.querySelector('{selector}').click()")
        reader.until(lambda: reader.script(inside))


@in_a_browser
def test_the_table_is_sorted_and_leads_to_runs(at):
    reader = at()
    heads = [head.text for head in reader.all("#results thead th")]
    restored = heads.index("Restored") + 1
    button = reader.find(f"#results thead th:nth-child({restored}) button")
    unsorted = reader.column(restored)
    button.click()
    known = ["31.00", "30.00", "30.00", "28.00", "27.00", "9.00"]
    assert reader.column(restored) == [*known, "–"] != unsorted
    button.click()
    assert reader.column(restored) == [*known[::-1], "–"], "what is not known stays last"
    assert reader.find("th[aria-sort]").get_attribute("aria-sort") == "ascending"
    reader.find("#results thead th:first-child button").click()
    assert reader.column(1)[1:] == ["a", "a", "a", "a", "b", "tiled"]
    reader.all("#results tbody td.restored")[5].click()
    reader.until(lambda: "31.00 dB" in reader.facts())
    link = reader.find("#results tbody tr:nth-child(7) a")
    link.send_keys(reader.keys().ENTER)
    reader.until(lambda: reader.find("#tile-map").is_displayed())
    assert [t.text for t in reader.all("#tile-map text")] == ["4", "9"]
    assert not reader.find("#curves").is_displayed() and not reader.find("#moments").is_displayed()


@in_a_browser
def test_any_name_is_shown_as_it_is(at):
    reader = at()
    reader.pick("#facet-0", EVIL)
    reader.until(lambda: reader.browser.title.startswith(EVIL))
    assert reader.find("tr[aria-current] a").text == EVIL
    assert EVIL in reader.find("#left-picture").get_attribute("alt")
    assert "no PSNR" in reader.facts() and "Clean picture" not in reader.options("#left")
    assert EVIL in reader.find("#settings").get_attribute("textContent")


@in_a_browser
@pytest.mark.parametrize("dark", [False, True])
def test_on_a_phone(at, dark):
    reader = at()
    scheme = [{"name": "prefers-color-scheme", "value": "dark" if dark else "light"}]
    command = reader.browser.execute_cdp_cmd
    metrics = {"width": 390, "height": 844, "deviceScaleFactor": 1, "mobile": True}
    command("Emulation.setDeviceMetricsOverride", metrics)
    command("Emulation.setEmulatedMedia", {"features": scheme})
    try:
        reader = at("#run=denoising-DIP_2_scaled-000")
        assert reader.script("return document.documentElement.scrollWidth") == 390
        ground = reader.script("return getComputedStyle(document.body).backgroundColor")
        assert (sum(map(int, re.findall(r"\d+", ground)[:3])) < 200) == dark
        reader.until(lambda: reader.find(".uplot").size["width"] <= 390)
    finally:
        command("Emulation.clearDeviceMetricsOverride", {})
        command("Emulation.setEmulatedMedia", {"features": []})


@in_a_browser
def test_without_javascript_there_is_the_table(at):
    reader = at()
    switch = reader.browser.execute_cdp_cmd
    switch("Emulation.setScriptExecutionDisabled", {"value": True})
    try:
        reader = at()
        assert reader.find("noscript p").is_displayed() and not reader.find("#view").is_displayed()
        assert len(reader.all("#results tbody tr")) == 7
    finally:
        switch("Emulation.setScriptExecutionDisabled", {"value": False})


@in_a_browser
def test_of_many_runs_only_the_one_at_hand_is_fetched(at, tmp_path):
    rng = np.random.default_rng(0)
    for n in range(60):
        run = run_of(tmp_path / "runs", f"picture {n // 4}", at=tuple(range(0, 3000, 2)), seed=n)
        noise = rng.random((3, 96, 96), dtype=np.float32)
        images.save_png(run.folder / "noisy.png", noise)
    report.write([tmp_path / "runs"], tmp_path / "page", article=True)
    weight = sum((tmp_path / "page" / name).stat().st_size for name in files(tmp_path / "page"))
    pictures = tmp_path / "page" / "pictures"
    assert weight - sum(p.stat().st_size for p in pictures.iterdir()) < 6e6
    reader = at(folder=tmp_path / "page")
    fetched = {url for url in reader.asked() if url.endswith(".png")}
    assert 2 <= len(fetched) <= 6, "no pictures but those of the run at hand"
