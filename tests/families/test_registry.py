import subprocess
import sys
from dataclasses import replace

import pytest
import torch

from eridiff import families
from eridiff.errors import ModelError, RecipeError
from tests.families.samples import CPU_FP32


def test_names_and_options_go_together():
    assert families.names() == tuple(families.option_models()) == ("sdxl", "sd35", "flux")
    assert all(families.get(name).name == name for name in families.names())


def test_importing_families_loads_no_model_library():
    code = (
        "import sys; from eridiff import families; [families.get(n).text_recipe() for n in families.names()];"
        "print(*({'torch', 'diffusers', 'transformers', 'numpy'} & sys.modules.keys()))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""


def test_unknown_family():
    with pytest.raises(RecipeError, match="did you mean 'flux'"):
        families.get("flx")


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("sdxl", {"min_snr_gama": 5.0}),
        ("sdxl", {"prediction_type": "sample"}),
        ("sdxl", {"zero_terminal_snr": True}),
        ("sdxl", {"min_snr_gamma": 5.0, "debiased": True}),
        ("sdxl", {"noise_offset": float("nan")}),
        ("sd35", {"t5_length": 0}),
        ("sd35", {"t5_length": 513}),
        ("sd35", {"timestep_shift": -1.0}),
        ("flux", {"timestep_shift": "constant"}),
    ],
)
def test_options_that_cannot_be(name, options):
    with pytest.raises(RecipeError, match=r"model\.options"):
        families.get(name, options)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("sd35", {"t5_length": 77}),
        ("sd35", {"mask_mode": "zero"}),
        ("flux", {"t5_length": 256}),
    ],
)
def test_what_changes_an_embedding_changes_its_recipe(name, options):
    assert families.get(name, options).text_recipe() != families.get(name).text_recipe()
    assert families.get(name, options).latent_recipe() == families.get(name).latent_recipe()


def test_what_changes_only_training_changes_no_recipe():
    trained = families.get("sd35", {"loss": "preconditioned", "timestep_shift": 1.0, "variant": "large"})
    assert trained.text_recipe() == families.get("sd35").text_recipe()


def test_options_reach_the_objective():
    sdxl = families.get("sdxl", {"prediction_type": "v_prediction", "min_snr_gamma": 5, "noise_offset": 0.05})
    assert (sdxl.objective.prediction, sdxl.objective.min_snr_gamma) == ("v_prediction", 5)
    assert sdxl.objective.noise_offset == 0.05
    assert families.get("sd35").objective.shift.factor(4096) == 3.0
    assert families.get("sd35", {"loss": "preconditioned"}).objective.preconditioned
    assert families.get("flux").objective.shift.factor(4096) == pytest.approx(3.158, abs=5e-4)
    assert families.get("flux", {"timestep_shift": 3.0}).objective.shift.factor(256) == 3.0


def test_a_base_of_another_variant_is_refused(world):
    base = world("sd35").base
    assert families.get("sd35", {"variant": "medium"}).load_denoiser(base, **CPU_FP32)
    with pytest.raises(ModelError, match=r"model\.options\.variant"):
        families.get("sd35", {"variant": "large"}).load_denoiser(base, **CPU_FP32)


def test_a_base_that_predicts_something_else_is_refused(world):
    family = families.get("sdxl", {"prediction_type": "v_prediction"})
    with pytest.raises(ModelError, match=r"model\.options\.prediction_type"):
        family.load_denoiser(world("sdxl").base, **CPU_FP32)


def test_a_part_loads_when_the_others_are_gone(world):
    tiny = world("flux")
    alone = {name: tiny.base.components[name] for name in tiny.family.parts.denoiser}
    base = replace(tiny.base, components=alone)
    assert isinstance(tiny.family.load_denoiser(base, **CPU_FP32), torch.nn.Module)
    with pytest.raises(ModelError, match="vae"):
        tiny.family.load_vae(base, **CPU_FP32)
