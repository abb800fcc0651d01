"""Errors that a user can act on: what is wrong, where, what was found and wanted, and what to do.

Anything that is not an `EridiffError` is a bug and keeps its traceback.
"""

from __future__ import annotations

from pathlib import Path


class EridiffError(Exception):
    """An error with a remedy.

    Args:
        what: one sentence: what is wrong.
        where: file, key, row or step at fault.
        found: what stood there.
        wanted: what would be right.
        fix: what the user can do now.
    """

    exit_code = 1

    def __init__(
        self,
        what: str,
        *,
        where: object = None,
        found: object = None,
        wanted: object = None,
        fix: str | None = None,
    ) -> None:
        place = where if where is None or isinstance(where, Path) else str(where)
        self.what, self.where, self.found, self.wanted, self.fix = what, place, found, wanted, fix
        super().__init__(what)

    def __str__(self) -> str:
        """The message, a line for each part that is known."""
        parts = (("where", self.where), ("found", self.found), ("wanted", self.wanted), ("do", self.fix))
        return "\n".join(
            [self.what, *(f"  {name + ':':<8}{value}" for name, value in parts if value is not None)]
        )

    def __reduce__(self) -> tuple[object, ...]:
        """Pickles with its fields, so that it crosses process borders whole."""
        return _rebuild, (type(self), self.what, self.where, self.found, self.wanted, self.fix)


def _rebuild(
    kind: type[EridiffError],
    what: str,
    where: str | Path | None,
    found: object,
    wanted: object,
    fix: str | None,
) -> EridiffError:
    return kind(what, where=where, found=found, wanted=wanted, fix=fix)


class RecipeError(EridiffError):
    """The recipe, or a command's arguments, cannot be used."""

    exit_code = 2


class DataError(EridiffError):
    """The images or captions cannot be used."""

    exit_code = 3


class StoreError(EridiffError):
    """What the pipeline keeps on disk is damaged, or cannot be written."""

    exit_code = 4


class Unreachable(StoreError):  # noqa: N818 - a state of the world, not a fault in a file
    """Storage elsewhere does not answer, or refuses; it may pass, and nothing was lost."""


class ModelError(EridiffError):
    """A base model or LoRA file is missing, of another family, damaged, or does not fit the device."""

    exit_code = 5


class DoesNotFit(ModelError):  # noqa: N818 - a state of the device, not a fault in a file
    """The device has too little memory for what the recipe asks; smaller batches may fit."""


class Interrupted(EridiffError):  # noqa: N818 - a request that was obeyed, not a fault
    """The user or the system asked to stop; everything finished so far is saved."""

    exit_code = 130
