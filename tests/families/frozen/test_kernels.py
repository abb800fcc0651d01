from __future__ import annotations

import pytest
import torch

from eridiff.families.frozen import fp8

pytestmark = pytest.mark.gpu


@pytest.mark.parametrize("width", [100, 3072])
@pytest.mark.parametrize("scaled", [False, True])
def test_rows_are_rounded_as_on_a_cpu(width: int, scaled: bool) -> None:
    torch.manual_seed(0)
    rows = torch.randn(33, width + 8, dtype=torch.bfloat16)
    rows[3] = 0
    factors = torch.rand(width) if scaled else None
    wanted = fp8._rounded(rows[:, :width], factors)
    cuda = torch.device("cuda")
    found = fp8._rounded(rows.to(cuda)[:, :width], None if factors is None else factors.to(cuda))
    for there, here in zip(found, wanted, strict=True):
        assert torch.equal(there.cpu().float(), here.float())


def test_bytes_are_turned_round() -> None:
    codes = torch.randint(0, 256, (130, 70), dtype=torch.uint8, device="cuda")
    assert torch.equal(fp8._transposed(codes), codes.t())
    assert fp8._transposed(codes).is_contiguous()
