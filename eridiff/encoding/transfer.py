"""Between host and device without waiting: a GPU goes on working while inputs come and results go."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor


def stacked(rows: Sequence[np.ndarray], device: torch.device) -> Tensor:
    """Rows of one shape and dtype as one tensor on `device`; for a GPU through pinned memory."""
    on_gpu = device.type == "cuda"
    dtype = torch.from_numpy(np.empty(0, rows[0].dtype)).dtype
    batch = torch.empty((len(rows), *rows[0].shape), dtype=dtype, pin_memory=on_gpu)
    np.stack(rows, out=batch.numpy())
    return batch.to(device, non_blocking=on_gpu)


class Arriving:
    """Tensors on their way to the host.

    Args:
        tensors: all on one device. On a GPU they may still have to be computed.
    """

    def __init__(self, *tensors: Tensor) -> None:
        on_gpu = tensors[0].is_cuda
        # From a GPU without waiting, torch copies into pinned memory of its own.
        self._tensors = [tensor.to("cpu", non_blocking=on_gpu) for tensor in tensors]
        self._arrived: torch.cuda.Event | None = None
        if on_gpu:
            self._arrived = torch.cuda.Event(blocking=True)
            self._arrived.record(torch.cuda.current_stream(tensors[0].device))

    def wait(self) -> list[Tensor]:
        """The tensors on the CPU, once they are there."""
        if self._arrived is not None:
            self._arrived.synchronize()
        return self._tensors
