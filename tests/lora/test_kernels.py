from __future__ import annotations

import pytest
import torch

pytestmark = pytest.mark.gpu


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize(("num_rows", "num_columns", "rank"), [(130, 200, 16), (7, 64, 4), (300, 128, 48)])
def test_the_change_is_added_to_slices_as_to_wholes(
    dtype: torch.dtype, num_rows: int, num_columns: int, rank: int
) -> None:
    from eridiff.lora.kernels import add_low_rank_

    cuda = torch.device("cuda")
    torch.manual_seed(0)
    whole = torch.randn(num_rows, num_columns + 8, device=cuda, dtype=dtype)
    narrow = torch.randn(num_rows, 2 * rank, device=cuda, dtype=dtype)[:, rank:]
    up = torch.randn(num_columns, rank, device=cuda, dtype=dtype)
    change = 0.5 * (narrow.double() @ up.double().t())
    wanted = (whole[:, :num_columns].double() + change).to(dtype)
    for factor in (up, up.t().contiguous().t()):
        found = whole.clone()
        add_low_rank_(found[:, :num_columns], narrow, factor, 0.5)
        torch.testing.assert_close(found[:, :num_columns], wanted)
        assert torch.equal(found[:, num_columns:], whole[:, num_columns:])
