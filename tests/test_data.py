"""Data sets: names to pictures, and downloads over a server that misbehaves."""

import csv
import errno
import hashlib
import os
import stat
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
from conftest import refused

from dip_recon import data, images
from dip_recon.data import sets, transfer

SHARED = Path(__file__).parents[2] / "shared" / "data"
FILES = {
    "Made/a.png": b"first " * 5000,
    "Made/b c.png": b"second " * 5000,
    "Made/sub/d.png": b"third " * 5000,
}


def picture(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    images.save_png(path, np.zeros((1, 4, 4)))
    return path


# ---------------------------------------------------------------------------------- manifests


@pytest.mark.parametrize("name", [n for n in data.names() if n != "bundled"])
def test_shipped_manifests_are_well_formed(name):
    entries = sets.manifest(name)
    paths = [entry.path for entry in entries]
    assert len(set(paths)) == len(paths) > 0
    assert all(entry.bytes > 0 for entry in entries)
    assert all(Path(entry.path).suffix.lower() in images.READABLE for entry in entries)
    assert all(entry.path.rsplit("/")[-1] == entry.url.rsplit("/")[-1] for entry in entries)
    assert sets.SETS[name].base.startswith("https://")
    published = {"set9": 9, "texture-dip": 86, "texture-dip-repeat": 110, "bernoulli11": 11}
    published |= {"set5": 10, "set14": 28, "polyu": 200, "dip-demos": 14}
    assert len(entries) == published[name] == data.info(name).files


@pytest.mark.skipif(not SHARED.is_dir(), reason="the data sets are not here")
@pytest.mark.parametrize("name", ["set5", "bernoulli11", "dip-demos"])
def test_shipped_hashes_are_those_of_the_files(name):
    assert data.verify(name, root=SHARED) == []
    assert data.info(name, root=SHARED).here


@pytest.mark.parametrize(
    "path",
    ["../a.png", "/etc/a.png", "a/../../b.png", "C:/a.png", "a\\..\\b.png", "", "a\n.png", "a:b"],
)
@pytest.mark.parametrize("column", ["path", "url"])
def test_a_manifest_cannot_leave_the_folder(tmp_path, monkeypatch, path, column):
    row = {"path": "a.png", "bytes": "1", "sha256": "0" * 64, "url": "a.png"} | {column: path}
    with open(tmp_path / "set9.csv", "w", newline="") as file:
        writer = csv.DictWriter(file, row)
        writer.writeheader()
        writer.writerow(row)
    monkeypatch.setattr(sets, "MANIFESTS", tmp_path)
    refused(lambda: data.download("set9", root=tmp_path / "out"), "line 2", "leaves the folder")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("row", ["a.png,x,{0},a.png", "a.png,-1,{0},a.png", "a.png,1,abc,a.png"])
def test_a_manifest_with_bad_numbers_is_refused(tmp_path, monkeypatch, row):
    (tmp_path / "set9.csv").write_text("path,bytes,sha256,url\n" + row.format("0" * 64) + "\n")
    monkeypatch.setattr(sets, "MANIFESTS", tmp_path)
    refused(lambda: data.verify("set9", root=tmp_path), "set9.csv", "line 2")


# ------------------------------------------------------------------------------------ resolve


def test_bundled_needs_no_download():
    items = data.resolve("bundled")
    found = {item.name for item in items}
    assert {"astronaut", "camera", "coins"} <= found
    assert images.read(data.resolve("bundled/astronaut")[0].path).data.shape == (3, 512, 512)
    assert data.info("bundled").here and data.info("bundled").files == len(items)
    assert data.download("bundled") == items[0].path.parent
    assert data.verify("bundled") == []
    refused(lambda: data.resolve("bundled/astronot"), "'astronaut'")


def test_a_bundled_picture_that_is_not_in_the_wheel_is_skipped(monkeypatch):
    monkeypatch.setattr(sets, "BUNDLED", ("astronaut.png", "never_was.png"))
    assert [item.name for item in data.resolve("bundled")] == ["astronaut"]
    assert "never_was.png" in data.verify("bundled")[0]


def test_unknown_and_absent(tmp_path):
    refused(lambda: data.resolve("sett9"), "'set9'", "Choices:")
    refused(lambda: data.resolve("set9", root=tmp_path), "dip-recon data download set9", "9 of 9")
    for call in (data.info, data.verify, data.download):
        refused(lambda call=call: call("sett9"), "'set9'")


def test_one_file_and_a_plain_folder(tmp_path):
    b, a = picture(tmp_path / "b.png"), picture(tmp_path / "a.PNG")
    picture(tmp_path / "below" / "c.png")
    assert data.resolve(b) == [data.Item("b", b)]
    assert data.resolve(str(tmp_path)) == [data.Item("a", a), data.Item("b", b)]
    (tmp_path / "none").mkdir()
    refused(lambda: data.resolve(tmp_path / "none"), "no pictures")


def test_pairs_in_any_folder(tmp_path):
    files = {
        name: picture(tmp_path / name)
        for name in (
            "img_001_SRF_4_HR.png",
            "img_001_SRF_4_LR.png",
            "img_002_SRF_2_LR.png",
            "lamp_mean.png",
            "lamp_real.png",
            "alone_real.png",
            "vase.png",
            "vase_mask.png",
            "only_mask.png",
        )
    }
    items = {item.name: item for item in data.resolve(tmp_path)}
    high, low = files["img_001_SRF_4_HR.png"], files["img_001_SRF_4_LR.png"]
    assert items.pop("img_001") == data.Item("img_001", high, high=high, low=low, factor=4)
    low = files["img_002_SRF_2_LR.png"]
    assert items.pop("img_002") == data.Item("img_002", low, low=low, factor=2)
    noisy, clean = files["lamp_real.png"], files["lamp_mean.png"]
    assert items.pop("lamp") == data.Item("lamp", noisy, noisy=noisy, clean=clean)
    assert items.pop("vase").mask == files["vase_mask.png"]
    assert set(items) == {"alone_real", "only_mask"}


def test_width_labels_and_unique_names(tmp_path):
    for path in ("32/0001.png", "64/0001.png", "64/0002.png", "128/0003.png"):
        picture(tmp_path / path)
    found = [(item.name, item.label) for item in data.resolve(tmp_path)]
    assert found == [("32_0001", 32), ("64_0001", 64), ("0002", 64), ("0003", 128)]
    assert [item.label for item in data.resolve(tmp_path / "64")] == [64, 64]
    images.write(tmp_path / "64" / "0002.bmp", np.zeros((1, 4, 4)))
    names = [item.name for item in data.resolve(tmp_path / "64")]
    assert names == ["0001", "64_0002_bmp", "64_0002_png"]


@pytest.mark.skipif(not SHARED.is_dir(), reason="the data sets are not here")
def test_the_real_sets_resolve(monkeypatch):
    monkeypatch.setenv("DIP_RECON_DATA", str(SHARED))
    assert len(data.resolve("set9")) == 9
    for name, count in (("set5", 5), ("set14", 14)):
        items = data.resolve(name)
        assert len(items) == count and all(i.low and i.high and i.factor == 4 for i in items)
    assert data.resolve("set5") == data.resolve(SHARED / "Set5")
    items = data.resolve("polyu")
    assert len(items) == 100 and all(i.path == i.noisy and i.clean for i in items)
    assert {i.label for i in data.resolve("texture-dip")} == {32, 64, 128}
    items = data.resolve("texture-dip-repeat")
    assert len({i.name for i in items}) == len(items) == 110
    assert len(data.resolve("texture-dip-repeat/*/*")) == 110
    eight = [i for i in items if i.label == 32 and i.path.stem.startswith("0")]
    assert data.resolve("texture-dip-repeat/32/0*") == eight and len(eight) > 1
    assert {i.name for i in data.resolve("dip-demos") if i.mask} >= {"vase", "library"}
    folder = data.resolve(SHARED / "Texture-DIP-dataset" / "Texture_Datasets_NoRepeat")
    assert len(folder) == 86 and all(item.label for item in folder)


def test_where_the_data_lie(tmp_path, monkeypatch):
    monkeypatch.delenv("DIP_RECON_DATA", raising=False)
    assert data.data_root() == Path(sets.__file__).parents[2] / "data"
    monkeypatch.setattr(sets, "CHECKOUT", tmp_path)  # installed: no README beside the package
    assert "dip-recon" in str(data.data_root())
    monkeypatch.setenv("DIP_RECON_DATA", str(tmp_path / "env"))
    assert data.data_root() == tmp_path / "env"
    assert data.data_root(tmp_path / "given") == tmp_path / "given"


# ----------------------------------------------------------------------------------- download


class Handler(BaseHTTPRequestHandler):
    """Serves FILES; ``faults[url]`` is a list of what to do wrong, one a request."""

    protocol_version = "HTTP/1.1"

    def do_GET(self):
        path = self.path.replace("%20", " ").removeprefix("/base/")
        self.server.asked.append(path)
        faults = self.server.faults.get(path) or ["fine"]
        fault = faults.pop(0)
        if not faults:
            self.server.faults.pop(path, None)
        body = FILES.get(path)
        if fault.isdecimal() or body is None:
            self.send_error(int(fault) if body is not None else 404)
            return
        if fault == "drop":
            self.close_connection = True
            self.connection.close()
            return
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if fault == "truncate":
            self.wfile.write(body[:1000])
            self.close_connection = True
        elif fault == "corrupt":
            self.wfile.write(b"x" + body[1:])
        else:
            self.wfile.write(body)

    def log_message(self, *_):
        pass


@pytest.fixture
def server(tmp_path, monkeypatch):
    """A server on this machine, and a made data set ``set9`` that points to it."""
    pytest.importorskip("pooch")
    monkeypatch.setattr(transfer, "PAUSE", 0)
    with open(tmp_path / "set9.csv", "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["path", "bytes", "sha256", "url"])
        for path, body in FILES.items():
            writer.writerow([path, len(body), hashlib.sha256(body).hexdigest(), path])
    monkeypatch.setattr(sets, "MANIFESTS", tmp_path)
    http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    http.faults, http.asked = {}, []
    http.url = f"http://127.0.0.1:{http.server_port}/base/"
    threading.Thread(target=http.serve_forever, args=(0.01,), daemon=True).start()
    yield http
    http.shutdown()
    http.server_close()


def visible(folder):
    """What lies in a folder, hidden files too: relative path -> content."""
    files = (file for file in folder.rglob("*") if file.is_file())
    return {file.relative_to(folder).as_posix(): file.read_bytes() for file in files}


def test_download_verify_resolve(server, tmp_path, capfd):
    root = tmp_path / "root"
    assert not data.info("set9", root).here
    assert data.download("set9", root, mirror=server.url) == root
    assert visible(root) == FILES
    assert data.verify("set9", root) == [] and data.info("set9", root).here
    assert [item.name for item in data.resolve("set9", root)] == ["a", "b c", "d"]
    assert capfd.readouterr() == ("", "")  # no bar where there is no terminal, no chatter
    if os.name == "posix":
        mask = os.umask(0)
        os.umask(mask)
        assert stat.S_IMODE((root / "Made/a.png").stat().st_mode) == 0o666 & ~mask


@pytest.mark.parametrize("fault", ["truncate", "corrupt", "drop", "500", "503", "429"])
def test_a_passing_fault_is_overcome(server, tmp_path, fault):
    server.faults["Made/a.png"] = [fault, fault]
    data.download("set9", tmp_path / "root", mirror=server.url)
    assert visible(tmp_path / "root") == FILES
    assert server.asked.count("Made/a.png") == 3


@pytest.mark.parametrize(
    ("fault", "word"),
    [
        ("truncate", "connection failed"),
        ("corrupt", "bytes received"),
        ("drop", "connection failed"),
        ("500", "500"),
        ("404", "404"),
    ],
)
def test_a_lasting_fault_is_told_and_nothing_wrong_is_left(server, tmp_path, fault, word):
    root = tmp_path / "root"
    server.faults["Made/b c.png"] = [fault] * 10
    url = server.url + "Made/b%20c.png"
    refused(
        lambda: data.download("set9", root, mirror=server.url),
        *("Made/b c.png", url, word, "try again", "--mirror URL"),
    )
    left = visible(root)
    assert "Made/a.png" in left and "Made/b c.png" not in left
    assert left.items() <= FILES.items()  # no part, no temporary file
    assert server.asked.count("Made/b c.png") == (1 if fault == "404" else transfer.ATTEMPTS)

    server.faults.clear()
    server.asked.clear()
    data.download("set9", root, mirror=server.url)
    assert visible(root) == FILES
    assert sorted(server.asked) == sorted(FILES.keys() - left.keys())  # what was there is kept


def test_wrong_files_are_found_and_mended(server, tmp_path):
    root = tmp_path / "root"
    data.download("set9", root, mirror=server.url)
    (root / "Made/a.png").write_bytes(b"short")
    (root / "Made/b c.png").write_bytes(b"x" * len(FILES["Made/b c.png"]))
    (root / "Made/sub/d.png").unlink()
    first, second, third = data.verify("set9", root)
    assert "5 bytes instead of 30000" in first
    assert "wrong content" in second
    assert "missing" in third
    server.asked.clear()
    data.download("set9", root, mirror=server.url)
    assert visible(root) == FILES and len(server.asked) == 3


def test_no_server_ends_at_the_first_file(server, tmp_path):
    server.shutdown()
    server.server_close()
    root = tmp_path / "root"
    refused(lambda: data.download("set9", root, mirror=server.url), "Made/a.png not", "connection")
    assert visible(root) == {}


def test_bad_mirror_folder_and_missing_extra(server, tmp_path, monkeypatch):
    refused(lambda: data.download("set9", tmp_path, mirror="ftp://there"), "--mirror ftp://there")
    (tmp_path / "file").write_text("in the way")
    refused(lambda: data.download("set9", tmp_path / "file", mirror=server.url), tmp_path / "file")
    monkeypatch.setitem(__import__("sys").modules, "pooch", None)
    refused(
        lambda: data.download("set9", tmp_path / "root", mirror=server.url),
        "pip install pooch requests",
    )


def test_a_full_disk_is_told(server, tmp_path, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "replace", full)
    refused(lambda: data.download("set9", tmp_path / "r", mirror=server.url), "no space", "free")
    assert visible(tmp_path / "r") == {}


@pytest.mark.skipif(os.name != "posix", reason="needs symbolic links")
def test_a_link_out_of_the_folder_is_not_followed(server, tmp_path):
    root, outside = tmp_path / "root", tmp_path / "outside"
    root.mkdir()
    outside.mkdir()
    (root / "Made").symlink_to(outside)
    refused(lambda: data.download("set9", root, mirror=server.url), "Made", "link")
    assert visible(outside) == {}
