"""Which attention kernels give right gradients, and how long they take, at the shapes of real denoisers.

`python -m benchmarks.attention` compares FlashAttention, memory-efficient and cuDNN attention in bfloat16
with plain products in float32. The gradient of the output lies dense or as a slice of a wider tensor, in one
call after another, as it does in Flux from one kind of block to the next; `attend` is what denoisers call.
Times are those of a CUDA graph of forward and backward passes. A kernel that ends its process is a row, too:
the cases after it go on in a fresh one.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention

from eridiff.families.attention.attend import attend

BACKENDS = {
    "flash": SDPBackend.FLASH_ATTENTION,
    "efficient": SDPBackend.EFFICIENT_ATTENTION,
    "cudnn": SDPBackend.CUDNN_ATTENTION,
}
OUTPUTS = ("output", "dq", "dk", "dv")
ALLOWED = 0.02
"""Relative error past which a result is wrong; rounding to bfloat16 makes some thousandths."""
WIDER = 5
"""A slice is of a tensor that much wider, as where Flux lays the MLP's output beside the attention's."""
CALLS, REPLAYS = 10, 3
"""Passes that one CUDA graph holds, and how often it is timed."""
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
    "flux, odd": Shape(1, 24, 4429, 4429, 128),
    "sd35-medium": Shape(1, 24, 4327, 4327, 64),
    "sd35-medium, image": Shape(1, 24, 4096, 4096, 64),
    "sd35-large": Shape(1, 38, 4327, 4327, 64),
    "sdxl, self 64x64": Shape(1, 10, 4096, 4096, 64),
    "sdxl, cross 64x64": Shape(1, 10, 4096, 77, 64),
    "sdxl, self 32x32": Shape(4, 20, 1024, 1024, 64),
    "sdxl, cross 32x32": Shape(4, 20, 1024, 77, 64),
}
ORDERS = (("dense",), ("slice",), ("dense", "slice"), ("slice", "dense"))
"""How the gradient lies in calls one after another. Each order has lengths of its own: cuDNN's plans are
kept by shape, and what an earlier case left must not decide."""


@dataclass(frozen=True)
class Case:
    """A kernel at a shape.

    Attributes:
        name: of the shape.
        shape: the shape.
        backend: a key of `BACKENDS`.
        attention: `plain`, torch's own function on dense q, k, v, or `attend` on slices, as joint projections
            leave them.
        gradients: how the output's gradient lies (`dense` or `slice`) in calls one after another, of which
            the last is judged and timed.
    """

    name: str
    shape: Shape
    backend: str
    attention: str
    gradients: tuple[str, ...]

    def row(self) -> dict[str, Any]:
        """What the case is, as its row of output begins."""
        return {
            "shape": self.name,
            "backend": self.backend,
            "attention": self.attention,
            "gradients": ", ".join(self.gradients),
        }


def all_cases(backends: Sequence[str]) -> list[Case]:
    """Times at every shape, then orders of gradients; what may end its process comes last."""
    cases = [
        Case(name, shape, backend, "plain", ("dense",))
        for name, shape in SHAPES.items()
        for backend in backends
    ]
    if "cudnn" not in backends:
        return cases
    cases += [Case(name, shape, "cudnn", "attend", ("slice",)) for name, shape in SHAPES.items()]
    for number, order in enumerate(ORDERS):
        for place, attention in enumerate(("attend", "plain")):
            length = 512 + 16 * number + 8 * place
            shape = Shape(1, 4, length, length, 128)
            cases.append(Case(f"{length} tokens", shape, "cudnn", attention, order))
    return sorted(cases, key=lambda case: case.attention == "plain" and case.gradients != ("dense",))


def main() -> None:
    """Prints a row of JSON for each case."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--backend", choices=BACKENDS, action="append")
    parser.add_argument("--seconds", type=float, default=40, help="no process is started after that many")
    parser.add_argument("--from-case", type=int, help="run from this case on, in this process")
    options = parser.parse_args()
    backends = options.backend or list(BACKENDS)
    if options.from_case is not None:
        for case in all_cases(backends)[options.from_case :]:
            print(json.dumps(measured(case, DEVICE)), flush=True)
        return
    started = time.monotonic()
    done, total = 0, len(all_cases(backends))
    while done < total and time.monotonic() - started < options.seconds:
        done += rows_of_a_process(backends, done)
    if done < total:
        print(json.dumps({"not run": total - done}), flush=True)


def rows_of_a_process(backends: Sequence[str], first: int) -> int:
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
    row = all_cases(backends)[first + rows].row() | {"right": False, "ended": code}
    print(json.dumps(row | {"error": (errors.strip().splitlines() or ["?"])[-1]}), flush=True)
    return rows + 1


def measured(case: Case, device: torch.device) -> dict[str, Any]:
    """One case: errors relative to plain products, and milliseconds; ends a process that lost its device."""
    row = case.row()
    *inputs, gradient = drawn(case.shape, device)
    attention, lie = (attend, "slice") if case.attention == "attend" else (plain, "dense")
    leaves = [laid_out(tensor, lie).detach().requires_grad_() for tensor in inputs]
    try:
        backend = BACKENDS[case.backend]
        *before, run = [passes(attention, leaves, laid_out(gradient, way), backend) for way in case.gradients]
        for earlier in before:
            earlier()
        found = run()
        wanted = reference(case.shape, device)
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


def laid_out(tensor: Tensor, lie: str) -> Tensor:
    """A tensor `[B, S, H, D]`, dense as it is or a slice of a wider one."""
    if lie == "dense":
        return tensor
    *rows, heads, width = tensor.shape
    wide = tensor.new_zeros(*rows, WIDER * heads, width)
    wide[..., :heads, :] = tensor
    return wide[..., :heads, :]


def plain(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Torch's attention on tensors `[B, S, H, D]`, as diffusers calls it."""
    query, key, value = (tensor.transpose(1, 2) for tensor in (query, key, value))
    return scaled_dot_product_attention(query, key, value).transpose(1, 2)


def passes(
    attention: Callable[[Tensor, Tensor, Tensor], Tensor],
    leaves: list[Tensor],
    gradient: Tensor,
    backend: SDPBackend,
) -> Callable[[], tuple[Tensor, ...]]:
    """Forward and backward of attention: output and gradients of q, k, v."""

    def run() -> tuple[Tensor, ...]:
        with sdpa_kernel(backend):
            output = attention(*leaves)
            return output.detach(), *torch.autograd.grad(output, leaves, gradient)

    return run


@lru_cache(maxsize=2)
def reference(shape: Shape, device: torch.device) -> tuple[Tensor, ...]:
    """What plain products in float32 give."""
    *inputs, gradient = (tensor.float() for tensor in drawn(shape, device))
    return passes(plain, [tensor.requires_grad_() for tensor in inputs], gradient, SDPBackend.MATH)()


def error(found: Tensor, wanted: Tensor) -> float:
    """Norm of the difference over the norm of what was wanted; infinite for NaN."""
    value = float((found.float() - wanted).norm() / wanted.norm())
    return value if value == value else float("inf")


def milliseconds(run: Callable[[], object]) -> float:
    """Of one call, by the device's own clock, without the time that the host takes to launch it."""
    graph = torch.cuda.CUDAGraph()
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        run()
    torch.cuda.current_stream().wait_stream(stream)
    with torch.cuda.graph(graph):
        for _ in range(CALLS):
            run()
    graph.replay()
    begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    begin.record()
    for _ in range(REPLAYS):
        graph.replay()
    end.record()
    torch.cuda.synchronize()
    return begin.elapsed_time(end) / (CALLS * REPLAYS)


if __name__ == "__main__":
    main()
