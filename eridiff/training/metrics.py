"""Numbers of a run: a line of JSON every few steps, and the trackers that the recipe asks for."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Self

from eridiff.errors import RecipeError
from eridiff.recipe import Logging
from eridiff.store.files import write_atomic
from eridiff.store.runs import Run
from eridiff.training.trainer import StepResult

Tracker = Callable[[int, Mapping[str, float]], None]
"""Takes a step and its numbers by name."""


@dataclass(frozen=True)
class Window:
    """Sums over the steps since the last line."""

    steps: int = 0
    samples: int = 0
    loss: float = 0.0
    plain_loss: float = 0.0
    grad_norm: float = 0.0
    seconds: float = 0.0

    @classmethod
    def of(cls, kept: Mapping[str, float]) -> Self:
        """The window that a checkpoint kept."""
        return (
            cls(**{**kept, "steps": int(kept["steps"]), "samples": int(kept["samples"])}) if kept else cls()
        )

    def plus(self, result: StepResult, seconds: float) -> Window:
        """The window with one more step."""
        return Window(
            steps=self.steps + 1,
            samples=self.samples + result.num_samples,
            loss=self.loss + result.loss * result.num_samples,
            plain_loss=self.plain_loss + result.plain_loss * result.num_samples,
            grad_norm=self.grad_norm + result.grad_norm,
            seconds=self.seconds + seconds,
        )

    def kept(self) -> dict[str, float]:
        """The sums as a checkpoint keeps them."""
        return asdict(self)

    def means(self) -> dict[str, float]:
        """Mean losses over samples, mean gradient norm and milliseconds over steps."""
        return {
            "loss": self.loss / self.samples,
            "plain_loss": self.plain_loss / self.samples,
            "grad_norm": self.grad_norm / self.steps,
            "ms_per_step": 1000 * self.seconds / self.steps,
            "samples_per_s": self.samples / self.seconds if self.seconds else 0.0,
        }


def rewind(path: Path, step: int) -> None:
    """Cuts a metrics file back to `step`, so that a resumed run tells no step twice."""
    if not path.exists():
        return
    kept = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            row = json.loads(line)
        except ValueError:  # a line that a kill cut short is the last one
            break
        if row["step"] <= step:
            kept.append(f"{line}\n")
    write_atomic(path, "".join(kept).encode())


@contextmanager
def trackers(settings: Logging, run: Run, *, step: int, config: Mapping[str, Any]) -> Iterator[list[Tracker]]:
    """The metrics file, cut back to `step`, and the trackers that the recipe asks for.

    Args:
        settings: the recipe's section.
        run: its folder is where the files go.
        step: the step that the run goes on from.
        config: the resolved recipe, shown by trackers.

    Raises:
        RecipeError: a tracker is not installed.
    """
    rewind(run.metrics, step)
    run.folder.mkdir(parents=True, exist_ok=True)
    with ExitStack() as stack:
        file = stack.enter_context(run.metrics.open("a", encoding="utf-8"))

        def write(step: int, values: Mapping[str, float]) -> None:
            file.write(json.dumps({"step": step, **values}) + "\n")
            file.flush()

        opened: list[Tracker] = [write]
        if settings.tensorboard:
            opened.append(stack.enter_context(_tensorboard(run.folder / "tensorboard", step)))
        if settings.wandb_project:
            opened.append(stack.enter_context(_wandb(settings.wandb_project, run, config)))
        yield opened


@contextmanager
def _tensorboard(folder: Path, step: int) -> Iterator[Tracker]:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise _missing("tensorboard", "logging.tensorboard") from error
    # What an earlier process wrote after that step is hidden.
    writer = SummaryWriter(str(folder), purge_step=step + 1)

    def track(step: int, values: Mapping[str, float]) -> None:
        for name, value in values.items():
            writer.add_scalar(f"train/{name}", value, step)

    try:
        yield track
    finally:
        writer.close()


@contextmanager
def _wandb(project: str, run: Run, config: Mapping[str, Any]) -> Iterator[Tracker]:
    try:
        import wandb  # pyright: ignore[reportMissingImports]  # an extra
    except ImportError as error:
        raise _missing("wandb", "logging.wandb_project") from error
    with wandb.init(
        project=project, name=run.name, id=run.id, dir=str(run.folder), resume="allow", config=dict(config)
    ) as session:
        yield lambda step, values: session.log(
            {f"train/{key}": value for key, value in values.items()}, step=step
        )


def _missing(package: str, where: str) -> RecipeError:
    return RecipeError(
        f"{package} is not installed",
        where=where,
        fix='pip install "eridiff[trackers]", or remove the key: metrics.jsonl holds the same numbers',
    )
