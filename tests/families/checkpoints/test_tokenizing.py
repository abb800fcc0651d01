"""Tokenizers of bases whose files hold none."""

from __future__ import annotations

from pathlib import Path

import pytest

from eridiff import families
from eridiff.demo.architecture import save_random_base
from eridiff.errors import ModelError
from eridiff.families.checkpoints.base import Base, resolve
from eridiff.families.checkpoints.tokenizing import load_tokenizer, scheduler_config
from eridiff.recipe import BaseParts, Model
from tests.families.checkpoints import original

VOCABULARIES = Path(__file__).parents[4] / "shared" / "tokenizers"
CAT = [49406, 320, 1125, 539, 320, 2368, 49407]


def parts_base(family_name: str, root: Path, tokenizers: Path | None) -> Base:
    """A base of original files, whose sizes are told by configurations alone."""
    family = families.get(family_name)
    save_random_base(family_name, root / "base")
    parts = original.write_parts(root / "base", family.checkpoint, root / "parts")
    parts["transformer"] = root / "base" / family.checkpoint.denoiser
    return resolve(Model(family=family_name, base=BaseParts(**parts), tokenizers=tokenizers), family)


def test_published_vocabularies_are_set_up_as_each_encoder_wants_them(tmp_path: Path) -> None:
    if not VOCABULARIES.is_dir():
        pytest.skip("the published vocabularies are not beside the repository")
    base = parts_base("sd35", tmp_path, VOCABULARIES)
    first, second, third = (load_tokenizer(base, f"tokenizer{suffix}") for suffix in ("", "_2", "_3"))
    for tokenizer, pad in ((first, 49407), (second, 0)):
        ids = tokenizer("a photo of a cat", padding="max_length", truncation=True).input_ids
        assert ids[:7] == CAT
        assert ids[7:] == [pad] * 70
    ids = third("a photo of a cat", padding="max_length", max_length=12).input_ids
    assert ids[-1] == third.pad_token_id == 0
    assert 1 in ids
    assert third.model_max_length == 512


def test_without_tokenizers_the_error_says_where_to_put_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    base = parts_base("flux", tmp_path, None)
    with pytest.raises(ModelError) as caught:
        load_tokenizer(base, "tokenizer_2")
    assert "model.tokenizers" in str(caught.value)
    assert caught.value.exit_code == 5


def test_the_hubs_cache_is_looked_at(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    repository = tmp_path / "cache" / "models--openai--clip-vit-large-patch14"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text("abc")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    save_random_base("flux", tmp_path / "other")
    (repository / "snapshots").mkdir()
    (tmp_path / "other" / "tokenizer").rename(repository / "snapshots" / "abc")
    (repository / "snapshots" / "abc" / "vocab.json").touch()
    base = parts_base("flux", tmp_path, None)
    assert base.component("tokenizer").path == repository / "snapshots" / "abc"


@pytest.mark.parametrize("family", families.names())
def test_a_base_without_a_scheduler_has_its_familys(family: str, tmp_path: Path) -> None:
    base = parts_base(family, tmp_path, None)
    assert "scheduler" not in base.components
    assert scheduler_config(base)["num_train_timesteps"] == 1000
