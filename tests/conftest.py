"""Settings of all tests, and of the processes that they start."""

from __future__ import annotations

import os

# Tiny products: on a busy machine, threads that wait for each other make seconds into minutes. Set before
# torch is imported, which reads it once.
os.environ.setdefault("OMP_NUM_THREADS", "1")
