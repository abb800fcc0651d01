"""Events that other flows, automations and people's own tools can act on."""

from __future__ import annotations

from typing import Any

from prefect.events import emit_event
from prefect.settings import get_current_settings

from eridiff.recipe import Recipe

DATASET_CHANGED = "eridiff.dataset.changed"
LORA_PROMOTED = "eridiff.lora.promoted"
LORA_REJECTED = "eridiff.lora.rejected"


def dataset_changed(recipe: Recipe, config: str, *, before: str | None, after: str) -> None:
    """Says that a recipe's snapshot is another one."""
    _emit(DATASET_CHANGED, f"eridiff.dataset.{recipe.name}", config, {"before": before, "after": after})


def lora_judged(recipe: Recipe, config: str, outputs: dict[str, str]) -> None:
    """Says that a LoRA was promoted or rejected, and why."""
    promoted = outputs["verdict"].startswith("promoted")
    event = LORA_PROMOTED if promoted else LORA_REJECTED
    _emit(event, f"eridiff.lora.{recipe.name}", config, dict(outputs))


def _emit(event: str, resource: str, config: str, payload: dict[str, Any]) -> None:
    """Emits an event to the server that is in use; a throwaway server has nobody who listens."""
    if get_current_settings().api.url is None:
        return
    emit_event(
        event,
        resource={"prefect.resource.id": resource, "prefect.resource.name": resource.rsplit(".", 1)[-1]},
        payload={"config": config, **payload},
    )
