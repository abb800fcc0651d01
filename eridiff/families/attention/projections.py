"""The projections of one input, each by itself or all by one product."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from torch import Tensor, nn

TOGETHER = "together"
"""Attribute of an attention module that holds a `Together`; one without it projects layer by layer."""

Together = Mapping[tuple[str, ...], Callable[[Tensor], tuple[Tensor, ...]]]
"""Names of layers to what computes all of them: `[..., D]` to one `[..., D_i]` a layer, in their order."""


def projected(attn: nn.Module, tokens: Tensor, *names: str) -> tuple[Tensor, ...]:
    """What the layers `names` of an attention module make of the same tokens `[B, S, D]`, `[B, S, D_i]` each.

    Groups are asked for as they are written here: `to_q, to_k, to_v`, `add_q_proj, add_k_proj, add_v_proj`,
    and `to_k, to_v` where another input gives the keys.
    """
    together: Together = getattr(attn, TOGETHER, {})
    if names in together:
        return together[names](tokens)
    return tuple(getattr(attn, name)(tokens) for name in names)


def groups_of(module: nn.Module) -> tuple[tuple[str, ...], ...]:
    """The groups of layers that `projected` is asked for with a module; none where it has no attention."""
    if not hasattr(module, "to_q"):
        return ()
    crossed = getattr(module, "is_cross_attention", False)
    own = ("to_k", "to_v") if crossed else ("to_q", "to_k", "to_v")
    added = getattr(module, "add_q_proj", None) is not None
    return (own, ("add_q_proj", "add_k_proj", "add_v_proj")) if added else (own,)
