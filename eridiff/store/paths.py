"""Folders here or elsewhere: the few operations in which they differ.

What lies below a recipe's `storage.data` is at an `AnyPath`, on disk or below a URL: it is named, listed and
read by pathlib's methods. What those lack is here.
"""

from __future__ import annotations

import importlib
import os
import re
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path, PurePosixPath
from typing import Any, TypeAlias

import pyarrow as pa

from eridiff.errors import RecipeError, StoreError
from eridiff.store.copies import Copies
from eridiff.store.faults import no_folder, removing, writing
from eridiff.store.remote import RemotePath, read_each

AnyPath: TypeAlias = "Path | RemotePath"

_HERE = re.compile(r"^(file|local)://")
_EXTRAS = {"s3": "s3", "s3a": "s3"}
"""The extra of this package that brings what a protocol needs."""


def path_at(address: Path | str, *, cache: Path, max_bytes: int, options: Mapping[str, Any]) -> AnyPath:
    """The folder at a path or URL; nothing is asked of a storage elsewhere yet.

    Args:
        address: a path, or a URL of any protocol that fsspec knows; `file://` is a path.
        cache: a folder on this machine for copies of what lies elsewhere.
        max_bytes: what the copies may take.
        options: of fsspec's file system, e.g. `{"endpoint_url": ...}`.

    Raises:
        RecipeError: the protocol is unknown, or what it needs is not installed.
        StoreError: a file stands in the folder's place.
    """
    if isinstance(address, Path) or _HERE.match(address):
        folder = Path(_HERE.sub("", str(address)))
        if fault := no_folder(folder):
            raise fault
        return folder
    url_to_fs = importlib.import_module("fsspec.core").url_to_fs  # only where something lies elsewhere
    protocol = address.partition("://")[0]
    try:
        storage, path = url_to_fs(address, use_listings_cache=False, **options)
    except ImportError as error:
        package = f"eridiff[{_EXTRAS[protocol]}]" if protocol in _EXTRAS else error.name
        raise RecipeError(
            f"Storage of kind {protocol}:// needs a package that is not installed.",
            where="storage.data",
            found=error,
            fix=f'pip install "{package}"',
        ) from error
    except (ValueError, TypeError) as error:
        raise RecipeError("Storage cannot be opened.", where="storage", found=error) from error
    if not path.strip("/"):
        raise RecipeError("The URL names no bucket or folder.", where="storage.data", found=address)
    return RemotePath(storage, PurePosixPath(path), Copies(cache / "copies", max_bytes))


def sizes_in(folder: AnyPath) -> dict[str, int]:
    """Bytes of each finished file in a folder, by name; nothing where there is no folder."""
    if isinstance(folder, RemotePath):
        return folder.sizes()
    sizes = {}
    with suppress(FileNotFoundError), os.scandir(folder) as entries:
        for entry in entries:
            with suppress(FileNotFoundError):  # removed meanwhile
                if entry.name[0] != ".":
                    sizes[entry.name] = entry.stat().st_size
    return sizes


def folders_in(folder: AnyPath) -> list[AnyPath]:
    """The folders in a folder, sorted; none where there is no folder."""
    return sorted(path for path in folder.glob("*") if path.is_dir())


def all_in(path: AnyPath) -> list[AnyPath]:
    """What lies below a folder, at any depth: files, and on disk folders, too; a file alone is itself."""
    if not path.is_dir():
        return [path]
    return [*(path.files() if isinstance(path, RemotePath) else path.rglob("*"))]


@contextmanager
def opened_here(path: AnyPath) -> Iterator[Path]:
    """A path on this machine to read a file at, as long as the block lasts: itself, or of a local copy.

    A copy in which the block finds damage is dropped, so that the next attempt reads the file itself.

    Raises:
        FileNotFoundError: there is no such file elsewhere.
    """
    if not isinstance(path, RemotePath):
        yield path
        return
    try:
        with path.opened() as file:
            yield Path(file.name)
    except StoreError:
        path.forget()
        raise


@contextmanager
def opened_anew(path: AnyPath) -> Iterator[Path]:
    """As `opened_here`, but of a copy that is fetched now: to see what the file elsewhere is like."""
    forget_copy(path)
    with opened_here(path) as here:
        yield here


def mapped(path: AnyPath) -> memoryview:
    """The bytes of a file that never changes, memory-mapped.

    Raises:
        FileNotFoundError: there is no such file.
    """
    if isinstance(path, RemotePath):
        return path.mapped()
    # Arrow's map outlives its file descriptor, so thousands of files may be mapped at once.
    with pa.memory_map(str(path)) as file:
        return memoryview(file.read_buffer()).cast("B")


def forget_copy(path: AnyPath) -> bool:
    """Drops the local copy of a file elsewhere; says whether there was one."""
    return isinstance(path, RemotePath) and path.forget()


def contents(paths: Sequence[AnyPath]) -> Iterator[tuple[AnyPath, bytes | OSError]]:
    """The bytes of each of some small files, or why there are none; asked for side by side elsewhere."""
    yield from read_each([path for path in paths if isinstance(path, RemotePath)])
    for path in paths:
        if isinstance(path, Path):
            try:
                yield path, path.read_bytes()
            except OSError as error:
                yield path, error


def arrow_source(path: AnyPath) -> Path | pa.BufferReader:
    """What pyarrow reads a file from."""
    return path if isinstance(path, Path) else pa.BufferReader(path.read_bytes())


def move(path: AnyPath, folder: AnyPath) -> None:
    """Moves a file into a folder, which is made; where there is no file, FileNotFoundError.

    Raises:
        StoreError: writing there is not possible or not allowed.
    """
    if isinstance(path, RemotePath):
        assert isinstance(folder, RemotePath)
        path.replace(folder / path.name)
        return
    assert isinstance(folder, Path)
    with writing(folder / path.name):
        folder.mkdir(parents=True, exist_ok=True)
        path.replace(folder / path.name)


def remove(path: AnyPath) -> None:
    """Removes a file, or a folder with all in it; what is gone already is no error.

    Raises:
        StoreError: removing is not possible or not allowed there.
    """
    with removing(path):
        if not path.is_dir():
            path.unlink(missing_ok=True)
        elif isinstance(path, RemotePath):
            path.remove_tree()
        else:
            shutil.rmtree(path)
