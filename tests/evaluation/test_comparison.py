from __future__ import annotations

from dataclasses import replace

from eridiff.evaluation.comparison import by_checkpoint, by_strength
from tests.evaluation.test_pictures import LATER, LORA, SETTINGS

PROMPTS = ("a cat", "a dog")


def test_few_columns_put_seeds_side_by_side_with_the_base_first() -> None:
    found = by_strength(PROMPTS, (1, 2), (1.0, 0.0), LORA, SETTINGS)
    assert [group.label for group in found.columns] == ["seed 1", "seed 2"]
    assert all(group.members == ("base", "strength 1") for group in found.columns)
    assert [group.label for group in found.rows] == list(PROMPTS)
    assert [[(c.prompt, c.seed, c.strength) for c in line] for line in found.cells] == [
        [(prompt, 1, 0.0), (prompt, 1, 1.0), (prompt, 2, 0.0), (prompt, 2, 1.0)] for prompt in PROMPTS
    ]
    assert found.cells[0][0].lora is None
    assert found.cells[0][1].lora == LORA


def test_many_columns_give_each_seed_its_rows() -> None:
    found = by_strength(PROMPTS, (1, 2), (0.0, 0.25, 0.5, 1.0), LORA, SETTINGS)
    assert [group.label for group in found.columns] == [""]
    assert all(group.members == ("seed 1", "seed 2") for group in found.rows)
    assert [(line[0].prompt, line[0].seed) for line in found.cells] == [
        (prompt, seed) for prompt in PROMPTS for seed in (1, 2)
    ]


def test_checkpoints_stand_in_the_order_of_training() -> None:
    found = by_checkpoint(PROMPTS, (1,), (0.0, 0.5, 1.0), (LATER, LORA), SETTINGS)
    assert found.columns[0].members == ("base", "step 250", "step 500")
    assert [cell.lora for cell in found.cells[0]] == [None, LORA, LATER]


def test_cells_are_the_sampled_images() -> None:
    found = by_strength(PROMPTS, (1,), (0.0, 1.0), LORA, SETTINGS)
    assert found.cells[0][0].key != replace(found.cells[0][0], prompt="a dog").key
    assert found.cells[1][0].key == replace(found.cells[0][0], prompt="a dog").key
