"""The device that benchmarks run on: its rate, its clock and its memory."""

from __future__ import annotations

import gc
import time

import torch

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


def matrix_rate(repeats: int = 20) -> float:
    """Floating-point operations a second of a bfloat16 matrix product."""
    side = 8192 if DEVICE.type == "cuda" else 64
    a, b = (torch.randn(side, side, device=DEVICE, dtype=torch.bfloat16) for _ in range(2))
    for _ in range(3):
        a @ b
    synchronize()
    started = time.monotonic()
    for _ in range(repeats):
        a @ b
    synchronize()
    return 2 * side**3 * repeats / (time.monotonic() - started)


def synchronize() -> None:
    """Waits for the device."""
    if DEVICE.type == "cuda":
        torch.cuda.synchronize()


def free() -> None:
    """Lets go what the last measurement left."""
    torch._dynamo.reset()
    gc.collect()
    if DEVICE.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


def peak_memory() -> dict[str, float]:
    """Peak of what tensors took, and of what torch held for them, recordings included."""
    if DEVICE.type != "cuda":
        return {"peak_gb": 0.0, "reserved_gb": 0.0}
    return {
        "peak_gb": round(torch.cuda.max_memory_allocated() / 1e9, 1),
        "reserved_gb": round(torch.cuda.max_memory_reserved() / 1e9, 1),
    }
