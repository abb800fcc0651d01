"""Which attention kernels give right gradients, at real shapes and in the memory layouts of real denoisers.

`python -m benchmarks.attention` compares FlashAttention, memory-efficient and cuDNN attention in bfloat16
with plain products in float32, for queries that lie in memory as `[B, S, H, D]` (as diffusers has them) and
as `[B, H, S, D]`, and for gradients that arrive in either. A kernel that ends its process is a row, too: the
cases after it go on in a fresh one.
"""

from __future__ import annotations

import argparse
import itertools
import json
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention

BACKENDS = {
    "flash": SDPBackend.FLASH_ATTENTION,
    "efficient": SDPBackend.EFFICIENT_ATTENTION,
    "cudnn": SDPBackend.CUDNN_ATTENTION,
}
LAYOUTS = ("BSHD", "BHSD", "mixed")
"""How q, k, v lie in memory; mixed: q and k as BHSD, v as BSHD."""
GRADIENT_LAYOUTS = ("BSHD", "BHSD")
OUTPUTS = ("output", "dq", "dk", "dv")
ALLOWED = 0.02
"""Relative error past which a result is wrong; rounding to bfloat16 makes some thousandths."""
TIMEOUT_S = 60
CONTEXT_LOST = 3
"""Exit code of a process that printed a row and can compute no more."""
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


@dataclass(frozen=True)
class Shape:
    """Batch, heads, length of queries, length of keys, width of a head."""

    batch: int
    heads: int
    queries: int
    keys: int
    width: int


SHAPES = {
    "flux": Shape(1, 24, 4608, 4608, 128),
    "flux, small": Shape(1, 4, 84, 84, 32),
    "flux, odd": Shape(1, 24, 4429, 4429, 128),
    "sd35-medium": Shape(1, 24, 4327, 4327, 64),
    "sd35-medium, image": Shape(1, 24, 4096, 4096, 64),
    "sd35-large": Shape(1, 38, 4327, 4327, 64),
    "sdxl, self 64x64": Shape(1, 10, 4096, 4096, 64),
    "sdxl, cross 64x64": Shape(1, 10, 4096, 77, 64),
    "sdxl, self 32x32": Shape(4, 20, 1024, 1024, 64),
    "sdxl, cross 32x32": Shape(4, 20, 1024, 77, 64),
}


def main() -> None:
    """Prints a row of JSON for each case."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--backend", choices=BACKENDS, action="append")
    parser.add_argument("--seconds", type=float, default=80, help="no process is started after that many")
    parser.add_argument("--from-case", type=int, help="run from this case on, in this process")
    options = parser.parse_args()
    backends = options.backend or list(BACKENDS)
    if options.from_case is not None:
        for shape, backend, layout, gradient in all_cases(backends)[options.from_case :]:
            print(json.dumps(measured(SHAPES, shape, backend, layout, gradient, DEVICE)), flush=True)
        return
    started = time.monotonic()
    done, total = 0, len(all_cases(backends))
    while done < total and time.monotonic() - started < options.seconds:
        done += rows_of_a_process(backends, done)
    if done < total:
        print(json.dumps({"not run": total - done}), flush=True)


def all_cases(backends: list[str]) -> list[tuple[str, str, str, str]]:
    """Shape, backend, layout, layout of the gradient; backends that may end their process come last."""
    return [
        (shape, backend, layout, gradient)
        for backend in backends
        for shape, layout, gradient in itertools.product(SHAPES, LAYOUTS, GRADIENT_LAYOUTS)
    ]


def rows_of_a_process(backends: list[str], first: int) -> int:
    """Runs cases from number `first` in a process of their own; returns how many are settled when it ends."""
    chosen = [word for backend in backends for word in ("--backend", backend)]
    command = [sys.executable, "-m", "benchmarks.attention", "--from-case", str(first), *chosen]
    try:
        ended = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT_S, check=False)
        out, code, errors = ended.stdout, ended.returncode, ended.stderr
    except subprocess.TimeoutExpired as stuck:
        out, code, errors = (stuck.stdout or b"").decode(), -1, "timed out"
    print(out, end="", flush=True)
    rows = len(out.splitlines())
    if code == 0 or code == CONTEXT_LOST:
        return rows
    shape, backend, layout, gradient = all_cases(backends)[first + rows]
    row = {"shape": shape, "backend": backend, "layout": layout, "gradient": gradient, "right": False}
    print(json.dumps(row | {"ended": code, "error": (errors.strip().splitlines() or ["?"])[-1]}), flush=True)
    return rows + 1


def measured(
    shapes: dict[str, Shape], name: str, backend: str, layout: str, gradient_layout: str, device: torch.device
) -> dict[str, Any]:
    """One case: errors relative to plain products, and milliseconds; ends a process that lost its device."""
    row: dict[str, Any] = {"shape": name, "backend": backend, "layout": layout, "gradient": gradient_layout}
    tensors = drawn(shapes[name], device)
    wanted = passes([as_heads_first(tensor).float() for tensor in tensors], SDPBackend.MATH)()
    *inputs, gradient = (as_heads_first(tensor) for tensor in tensors)
    laid = [laid_out(tensor, layout, number) for number, tensor in enumerate(inputs)]
    laid.append(gradient.contiguous() if gradient_layout == "BHSD" else gradient)
    try:
        run = passes(laid, BACKENDS[backend])
        found = run()
        errors = {key: error(a, b) for key, a, b in zip(OUTPUTS, found, wanted, strict=True)}
        right = all(value < ALLOWED for value in errors.values())
        row |= {"right": right, **{key: f"{value:.1e}" for key, value in errors.items()}}
        return row | ({"ms": round(milliseconds(run), 3)} if device.type == "cuda" else {})
    except RuntimeError as failure:
        row |= {"right": False, "error": str(failure).splitlines()[0][:200]}
    if device.type == "cuda":
        try:
            torch.cuda.synchronize()
        except RuntimeError:  # nothing more can be computed in this process
            print(json.dumps(row), flush=True)
            sys.exit(CONTEXT_LOST)
    return row


def drawn(shape: Shape, device: torch.device) -> list[Tensor]:
    """q, k, v and the output's gradient, `[B, S, H, D]` bfloat16."""
    generator = torch.Generator(device).manual_seed(0)
    return [
        torch.randn(
            shape.batch, length, shape.heads, shape.width, generator=generator, device=device
        ).bfloat16()
        for length in (shape.queries, shape.keys, shape.keys, shape.queries)
    ]


def as_heads_first(tensor: Tensor) -> Tensor:
    """`[B, S, H, D]` seen as `[B, H, S, D]`, where it lies."""
    return tensor.permute(0, 2, 1, 3)


def laid_out(tensor: Tensor, layout: str, number: int) -> Tensor:
    """Tensor `number` (0 = q, 1 = k, 2 = v) of a layout."""
    heads_first = layout == "BHSD" or (layout == "mixed" and number < 2)
    return tensor.contiguous() if heads_first else tensor


def passes(tensors: list[Tensor], backend: SDPBackend) -> Callable[[], tuple[Tensor, ...]]:
    """Forward and backward of attention: output and gradients of q, k, v."""
    *inputs, gradient = tensors
    leaves = [tensor.detach().requires_grad_() for tensor in inputs]

    def run() -> tuple[Tensor, ...]:
        with sdpa_kernel(backend):
            output = scaled_dot_product_attention(*leaves)
            return output.detach(), *torch.autograd.grad(output, leaves, gradient)

    return run


def error(found: Tensor, wanted: Tensor) -> float:
    """Norm of the difference over the norm of what was wanted; infinite for NaN."""
    value = float((found.float() - wanted).norm() / wanted.norm())
    return value if value == value else float("inf")


def milliseconds(run: Callable[[], object], repeats: int = 5) -> float:
    """Of one call, by the device's own clock."""
    run()
    begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    begin.record()
    for _ in range(repeats):
        run()
    end.record()
    torch.cuda.synchronize()
    return begin.elapsed_time(end) / repeats


if __name__ == "__main__":
    main()
