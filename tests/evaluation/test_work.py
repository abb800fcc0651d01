from __future__ import annotations

from pathlib import Path

from eridiff.evaluation.work import lora_files
from eridiff.store.files import FileDigests
from eridiff.store.runs import Run
from eridiff.store.tensorfile import digest_tensors
from tests import lorafiles


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    lorafiles.write_text(path, text)


def test_lora_files_stand_in_the_order_of_training_and_end_with_the_final_one(tmp_path: Path) -> None:
    run = Run(tmp_path / "a-000250", "id")  # a name that looks like a step
    for step in (250, 1500, 500):
        write(run.lora_file(step), str(step))
    write(run.lora_file(), "final")
    found = lora_files(run, 2000, FileDigests(tmp_path / "digests.json"))
    assert [lora.step for lora in found] == [250, 500, 1500, 2000]
    assert [lora.label for lora in found] == ["step 250", "step 500", "step 1500", "step 2000"]
    assert found[-1].path == run.lora_file()
    assert found[-1].digest == digest_tensors(run.lora_file())


def test_the_last_checkpoint_is_the_final_file_and_strangers_are_none(tmp_path: Path) -> None:
    run = Run(tmp_path / "a", "id")
    write(run.lora_file(100), "early")
    write(run.lora_file(200), "the last step")
    write(run.lora_file(300), "of a longer training")
    write(run.lora / "a-best.safetensors", "a user's copy")
    write(run.lora / "b-000100.safetensors", "another's")
    write(run.lora_file(), "final")
    found = lora_files(run, 200, FileDigests(tmp_path / "digests.json"))
    assert [lora.path.name for lora in found] == ["a-000100.safetensors", "a.safetensors"]
