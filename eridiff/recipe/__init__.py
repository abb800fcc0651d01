"""The recipe: one YAML file a run, in ai-toolkit's keys, as frozen models."""

from eridiff.recipe.dataset import Base, BaseParts, Dataset, Ingest, Model, Precompute
from eridiff.recipe.evaluation import Publish, Retrain, Sample, Validation
from eridiff.recipe.loading import Overrides, dump, load, schema
from eridiff.recipe.recipe import Recipe
from eridiff.recipe.storage import Storage
from eridiff.recipe.training import OPTIMIZERS, Ema, Logging, Network, Save, Train

__all__ = [
    "OPTIMIZERS",
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
    "Publish",
    "Recipe",
    "Retrain",
    "Sample",
    "Save",
    "Storage",
    "Train",
    "Validation",
    "dump",
    "load",
    "schema",
]
