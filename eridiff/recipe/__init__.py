"""The recipe: one YAML file a run, in ai-toolkit's keys, as frozen models."""

from eridiff.recipe.loading import Overrides, dump, load, schema
from eridiff.recipe.sections import (
    Base,
    BaseParts,
    Dataset,
    Ema,
    Ingest,
    Logging,
    Model,
    Network,
    Precompute,
    Recipe,
    Sample,
    Save,
    Storage,
    Train,
    Validation,
)

__all__ = [
    "Base",
    "BaseParts",
    "Dataset",
    "Ema",
    "Ingest",
    "Logging",
    "Model",
    "Network",
    "Overrides",
    "Precompute",
    "Recipe",
    "Sample",
    "Save",
    "Storage",
    "Train",
    "Validation",
    "dump",
    "load",
    "schema",
]
