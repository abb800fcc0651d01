"""A base is the same, bit for bit, in whichever layout it lies."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from torch import Tensor

from eridiff import families
from eridiff.demo.architecture import save_random_base
from eridiff.families.base import Conditioning, ModelFamily
from eridiff.families.checkpoints.base import Base, resolve
from eridiff.families.checkpoints.loading import load_model
from eridiff.families.checkpoints.tokenizing import load_tokenizer
from eridiff.lora.inject import inject, lora_state
from eridiff.recipe import BaseParts, Model, Network
from eridiff.training.step import Batch, losses
from tests.families.checkpoints import original

FORMS = ("folder", "all_in_one", "checkpoint_save", "parts", "mixed", "diffusers_file")
CPU = torch.device("cpu")


@pytest.fixture(scope="module", params=families.names())
def family(request: pytest.FixtureRequest) -> ModelFamily:
    return families.get(request.param)


@pytest.fixture(scope="module")
def folder(family: ModelFamily, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp(family.name) / "base"
    save_random_base(family.name, path)
    original.with_unit_projection(path)
    original.write_configs(path, family.checkpoint, path.parent / "configs")
    return path


def base_in(form: str, folder: Path, family: ModelFamily, into: Path) -> Base:
    layout, configs = family.checkpoint, folder.parent / "configs"
    if form == "folder":
        return resolve(Model(family=family.name, base=str(folder)), family)
    if form in ("all_in_one", "checkpoint_save"):
        path = into / "model.safetensors"
        getattr(original, f"write_{form}")(folder, layout, path)
        return resolve(Model(family=family.name, base=str(path), tokenizers=configs), family)
    parts = original.write_parts(folder, layout, into / "parts")
    if form == "mixed":
        parts |= {"vae": folder / "vae", "clip_l": folder}
    if form == "diffusers_file":
        parts["transformer"] = shutil.copy(
            folder / layout.denoiser / "diffusion_pytorch_model.safetensors", into / "denoiser.safetensors"
        )
    model = Model(family=family.name, base=BaseParts(**parts), tokenizers=configs)
    return resolve(model, family)


def states(base: Base) -> dict[str, Tensor]:
    return {
        f"{name}.{key}": value
        for name in base.layout.models
        for key, value in load_model(base, name, device=CPU, dtype=torch.float32).state_dict().items()
    }


@pytest.fixture(scope="module")
def reference(folder: Path, family: ModelFamily) -> dict[str, Tensor]:
    """The same weights by the libraries' own loaders."""
    import diffusers
    import transformers

    found = {}
    for name, spec in family.checkpoint.models.items():
        kind = getattr(transformers, spec.class_name, None) or getattr(diffusers, spec.class_name)
        found |= {
            f"{name}.{key}": value for key, value in kind.from_pretrained(folder / name).state_dict().items()
        }
    return found


@pytest.mark.parametrize("form", FORMS)
def test_every_layout_gives_the_weights_of_the_libraries_own_loaders(
    form: str, folder: Path, family: ModelFamily, reference: dict[str, Tensor], tmp_path: Path
) -> None:
    found = states(base_in(form, folder, family, tmp_path))
    assert found.keys() == reference.keys()
    assert [key for key in found if not torch.equal(found[key], reference[key])] == []


@pytest.mark.parametrize("form", FORMS)
def test_tokenizers_come_from_the_folder_or_from_the_recipe(
    form: str, folder: Path, family: ModelFamily, tmp_path: Path
) -> None:
    base, plain = base_in(form, folder, family, tmp_path), base_in("folder", folder, family, tmp_path)
    for name in family.checkpoint.tokenizers:
        texts = ["a large red circle above a small blue star", ""]
        found, wanted = (
            load_tokenizer(b, name)(texts, padding="max_length").input_ids for b in (base, plain)
        )
        assert found == wanted


def two_losses(base: Base, family: ModelFamily) -> list[float]:
    """The losses of two steps of training, everything computed from this base."""
    random = torch.Generator().manual_seed(7)
    where = {"device": CPU, "dtype": torch.float32}
    pixels = torch.rand(2, 3, 64, 64, generator=random) * 2 - 1
    moments = family.encode_images(family.load_vae(base, **where), pixels)
    prompts = family.encode_prompts(family.load_text_encoders(base, **where), ["a red circle", ""])
    denoiser = family.load_denoiser(base, **where)
    inject(denoiser, Network(linear=2), family, seed=1)
    clean = family.latent.scaled(moments.mean)
    geometry = torch.tensor([[64.0, 64, 0, 0, 64, 64]] * 2)
    batch = Batch(
        sample_ids=("a", "b"),
        clean=clean,
        noise=torch.randn(clean.shape, generator=random),
        t=torch.tensor([0.3, 0.8]),
        cond=Conditioning(prompts.text, prompts.pooled, geometry),
    )
    optimizer, found = torch.optim.SGD(lora_state(denoiser).values(), lr=10.0), []
    for _ in range(2):
        loss = losses(family, denoiser, batch).weighted.mean()
        loss.backward()
        optimizer.step()
        found.append(loss.item())
    return found


def test_training_on_every_layout_has_the_same_loss_to_the_bit(
    folder: Path, family: ModelFamily, tmp_path: Path
) -> None:
    wanted = two_losses(base_in("folder", folder, family, tmp_path), family)
    assert wanted[1] != wanted[0]
    for form in FORMS[1:]:
        (tmp_path / form).mkdir()
        assert two_losses(base_in(form, folder, family, tmp_path / form), family) == wanted, form
