"""The images of a dataset and the caption files beside them, found by looking at names and states only."""

from __future__ import annotations

import os
import tarfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from eridiff.errors import DataError
from eridiff.images.sources import Source, whole_file, why_unreadable

IMAGE_ENDINGS = frozenset({"jpg", "jpeg", "png", "webp", "avif", "bmp", "tif", "tiff"})


@dataclass(frozen=True, slots=True)
class CaptionedImage:
    """An image and the caption file that belongs to it, if there is one."""

    image: Source
    caption: Source | None


@dataclass
class Discovery:
    """What a dataset holds.

    Attributes:
        images: sorted by folder, then by name.
        unreadable: name and reason of files and folders that cannot be looked into.
        other_files: how many visible files are neither image nor caption.
        lone_captions: how many caption files have no image beside them.
    """

    images: list[CaptionedImage] = field(default_factory=list)
    unreadable: list[tuple[str, str]] = field(default_factory=list)
    other_files: int = 0
    lone_captions: int = 0


def discover(root: Path, *, caption_endings: Sequence[str]) -> Discovery:
    """All images below a folder, or in a webdataset tar.

    Symbolic links are followed, except back to a folder above them. Names that start with a dot are passed
    over. Images whose names differ only in their ending share a caption file.

    Args:
        root: a folder, or a `.tar` file.
        caption_endings: file endings of captions, best first, e.g. `("txt", "caption")`.

    Raises:
        DataError: there is nothing there, or no image in it.
    """
    found = Discovery()
    endings = tuple(ending.lower().lstrip(".") for ending in caption_endings)
    try:
        if root.is_dir():
            _walk(str(root), os.path.abspath(root), (), endings, found)  # noqa: PTH100 - keeps symbolic links
        elif root.suffix.lower() == ".tar" and root.is_file():
            _match_captions(_members(root), endings, found)
        else:
            raise DataError(
                "A dataset is neither a folder nor a .tar file."
                if root.exists()
                else "A dataset is missing.",
                where=root,
                fix="correct datasets.folder_path in the recipe",
            )
    except (OSError, tarfile.TarError) as error:
        raise DataError(
            "A dataset cannot be read.", where=root, found=str(error), fix="make it readable for this user"
        ) from error
    if not found.images and not found.unreadable:
        raise DataError(
            "A dataset holds no images.",
            where=root,
            found=f"{found.other_files} other files",
            wanted=", ".join(f".{ending}" for ending in sorted(IMAGE_ENDINGS)),
            fix="put images there, or correct datasets.folder_path in the recipe",
        )
    return found


def _walk(
    name: str, path: str, above: tuple[tuple[int, int], ...], endings: Sequence[str], found: Discovery
) -> None:
    """Adds a folder's images, then those of its folders. `above` identifies the folders on the way here."""
    status = Path(path).stat()
    identity = (status.st_dev, status.st_ino)
    if identity in above:
        found.unreadable.append((name, "a symbolic link to a folder above it"))
        return
    try:
        with os.scandir(path) as entries:
            visible = [entry for entry in entries if not entry.name.startswith(".")]
    except OSError as error:
        if not above:
            raise
        found.unreadable.append((name, error.strerror or str(error)))
        return
    listed = sorted(visible, key=lambda entry: entry.name)
    folders = [entry for entry in listed if _is_folder(entry)]
    files = [entry for entry in listed if not _is_folder(entry)]
    _match_captions(_states(name, files, endings, found), endings, found)
    for folder in folders:
        _walk(f"{name}/{folder.name}", folder.path, (*above, identity), endings, found)


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself: told when it is looked at as a file
        return False


def _states(
    folder: str, entries: Iterable[os.DirEntry[str]], endings: Sequence[str], found: Discovery
) -> Iterator[Source]:
    """The files that may be images or captions."""
    for entry in entries:
        name = f"{folder}/{entry.name}"
        ending = _ending(entry.name)
        if ending not in IMAGE_ENDINGS and ending not in endings:
            found.other_files += 1
            continue
        try:
            status = entry.stat()
        except OSError as error:  # a link to nothing, mostly
            found.unreadable.append((name, error.strerror or str(error)))
            continue
        reason = why_unreadable(status)
        if reason is None:
            yield whole_file(name, entry.path, status)
        else:
            found.unreadable.append((name, reason))


def _members(archive: Path) -> Iterator[Source]:
    """The files in a tar, as stretches of it."""
    status = archive.stat()
    with tarfile.open(archive, "r:") as tar:
        for member in tar:
            if member.isreg() and not Path(member.name).name.startswith("."):
                yield Source(
                    name=f"{archive}/{member.name}",
                    path=os.path.abspath(archive),  # noqa: PTH100 - keeps symbolic links
                    offset=member.offset_data,
                    num_bytes=member.size,
                    file_bytes=status.st_size,
                    mtime_ns=status.st_mtime_ns,
                    inode=status.st_ino,
                )


def _match_captions(files: Iterable[Source], endings: Sequence[str], found: Discovery) -> None:
    """Adds the images among files, each with the caption file of the same stem and the best ending."""
    images: list[Source] = []
    captions: dict[tuple[str, str], Source] = {}
    for file in files:
        stem, ending = _stem(file), _ending(file.name)
        if ending in IMAGE_ENDINGS:
            images.append(file)
        elif ending in endings:
            captions.setdefault((stem, ending), file)
        else:
            found.other_files += 1
    found.images += [CaptionedImage(image, _caption_of(image, endings, captions)) for image in images]
    stems = {_stem(image) for image in images}
    found.lone_captions += sum(stem not in stems for stem, _ in captions)


def _caption_of(
    image: Source, endings: Sequence[str], captions: Mapping[tuple[str, str], Source]
) -> Source | None:
    stem = _stem(image)
    return next((captions[stem, ending] for ending in endings if (stem, ending) in captions), None)


def _stem(source: Source) -> str:
    return os.path.splitext(source.name)[0]  # noqa: PTH122 - many thousand times


def _ending(name: str) -> str:
    return os.path.splitext(name)[1][1:].lower()  # noqa: PTH122
