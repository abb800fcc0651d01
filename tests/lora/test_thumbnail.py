"""A picture in the metadata of a LoRA file, whose tensors stay as they are."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors import safe_open

from eridiff.errors import ModelError
from eridiff.families.checkpoints.tensorfile import read_header
from eridiff.lora.export import write
from eridiff.lora.headers import set_metadata
from eridiff.lora.thumbnail import THUMBNAIL, described, thumbnail
from eridiff.store.tensorfile import digest_tensors


@pytest.fixture
def path(tmp_path: Path) -> Path:
    state = {"x.lora_down.weight": torch.randn(2, 3).half(), "x.alpha": torch.tensor(2.0)}
    write(tmp_path / "lora.safetensors", state, {"ss_v2": "False"})
    return tmp_path / "lora.safetensors"


def payload(path: Path) -> bytes:
    data = path.read_bytes()
    return data[8 + int.from_bytes(data[:8], "little") :]


@pytest.mark.parametrize("size", range(1, 5))
def test_it_is_a_data_url_that_says_what_it_is(size: int) -> None:
    found = thumbnail(b"\xff\xd8\xff\xd9"[:size], "image/jpeg")
    assert found[THUMBNAIL].startswith("data:image/jpeg;base64,/")
    assert described(found) == f"image/jpeg, {size} bytes"
    assert described({}) is None
    assert described({THUMBNAIL: "a.png"}) == "not a data URL"


def test_metadata_change_and_nothing_else_does(path: Path) -> None:
    before, data, digest = dict(read_header(path).metadata), payload(path), digest_tensors(path)
    picture = thumbnail(b"picture", "image/jpeg")
    assert set_metadata(path, picture)
    assert read_header(path).metadata == {**before, **picture}
    assert (payload(path), digest_tensors(path)) == (data, digest)
    with safe_open(path, "pt") as file:  # pyright: ignore[reportAttributeAccessIssue]
        assert file.metadata() == {**before, **picture}
        assert file.get_tensor("x.alpha") == 2
    assert set_metadata(path, {THUMBNAIL: None})
    assert read_header(path).metadata == before
    assert payload(path) == data


def test_what_is_there_already_is_not_written_again(path: Path) -> None:
    set_metadata(path, thumbnail(b"picture", "image/jpeg"))
    inode = path.stat().st_ino
    assert not set_metadata(path, thumbnail(b"picture", "image/jpeg"))
    assert not set_metadata(path, {"absent": None})
    assert path.stat().st_ino == inode


def test_a_damaged_file_is_left_alone(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])
    data = path.read_bytes()
    with pytest.raises(ModelError, match="damaged"):
        set_metadata(path, thumbnail(b"picture", "image/jpeg"))
    assert path.read_bytes() == data
