"""The blocks that a denoiser repeats, compiled in place: each kind once, however often it occurs.

A whole denoiser takes minutes to compile and again for each size of image. A block takes seconds, its code is
shared by all blocks of its kind and widths, and a second size is compiled with sizes left open, which serves
all further ones (https://docs.pytorch.org/tutorials/recipes/regional_compilation.html).
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from types import FunctionType, MethodType
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import GraphModule

from eridiff.training.visiting import set_forward

logger = logging.getLogger(__name__)

VARIANTS = 64
"""Compiled variants of one kind of block past which torch would go on without compiling."""


Backend = str | Callable[[GraphModule, Sequence[Any]], Any]


def inductor(graph: GraphModule, inputs: Sequence[Any]) -> Any:
    """Torch's own compiler, without one analysis where sizes are left open.

    How reads lie in memory is analysed for fixed sizes only; torch 2.11 tries it for all, and fails in Flux's
    joint attention, where the length of text and image together is a sum of open ones.
    """
    from torch._inductor.compile_fx import compile_fx

    has_open_sizes = any(isinstance(value, torch.SymInt) for value in inputs)
    changes = {"triton.coalesce_tiling_analysis": False} if has_open_sizes else {}
    return compile_fx(graph, inputs, config_patches=changes)


def compile_blocks(denoiser: nn.Module, kinds: Iterable[str], *, backend: Backend = inductor) -> int:
    """Lets every block of the classes named `kinds` run compiled, from its first call on.

    Names and parameters stay as they are; what cannot be compiled whole is an error.

    Args:
        denoiser: with its LoRA, in its final form.
        kinds: names of classes.
        backend: torch's compiler backend.

    Returns:
        The number of blocks.

    Raises:
        ValueError: there is no such block.
    """
    import torch._dynamo

    names = frozenset(kinds)
    blocks = [module for module in denoiser.modules() if type(module).__name__ in names]
    if not blocks:
        raise ValueError(f"no block is a {' or '.join(sorted(names))}")
    limits = torch._dynamo.config
    limits.recompile_limit = max(limits.recompile_limit, VARIANTS)
    limits.accumulated_recompile_limit = max(limits.accumulated_recompile_limit, 16 * VARIANTS)
    own: dict[tuple[type, object], FunctionType] = {}
    for block in blocks:
        key = (type(block), _widths(block))
        function = own.setdefault(key, _copy(type(block).forward, len(own)))
        compiled = torch.compile(MethodType(function, block), backend=backend, fullgraph=True)
        set_forward(block, partial(_call, compiled))
    return len(blocks)


def num_compiled() -> int:
    """Graphs that were compiled in this process so far."""
    from torch._dynamo.utils import counters

    return counters["stats"]["unique_graphs"]


@contextmanager
def eagerly() -> Iterator[None]:
    """A context in which compiled blocks run as they were written."""
    with torch.compiler.set_stance("force_eager"):
        yield


def _call(compiled: Callable[..., Any], *inputs: Any, **named: Any) -> Any:
    """What is compiled, on inputs that own their memory.

    Flux's blocks hand on slices of one tensor. Torch would take their base's shape for a part of the input's
    type, and compile again wherever it looks different.
    """
    return compiled(*map(_owned, inputs), **{name: _owned(value) for name, value in named.items()})


def _owned(value: Any) -> Any:
    if isinstance(value, Tensor) and value._is_view():
        return value.clone(memory_format=torch.contiguous_format)
    return value


def _widths(block: nn.Module) -> object:
    return tuple((name, tuple(parameter.shape)) for name, parameter in block.named_parameters())


def _copy(function: Any, number: int) -> FunctionType:
    """The function with code of its own.

    Torch keeps what it compiled by code, and leaves open which sizes it saw change there. Blocks of different
    widths that shared their code would make each other's sizes look open, and their kernels slower.
    """
    code = function.__code__.replace(co_name=f"{function.__name__}_{number}")
    copy = FunctionType(
        code, function.__globals__, function.__name__, function.__defaults__, function.__closure__
    )
    copy.__kwdefaults__ = function.__kwdefaults__
    return copy
