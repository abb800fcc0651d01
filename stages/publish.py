"""Publish: the run's LoRA against its name's champion, on one hold-out; the better one is served.

Without a champion the base is the rival. What was judged once is not judged again: the registry remembers
what each version was made of.
"""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Callable

from eridiff.errors import Interrupted, StoreError
from eridiff.evaluation.duel import Duel
from eridiff.evaluation.holdout import Losses
from eridiff.evaluation.pictures import LoraFile
from eridiff.evaluation.work import gather
from eridiff.recipe import Recipe
from eridiff.registry import Registry, Verdict, Version
from eridiff.store.files import digest_json
from eridiff.store.runs import Run
from eridiff.store.snapshots import Snapshot
from eridiff.training.inputs import inputs_of
from stages.dataset import current_snapshot
from stages.stage import Meter, StagePlan, StageReport, StopFlag, progress, stopping

logger = logging.getLogger("eridiff")


def plan(recipe: Recipe) -> StagePlan:
    """Whether the recipe's LoRA is still to be judged or served, by what the registry says."""
    registry = registry_of(recipe)
    if judged(recipe) is None:
        return StagePlan("publish", done=0, missing=1, details={"LoRA": "not judged yet"})
    served = registry.is_served()
    return StagePlan(
        "publish", done=int(served), missing=int(not served), details={} if served else {"LoRA": "not served"}
    )


def run(recipe: Recipe) -> StageReport:
    """Judges the recipe's LoRA, records the verdict, and serves it if it won.

    Raises:
        DataError: nothing was ingested, or nothing is held out.
        StoreError: the run is not finished, a file is missing, or the disk is full.
        ModelError: the base or a LoRA file does not fit.
        Interrupted: the process was asked to stop; what was made is kept.
    """
    started = time.monotonic()
    registry = registry_of(recipe)
    known = judged(recipe)
    outputs: dict[str, str] = {}
    version = known
    if version is None:
        duel = _duel(recipe, registry)
        _fight(duel)
        version = registry.add(
            _verdict(recipe, registry, duel), keep=recipe.publish.keep, serve=recipe.publish.to
        )
        if sheet := duel.draw():
            outputs["champion grid"] = str(sheet)
    verdict = version.verdict
    logger.info("%s: version %d %s, %s", recipe.name, version.number, verdict.decision, verdict.why)
    outputs |= {"verdict": f"{verdict.decision}: {verdict.why}", "version": str(version.number)}
    if served := registry.serve():
        outputs["served"] = str(served)
    new = known is None
    return StageReport("publish", int(new), int(not new), 0, time.monotonic() - started, 0, outputs)


def registry_of(recipe: Recipe) -> Registry:
    """The history of the recipe's name."""
    return Registry(recipe.storage.registry, recipe.name)


def judged(recipe: Recipe) -> Version | None:
    """The version that was made of the recipe's current dataset and settings; None if there is none."""
    return registry_of(recipe).history().judged(made_of(recipe))


def made_of(recipe: Recipe) -> str:
    """A digest of what a LoRA of this recipe is made of now: the dataset and all settings that decide it.

    A champion that training starts from is left out: each promotion would ask for another training. So is how
    a step's samples are cut into batches: where memory ran out they were cut smaller than the recipe says.

    Raises:
        DataError: nothing was ingested.
    """
    train = recipe.train
    together = {
        "batch_size": train.batch_size * train.gradient_accumulation_steps,
        "gradient_accumulation_steps": 1,
    }
    plain = recipe.model_copy(
        update={
            "network": recipe.network.model_copy(update={"init_from": None}),
            "train": train.model_copy(update=together),
        }
    )
    run_id = inputs_of(plain, current_snapshot(recipe)).run.id
    return digest_json({"run": run_id, "start_from": recipe.retrain.start_from})


def _duel(recipe: Recipe, registry: Registry) -> Duel:
    snapshot = current_snapshot(recipe)
    return Duel(gather(recipe, _finished_run(recipe, snapshot), snapshot), _champion(registry))


def _finished_run(recipe: Recipe, snapshot: Snapshot) -> Run:
    run = inputs_of(recipe, snapshot).run
    if not run.finished:
        raise StoreError(
            "There is no finished training to publish.",
            where=run.folder,
            fix="run `eridiff run` with this recipe first",
        )
    return run


def _champion(registry: Registry) -> LoraFile | None:
    champion = registry.history().champion
    if champion is None:
        return None
    return LoraFile(f"champion {champion.number}", 0, registry.file(champion), champion.sha256)


def _fight(duel: Duel) -> None:
    missing = duel.missing_points + duel.missing_pictures
    if missing:
        with stopping() as stop, progress("champion and challenger", missing) as meter:
            duel.fight(_stoppable(meter, stop))


def _stoppable(meter: Meter, stop: StopFlag) -> Callable[[int], None]:
    def advance(count: int) -> None:
        meter.advance(count)
        if stop:
            raise Interrupted(
                "Stopped while comparing; finished images and losses are kept.",
                fix="run the same command again to go on from there",
            )

    return advance


def _verdict(recipe: Recipe, registry: Registry, duel: Duel) -> Verdict:
    challenger, rival = duel.losses()
    champion = registry.history().champion
    better = rival.mean - challenger.mean > recipe.publish.margin * rival.mean
    name = f"champion {champion.number}'s" if champion else "the base's"
    return Verdict(
        decision="promoted" if better else "rejected",
        why=comparison_words(challenger, rival, name, recipe.publish.margin),
        made_of=made_of(recipe),
        run=duel.work.run.id,
        snapshot=duel.work.snapshot.id,
        source=str(duel.work.final.path.absolute()),
        loss=challenger.mean,
        rival_loss=rival.mean,
    )


def comparison_words(challenger: Losses, rival: Losses, name: str, margin: float) -> str:
    """Both losses and their distance beside the margin, for people."""
    change = (challenger.mean - rival.mean) / rival.mean
    return (
        f"hold-out loss {challenger.mean:.5f} against {name} {rival.mean:.5f}: "
        f"{abs(change):.2%} {'lower' if change < 0 else 'higher'}, more than {margin:.1%} lower is asked"
    )


if __name__ == "__main__":
    from stages import cli

    cli.main(["publish", *sys.argv[1:]])
