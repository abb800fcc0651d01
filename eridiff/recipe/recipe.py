"""A recipe, whole. Names are ai-toolkit's wherever it has one; defaults stand beside their fields."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, ValidationInfo, field_validator
from pydantic_core import PydanticCustomError

from eridiff.recipe.dataset import Dataset, Ingest, Model, Precompute
from eridiff.recipe.evaluation import Publish, Retrain, Sample, Validation
from eridiff.recipe.fields import Section
from eridiff.recipe.storage import Storage
from eridiff.recipe.training import Logging, Network, Save, Train


class Recipe(Section):
    """One run, whole."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")]
    trigger_word: str | None = None
    """Put in front of captions that lack it; `[trigger]` stands for it."""
    profile: Literal["24gb", "16gb", "12gb", "8gb"] | None = None
    """Settings that fit training at 1024² px into a card of that size, the family's own; keys that the recipe
    gives count before them. `eridiff recipe` shows them."""
    model: Model
    datasets: Annotated[tuple[Dataset, ...], Field(min_length=1)]
    ingest: Ingest = Ingest()
    precompute: Precompute = Precompute()
    network: Network = Network()
    train: Train = Train()
    save: Save = Save()
    sample: Sample = Sample()
    validation: Validation = Validation()
    logging: Logging = Logging()
    publish: Publish = Publish()
    retrain: Retrain = Retrain()
    storage: Storage = Storage()
    device: Annotated[str, Field(pattern=r"^(auto|cpu|mps|cuda(:\d+)?)$")] = "auto"
    """`auto`, `cpu`, `cuda`, `cuda:1`, `mps`."""

    @field_validator("network")
    @classmethod
    def _starts_from_a_whole_base(cls, network: Network, info: ValidationInfo) -> Network:
        model = info.data.get("model")
        if network.starts_from_weights and model is not None and model.quantize != "none":
            raise PydanticCustomError(
                "contradiction",
                "init: kaiming where model.quantize, or a profile, keeps the base in {quantize}; "
                "or model.quantize: none",
                {"quantize": model.quantize},
            )
        return network

    @field_validator("retrain")
    @classmethod
    def _retrains_from_one_start(cls, retrain: Retrain, info: ValidationInfo) -> Retrain:
        network = info.data.get("network")
        if retrain.start_from == "champion" and network is not None and network.starts_from_weights:
            raise PydanticCustomError(
                "contradiction", "start_from: scratch where network.init starts from the base's weights"
            )
        return retrain
