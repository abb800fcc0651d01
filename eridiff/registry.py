"""Which LoRA of a name is the champion: its history, the last champions' files, and one folder to serve.

    <root>/<name>.json                      every version that was judged, and the champions in order
    <root>/<name>/0003-<digest>.safetensors  the champions' files, copies of what their runs made

A file is in its place before the history names it, and the served folder follows the history: a process that
is killed on the way leaves at worst a served folder that the next one brings up to date.
"""

from __future__ import annotations

import dataclasses
import json
import shutil
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from eridiff.errors import DataError, StoreError
from eridiff.locks import held
from eridiff.store.files import atomic_path, write_json
from eridiff.store.tensorfile import digest_tensors, holds_tensors

Decision = Literal["promoted", "rejected"]


@dataclass(frozen=True)
class Verdict:
    """What was judged, and how.

    Attributes:
        decision: whether it became the champion.
        why: the comparison in words.
        made_of: a digest of the dataset and of all settings that decided it.
        run: id of its training.
        snapshot: id of its dataset.
        source: the LoRA file that the training wrote.
        loss: on the hold-out; None where there is none.
        rival_loss: the champion's on the same grid, or the base's where there was no champion.
    """

    decision: Decision
    why: str
    made_of: str
    run: str
    snapshot: str
    source: str
    loss: float | None
    rival_loss: float | None


@dataclass(frozen=True)
class Version:
    """A verdict with its number from 1 on, the sha256 of the LoRA's tensors, and the time (UTC, ISO 8601)."""

    number: int
    sha256: str
    at: str
    verdict: Verdict


@dataclass(frozen=True)
class History:
    """All that is known of a name.

    Attributes:
        versions: in the order of their numbers.
        champions: numbers in the order in which they became champion; a rollback takes the last one off.
        served: the folder that holds the champion for another program; None where there is none.
    """

    versions: tuple[Version, ...] = ()
    champions: tuple[int, ...] = ()
    served: str | None = None

    @property
    def champion(self) -> Version | None:
        """The version that is served now."""
        return self.version(self.champions[-1]) if self.champions else None

    def version(self, number: int) -> Version:
        """The version of that number.

        Raises:
            DataError: there is none.
        """
        if not 1 <= number <= len(self.versions):
            raise DataError("There is no such version.", found=number, wanted=f"1 to {len(self.versions)}")
        return self.versions[number - 1]

    def judged(self, made_of: str) -> Version | None:
        """The newest version made of exactly that."""
        return next((v for v in reversed(self.versions) if v.verdict.made_of == made_of), None)


class Registry:
    """The history of one name.

    Args:
        root: the folder of all registries.
        name: the recipe's name.
    """

    def __init__(self, root: Path, name: str) -> None:
        self.root, self.name = root, name
        self._path = root / f"{name}.json"

    def history(self) -> History:
        """What is recorded; empty before the first verdict.

        Raises:
            StoreError: the record is damaged.
        """
        try:
            return _history(json.loads(self._path.read_bytes()))
        except FileNotFoundError:
            return History()
        except (ValueError, KeyError, TypeError) as error:
            raise StoreError(
                "The history of a LoRA cannot be read.",
                where=self._path,
                found=str(error),
                fix="restore the file from a backup, or move it away to begin a new history",
            ) from error

    def file(self, version: Version) -> Path:
        """Where the registry keeps a champion's file; only the last ones are there."""
        return self.root / self.name / f"{version.number:04d}-{version.sha256[:12]}.safetensors"

    def add(self, verdict: Verdict, *, keep: int, serve: Path | None) -> Version:
        """Records a verdict; a promoted file is kept and served.

        Args:
            verdict: what was judged.
            keep: champions whose files stay.
            serve: the folder to serve the champion in; None leaves what was said before.

        Raises:
            StoreError: the file is gone, or the disk is full.
        """
        with self._locked():
            history = self.history()
            version = Version(
                len(history.versions) + 1,
                digest_tensors(Path(verdict.source)),
                datetime.now(UTC).isoformat(timespec="seconds"),
                verdict,
            )
            served = history.served if serve is None else str(serve.absolute())
            history = dataclasses.replace(history, versions=(*history.versions, version), served=served)
            if verdict.decision == "promoted":
                self._keep_file(version)
                history = dataclasses.replace(history, champions=(*history.champions, version.number))
            self._write(history, keep=keep)
        return version

    def promote(self, number: int) -> Version:
        """Makes any judged version the champion.

        Raises:
            DataError: there is no such version, or it is the champion.
            StoreError: its file is gone.
        """
        with self._locked():
            history = self.history()
            version = history.version(number)
            if history.champion == version:
                raise DataError(f"Version {number} of {self.name} is the champion already.")
            self._keep_file(version)
            self._write(dataclasses.replace(history, champions=(*history.champions, number)))
        return version

    def rollback(self) -> Version:
        """Makes the previous champion the champion again, and returns it.

        Raises:
            DataError: there was none before.
            StoreError: its file is gone.
        """
        with self._locked():
            history = self.history()
            if len(history.champions) < 2:
                raise DataError(
                    f"{self.name} has no earlier champion.",
                    found=f"{len(history.champions)} champions",
                    wanted="at least 2",
                )
            history = dataclasses.replace(history, champions=history.champions[:-1])
            version = history.version(history.champions[-1])
            self._keep_file(version)
            self._write(history)
        return version

    def is_served(self) -> bool:
        """Whether the served folder holds the champion's tensors; true where nothing is to be served."""
        history = self.history()
        champion, target = history.champion, self._served_file(history)
        if champion is None or target is None:
            return True
        return holds_tensors(target, champion.sha256)

    def serve(self) -> Path | None:
        """Brings the served folder up to date, atomically; returns the file, None where nothing is served."""
        with self._locked():
            return self._serve(self.history())

    def _serve(self, history: History) -> Path | None:
        champion, target = history.champion, self._served_file(history)
        if champion is None or target is None:
            return None
        if not holds_tensors(target, champion.sha256):
            _copy(self.file(champion), target)
        return target

    def _served_file(self, history: History) -> Path | None:
        return Path(history.served) / f"{self.name}.safetensors" if history.served else None

    def _keep_file(self, version: Version) -> None:
        target = self.file(version)
        if target.is_file():
            return
        source = Path(version.verdict.source)
        if not holds_tensors(source, version.sha256):
            raise StoreError(
                f"The file of version {version.number} of {self.name} is gone.",
                where=target,
                found=f"{source} is missing or another file",
                fix="choose a later version; publish.keep says how many files stay",
            )
        _copy(source, target)

    def _write(self, history: History, *, keep: int | None = None) -> None:
        write_json(self._path, dataclasses.asdict(history))
        self._serve(history)
        if keep is not None:
            kept = {self.file(history.version(number)) for number in history.champions[-keep:]}
            for path in (self.root / self.name).glob("*.safetensors"):
                if path not in kept:
                    path.unlink()

    def _locked(self) -> AbstractContextManager[None]:
        return held(self.root / f".{self.name}.lock", f"the registry of {self.name}", poll_s=0.1)


def names(root: Path) -> list[str]:
    """Names that have a history."""
    return sorted(path.stem for path in root.glob("*.json"))


def _copy(source: Path, target: Path) -> None:
    with atomic_path(target) as temporary:
        shutil.copyfile(source, temporary)
        with suppress(OSError):  # a served folder may be of a file system without permissions
            temporary.chmod(0o644)


def _history(found: dict[str, Any]) -> History:
    versions = tuple(
        Version(**{**version, "verdict": Verdict(**version["verdict"])}) for version in found["versions"]
    )
    if [version.number for version in versions] != list(range(1, len(versions) + 1)):
        raise ValueError("versions are not numbered from 1")
    return History(versions, tuple(found["champions"]), found["served"])
