"""A run that the command line has trained, once for all these tests."""

import shutil
from pathlib import Path

import pytest
import torch

import gsm_lab as gl
from tests.cli.commands import SHORT, folder_of, gsm_lab


@pytest.fixture(scope="session")
def straight() -> gl.Run:
    """What `SHORT` asks for, without the command line."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    run = gl.Run(pretrain=1, epochs=2)
    run.train(progress=False)
    torch.set_num_threads(threads)
    return run


@pytest.fixture(scope="session")
def finished(tmp_path_factory):
    """A folder in which `gsm-lab run` was typed once, and what it said."""
    cwd = tmp_path_factory.mktemp("cwd")
    return cwd, gsm_lab("run", *SHORT, cwd=cwd)


@pytest.fixture
def whole(finished, tmp_path):
    """A copy of the finished run's folder."""
    return Path(shutil.copytree(folder_of(finished[0]), tmp_path / "whole"))
