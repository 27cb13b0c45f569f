"""A few kills of each of the quicker kinds; `make torture` has many of all."""

import os

import pytest

if not hasattr(os, "fork"):
    pytest.skip("processes are forked here", allow_module_level=True)

from torture import kills


def test_killed_at_random_moments_and_resumed_is_unbroken():
    said = []
    figures = kills.run(300, said.append, ["denoising", "dip-recon denoise"], each=2, seed=1)
    assert figures["failed"] == 0, said
    assert figures["kills"] >= 4 or figures["left out for want of time"]


def test_a_half_written_file_would_be_noticed(tmp_path):
    (tmp_path / "history.csv").write_text("iteration,loss\n1,0.5\n2")
    with pytest.raises(AssertionError, match=r"history.csv: half-written"):
        kills.check_whole(tmp_path)
