"""Original names and diffusers' names of the same weights, as data that can be read in both directions.

A *link* says which diffusers modules an original module is: one and the same, or several whose rows it
stacks. A family's links, written from the counts of its blocks, serve weights and LoRA files alike.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from eridiff.errors import ModelError

if TYPE_CHECKING:
    from torch import Tensor

Shape = tuple[int, ...]
Structure = Mapping[str, int]
"""Counts of blocks, by names that the family chooses."""

Form = Literal["same", "swapped", "transposed", "flattened", "identity"]
"""How one side stores a weight of the other: as it is; its halves (scale, shift) in the other order;
transposed; a 1x1 convolution as a matrix. `identity` is a unit matrix that the other side leaves out."""


@dataclass(frozen=True)
class Link:
    """An original module and the diffusers modules whose rows it stacks, first on top.

    Attributes:
        original: the original module.
        diffusers: the diffusers modules.
        form: how the original stores their weights.
        leaves: original to diffusers names of the tensors inside, where they differ.
        shares: how the rows divide between the diffusers modules; equally where not given.
    """

    original: str
    diffusers: tuple[str, ...]
    form: Form = "same"
    leaves: Mapping[str, str] | None = None
    shares: tuple[int, ...] = ()

    def heights(self, total: int) -> tuple[int, ...]:
        """Rows of each diffusers module in a weight of `total` rows.

        Raises:
            ModelError: they do not divide.
        """
        shares = self.shares or (1,) * len(self.diffusers)
        unit, rest = divmod(total, sum(shares))
        if rest:
            raise ModelError(
                "a weight cannot be taken apart", where=self.original, found=f"{total} rows", wanted=shares
            )
        return tuple(share * unit for share in shares)


@dataclass(frozen=True)
class Names:
    """The two namings of one kind of component.

    Attributes:
        structure: counts of blocks, from the keys of either naming.
        links: all modules with weights, for a structure.
        mark: an original key that every such component has.
        ignored: original keys that hold nothing a model needs.
    """

    structure: Callable[[Collection[str]], Structure]
    links: Callable[[Structure], Sequence[Link]]
    mark: str
    ignored: tuple[str, ...] = ()

    def is_original(self, keys: Collection[str]) -> bool:
        """Whether keys are in the original naming."""
        return self.mark in keys


@dataclass(frozen=True)
class Piece:
    """Rows of one tensor, and what is done to them."""

    key: str
    rows: tuple[int, int] | None = None
    form: Form = "same"


Assembly = tuple[Piece, ...]
"""A tensor as pieces laid one below the other."""


def to_diffusers(shapes: Mapping[str, Shape], names: Names) -> dict[str, Assembly]:
    """Where each diffusers tensor lies among original ones, for those original tensors that are there.

    Raises:
        ModelError: an original key has no place in the model.
    """
    wanted = {key: shape for key, shape in shapes.items() if key not in names.ignored}
    links = {link.original: link for link in names.links(names.structure(wanted))}
    plan: dict[str, Assembly] = {}
    unknown: list[str] = []
    for key in wanted:
        link, leaf = _find(links, key)
        if link is None:
            unknown.append(key)
            continue
        leaf = (link.leaves or {}).get(leaf, leaf)
        for target, rows in zip(link.diffusers, _rows(link, key, shapes), strict=True):
            plan[_join(target, leaf)] = (Piece(key, rows, _form(link, shapes[key])),)
    _refuse_unknown(unknown)
    return plan


def to_original(shapes: Mapping[str, Shape], names: Names) -> dict[str, Assembly]:
    """Where each original tensor's rows lie among diffusers tensors: the way back of `to_diffusers`.

    Raises:
        ModelError: a diffusers key has no place, or one of several that belong together is missing.
    """
    links = {name: link for link in names.links(names.structure(shapes)) for name in link.diffusers}
    plan: dict[str, Assembly] = {}
    unknown: list[str] = []
    for key in shapes:
        link, leaf = _find(links, key)
        if link is None:
            unknown.append(key)
            continue
        sources = [_join(name, leaf) for name in link.diffusers]
        back = {new: old for old, new in (link.leaves or {}).items()}
        unknown += [source for source in sources if source not in shapes]
        plan[_join(link.original, back.get(leaf, leaf))] = tuple(
            Piece(source, None, _form(link, shapes[key], back=True)) for source in sources
        )
    _refuse_unknown(unknown)
    return plan


def assemble(assembly: Assembly, get: Callable[[str], Tensor]) -> Tensor:
    """The tensor of an assembly; a view of its source where one piece is taken as it is."""
    import torch

    parts = [_piece(piece, get) for piece in assembly]
    return parts[0] if len(parts) == 1 else torch.cat(parts)


def assembled_shape(assembly: Assembly, shapes: Mapping[str, Shape]) -> Shape:
    """Shape of an assembly's tensor, from the shapes of its sources."""
    parts = [_piece_shape(piece, shapes) for piece in assembly]
    return (sum(part[0] for part in parts), *parts[0][1:]) if len(parts) > 1 else parts[0]


def _piece(piece: Piece, get: Callable[[str], Tensor]) -> Tensor:
    if piece.form == "identity":
        import torch

        assert piece.rows is not None
        return torch.eye(piece.rows[1])
    tensor = get(piece.key)
    return _formed(tensor if piece.rows is None else tensor[piece.rows[0] : piece.rows[1]], piece.form)


def _piece_shape(piece: Piece, shapes: Mapping[str, Shape]) -> Shape:
    if piece.form == "identity":
        assert piece.rows is not None
        return (piece.rows[1], piece.rows[1])
    shape = shapes[piece.key]
    if piece.rows is not None:
        shape = (piece.rows[1] - piece.rows[0], *shape[1:])
    match piece.form:
        case "transposed":
            return (shape[1], shape[0])
        case "flattened":
            return shape[:2] if len(shape) == 4 else (*shape, 1, 1)
        case _:
            return shape


def _formed(tensor: Tensor, form: Form) -> Tensor:
    match form:
        case "swapped":
            return tensor.roll(tensor.shape[0] // 2, dims=0)
        case "transposed":
            return tensor.mT
        case "flattened":
            return tensor.flatten(1) if tensor.ndim == 4 else tensor[:, :, None, None]
        case _:
            return tensor


def _form(link: Link, shape: Shape, *, back: bool = False) -> Form:
    if link.form in ("transposed", "flattened") and len(shape) < 2:
        return "same"
    if link.form == "flattened" and len(shape) != (2 if back else 4):
        return "same"
    return link.form


def _rows(link: Link, key: str, shapes: Mapping[str, Shape]) -> list[tuple[int, int] | None]:
    if len(link.diffusers) == 1:
        return [None]
    heights = link.heights(shapes[key][0])
    stops = [sum(heights[: index + 1]) for index in range(len(heights))]
    return [(stop - height, stop) for stop, height in zip(stops, heights, strict=True)]


def _find(links: Mapping[str, Link], key: str) -> tuple[Link | None, str]:
    module, _, leaf = key.rpartition(".")
    if key in links:
        return links[key], ""
    return links.get(module), leaf


def _join(module: str, leaf: str) -> str:
    return f"{module}.{leaf}" if leaf else module


def _refuse_unknown(unknown: Iterable[str]) -> None:
    names = sorted(unknown)
    if names:
        raise ModelError(
            "weights have names that the model has no place for",
            found=", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else ""),
        )


def count(keys: Iterable[str], prefix: str) -> int:
    """How many blocks are numbered after a prefix: one more than the largest number, 0 for none."""
    numbers = [key[len(prefix) :].partition(".")[0] for key in keys if key.startswith(prefix)]
    return max((int(number) + 1 for number in numbers if number.isdigit()), default=0)
