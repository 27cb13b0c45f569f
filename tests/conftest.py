"""What several tests need: one thread, small pictures, a small problem."""

import numpy as np
import pytest
import torch

from dip_recon import figures, files, images, stopping
from dip_recon.errors import UserError
from dip_recon.fit import State, make_optimizer
from dip_recon.models import build
from dip_recon.problem import Problem

torch.set_num_threads(1)


def pytest_collection_modifyitems(items):
    """What takes longest begins first, so that the others are not waited for by one alone."""
    items.sort(key=lambda item: item.get_closest_marker("long") is None)


def refused(call, *words):
    """The call raises UserError in one line that holds all the words; returns the line."""
    with pytest.raises(UserError) as caught:
        call()
    line = str(caught.value)
    assert "\n" not in line
    for word in words:
        assert str(word) in line, line
    return line


@pytest.fixture
def picture():
    """[C, 32, 32] in [0, 1]: smooth, with an edge."""

    def make(channels=3, size=(32, 32)):
        h, w = (np.linspace(0, 1, n) for n in size)
        x = np.stack([np.outer(h, w), 0.5 + 0.4 * np.sin(6 * h)[:, None] * np.ones(size[1])])
        x = np.concatenate([x, (x[:1] + (w > 0.5)) / 2])[:channels]
        return x.astype(np.float32)

    return make


@pytest.fixture(autouse=True)
def undrawn(request, monkeypatch):
    """Runs do not draw their two figures, which takes longer than a small fit, but where marked."""
    if request.node.get_closest_marker("drawn") is None:
        monkeypatch.setattr(figures, "draw_run", lambda run: None)


@pytest.fixture(autouse=True)
def unsynced(monkeypatch):
    """Nothing is waited for until a disk holds it, which is ten milliseconds a file."""
    monkeypatch.setattr(files, "sync", lambda path: None)


@pytest.fixture
def folder(tmp_path, picture):
    """A folder of two pictures, colour and grey, 40×36 and 32×32."""
    root = tmp_path / "pictures"
    root.mkdir()
    images.save_png(root / "colour.png", picture(3, (40, 36)))
    images.save_png(root / "grey.png", picture(1))
    return root


@pytest.fixture
def fresh(picture):
    """A function that makes the same small denoising State each time."""

    def make(**settings):
        x = torch.from_numpy(picture())[None]
        noise = torch.randn(x.shape, generator=torch.Generator().manual_seed(3))
        y = (x + 0.1 * noise).clamp(0, 1)
        size = {"in_size": (32, 32), "out_size": (32, 32)}
        weights = torch.Generator().manual_seed(0)
        network = build(
            "DIP_2_scaled", in_channels=8, out_channels=3, dim=8, **size, generator=weights
        )
        z = torch.rand(1, 8, 32, 32, generator=torch.Generator().manual_seed(1)) * 0.1
        lr = settings.pop("lr", 0.01)
        rule = settings.pop("rule", "fixed")
        patience = settings.pop("patience", 10)
        return State(
            problem=Problem.denoising(y, x),
            network=network,
            z=z,
            optimizer=make_optimizer(settings.pop("optimizer", "adam"), network.parameters(), lr),
            generator=torch.Generator().manual_seed(2),
            lr=lr,
            stopping=stopping.make(rule, patience=patience, window=5),
            **{"jitter": 0.03, **settings},
        )

    return make
