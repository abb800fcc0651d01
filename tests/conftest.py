"""Settings of all tests, and of the processes that they start."""

from __future__ import annotations

import os
import tempfile

import pytest

from eridiff.device_lock import FOLDER_VARIABLE

# Tiny products: on a busy machine, threads that wait for each other make seconds into minutes. Set before
# torch is imported, which reads it once.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# Tests side by side share a GPU, which two jobs do not: each process of tests has locks of its own.
_LOCKS = tempfile.TemporaryDirectory(prefix="eridiff-locks-")
os.environ[FOLDER_VARIABLE] = _LOCKS.name


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Tests marked `gpu` are skipped where there is none; torch is only loaded to find out for them."""
    if item.get_closest_marker("gpu"):
        import torch

        if not torch.cuda.is_available():
            pytest.skip("needs a CUDA device")
