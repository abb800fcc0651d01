"""Where a base lies: every form, and what is wrong with it, without torch."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from eridiff import families
from eridiff.demo.architecture import save_random_base
from eridiff.errors import ModelError
from eridiff.families.checkpoints import hub
from eridiff.families.checkpoints.base import Base, resolve
from eridiff.families.checkpoints.loading import load_model
from eridiff.families.checkpoints.tokenizing import scheduler_config
from eridiff.recipe import BaseParts, Model
from tests.families.checkpoints import original

SDXL, SD35, FLUX = (families.get(name) for name in ("sdxl", "sd35", "flux"))


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("bases")
    for name in families.names():
        save_random_base(name, root / name)
    return {name: root / name for name in families.names()}


@pytest.fixture
def flux(bases: dict[str, Path], tmp_path: Path) -> Path:
    return Path(shutil.copytree(bases["flux"], tmp_path / "flux"))


def located(family: str, base: object, **model: object) -> Base:
    return resolve(Model(family=family, base=base, **model), families.get(family))


@pytest.mark.parametrize("family", families.names())
def test_a_diffusers_folder_has_all_components(bases: dict[str, Path], family: str) -> None:
    base = located(family, str(bases[family]))
    layout = families.get(family).checkpoint
    assert base.components.keys() == {*layout.models, *layout.tokenizers, "scheduler"}
    for name in base.components:
        files = base.files(name)
        assert files == tuple(sorted(files))
        assert all(path.is_file() for path in files)
    assert {path.name for path in base.files("vae")} == {"config.json", "diffusion_pytorch_model.safetensors"}
    assert scheduler_config(base)["_class_name"].endswith("Scheduler")


@pytest.mark.parametrize("family", families.names())
@pytest.mark.parametrize("other", families.names())
def test_a_base_of_another_family_is_refused(
    bases: dict[str, Path], family: str, other: str, tmp_path: Path
) -> None:
    if family == other:
        return
    layout = families.get(other).checkpoint
    original.write_all_in_one(bases[other], layout, tmp_path / "base.safetensors")
    parts = BaseParts(transformer=bases[other] / layout.denoiser)
    for base in (str(bases[other]), str(tmp_path / "base.safetensors"), parts):
        with pytest.raises(ModelError) as caught:
            located(family, base)
        own = families.get(family).checkpoint
        assert str(caught.value.wanted) in (own.pipelines[0], own.models[own.denoiser].class_name)


@pytest.mark.parametrize("base", ["/nowhere/at/all", "builtin:demo-nothing", "nothing.safetensors", "/"])
def test_a_base_that_is_not_there_is_an_error(base: str) -> None:
    with pytest.raises(ModelError) as caught:
        located("flux", base)
    assert caught.value.exit_code == 5


def test_a_missing_component_is_an_error_only_for_who_asks(flux: Path) -> None:
    for name in ("vae", "text_encoder", "text_encoder_2", "tokenizer_2"):
        shutil.rmtree(flux / name)
    base = located("flux", str(flux))
    assert load_model(base, "transformer", device=torch.device("cpu"), dtype=torch.float32)
    with pytest.raises(ModelError, match="the base has no vae"):
        base.component("vae")
    with pytest.raises(ModelError) as caught:
        base.files("tokenizer_2")
    assert "model.tokenizers" in str(caught.value)
    with pytest.raises(ModelError, match="no component 'unet'"):
        base.component("unet")


def test_a_variant_is_a_file_of_its_own(flux: Path) -> None:
    for path in flux.glob("*/*.safetensors"):
        save_file(
            {key: value.half() for key, value in load_file(path).items()},
            path.with_suffix(".fp16.safetensors"),
            {"format": "pt"},
        )
    base = located("flux", str(flux), variant="fp16")
    assert {path.name for path in base.component("vae").weights} == {
        "diffusion_pytorch_model.fp16.safetensors"
    }
    assert base.files("vae") != located("flux", str(flux)).files("vae")
    with pytest.raises(ModelError, match="variant 'int8'"):
        located("flux", str(flux), variant="int8")


def test_shards_are_one_model(flux: Path) -> None:
    path = flux / "transformer" / "diffusion_pytorch_model.safetensors"
    wanted = load_file(path)
    halves = sorted(wanted)[::2], sorted(wanted)[1::2]
    names = [f"diffusion_pytorch_model-0000{number}-of-00002.safetensors" for number in (1, 2)]
    for name, half in zip(names, halves, strict=True):
        save_file({key: wanted[key] for key in half}, path.with_name(name))
    path.unlink()
    index = {key: name for name, half in zip(names, halves, strict=True) for key in half}
    path.with_name(f"{path.name}.index.json").write_text(json.dumps({"weight_map": index}))
    base = located("flux", str(flux))
    found = load_model(base, "transformer", device=torch.device("cpu"), dtype=torch.float32).state_dict()
    assert all(torch.equal(found[key], value) for key, value in wanted.items())
    (path.with_name(names[1])).unlink()
    with pytest.raises(ModelError, match="a shard of the weights is missing"):
        located("flux", str(flux))


@pytest.mark.parametrize("name", ["../../other.safetensors", "/etc/passwd"])
def test_an_index_cannot_lead_out_of_its_folder(flux: Path, name: str) -> None:
    path = flux / "transformer" / "diffusion_pytorch_model.safetensors"
    path.unlink()
    path.with_name(f"{path.name}.index.json").write_text(json.dumps({"weight_map": {"x": name}}))
    with pytest.raises(ModelError, match="a shard of the weights is missing"):
        located("flux", str(flux))


def test_pickles_are_not_opened(flux: Path) -> None:
    path = flux / "vae" / "diffusion_pytorch_model.safetensors"
    path.rename(path.with_suffix(".bin"))
    with pytest.raises(ModelError) as caught:
        located("flux", str(flux))
    assert "pickles can run code" in str(caught.value)


@pytest.mark.parametrize(
    ("family", "change", "variant"),
    [
        ("flux", {"in_channels": 384}, "fill"),
        ("sdxl", {"in_channels": 9}, "inpainting"),
        ("sd35", {"qk_norm": None}, "3-medium"),
    ],
)
def test_variants_that_are_not_trained_are_refused_by_name(
    bases: dict[str, Path], family: str, change: dict[str, object], variant: str, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(bases[family], tmp_path / "base"))
    config = folder / families.get(family).checkpoint.denoiser / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | change))
    with pytest.raises(ModelError) as caught:
        located(family, str(folder))
    assert caught.value.found == variant


def test_weights_that_do_not_fit_are_an_error(flux: Path) -> None:
    path = flux / "transformer" / "diffusion_pytorch_model.safetensors"
    good = load_file(path)
    faults = {
        "missing": {key: value for key, value in good.items() if key != "proj_out.bias"},
        "no place": {**good, "extra.weight": torch.ones(2)},
        "another shape": {**good, "proj_out.bias": torch.ones(3)},
    }
    for message, state in faults.items():
        save_file(state, path)
        with pytest.raises(ModelError, match=message):
            load_model(
                located("flux", str(flux)), "transformer", device=torch.device("cpu"), dtype=torch.float32
            )


def test_parts_that_the_family_lacks_or_that_are_something_else_are_refused(
    bases: dict[str, Path], tmp_path: Path
) -> None:
    parts = original.write_parts(bases["flux"], FLUX.checkpoint, tmp_path / "parts")
    with pytest.raises(ModelError, match="flux has no such part"):
        located("flux", BaseParts(**parts, clip_g=parts["clip_l"]))
    with pytest.raises(ModelError, match="holds no vae"):
        located("flux", BaseParts(**{**parts, "vae": parts["t5xxl"]}))
    with pytest.raises(ModelError, match="cannot be read"):
        located("flux", BaseParts(**{**parts, "vae": tmp_path / "gone.safetensors"}))


def test_a_hub_id_is_resolved_to_its_commit(
    bases: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    commit = "0123456789abcdef0123456789abcdef01234567"
    repository = tmp_path / "models--me--tiny-flux"
    shutil.copytree(bases["flux"], repository / "snapshots" / commit)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(commit)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    base = located("flux", "me/tiny-flux")
    assert base.revision == commit
    assert base.component("vae").path == repository / "snapshots" / commit / "vae"
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(ModelError, match="cannot be fetched"):
        located("flux", "me/nothing")


def test_only_what_is_needed_is_fetched_from_the_hub() -> None:
    import fnmatch

    def fetched(name: str, variant: str | None) -> bool:
        return any(fnmatch.fnmatch(name, pattern) for pattern in hub.patterns(SDXL.checkpoint, variant))

    assert fetched("unet/diffusion_pytorch_model.fp16.safetensors", "fp16")
    assert fetched("tokenizer_2/vocab.json", "fp16")
    assert not fetched("unet/diffusion_pytorch_model.safetensors", "fp16")
    assert not fetched("unet/diffusion_pytorch_model.fp16.safetensors", None)
    assert not fetched("sd_xl_base_1.0.safetensors", None)
    assert not fetched("unet/model.onnx", None)


def test_resolving_loads_no_torch(bases: dict[str, Path], tmp_path: Path) -> None:
    original.write_configs(bases["flux"], FLUX.checkpoint, tmp_path / "configs")
    original.write_all_in_one(bases["flux"], FLUX.checkpoint, tmp_path / "flux.safetensors")
    script = f"""
import sys
from eridiff import families
from eridiff.families.checkpoints.base import resolve
from eridiff.recipe import Model
for base in ({str(bases["flux"])!r}, {str(tmp_path / "flux.safetensors")!r}):
    model = Model(family="flux", base=base, tokenizers={str(tmp_path / "configs")!r})
    found = resolve(model, families.get("flux"))
    assert found.files("transformer") and found.files("tokenizer_2")
print(*{{"torch", "diffusers", "transformers"}} & set(sys.modules))
"""
    loaded = subprocess.run([sys.executable, "-c", script], check=True, capture_output=True, text=True)
    assert not loaded.stdout.split()
