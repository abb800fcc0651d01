"""How fast batches come from the store, beside one npz file a sample.

`python -m benchmarks.loader` writes records of Flux's size at 1024 px (T5 states `[512, 4096]` bf16, pooled
`[768]` bf16, latent mean and log-variance `[16, 128, 128]` float32: 6.3 MB) to a temporary folder, once into
the tensor store and once as kohya's scripts keep them (for each sample an npz of latents and one of float32
text outputs), and reads both in shuffled batches from the page cache. The first pass over the store also
checks each item's CRC-32. Goal: 200 samples/s, ten times what the fastest training step eats.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from eridiff.store.parts import Item, TensorStore
from eridiff.store.reader import Reader
from eridiff.tensors import from_stored, to_stored

GOAL = 200.0
PART_ITEMS = 16
Record = dict[str, Tensor]
ReadSample = Callable[[int], Record]


def make_record(number: int) -> Record:
    """Random tensors of a sample."""
    chance = torch.Generator().manual_seed(number)
    latent, text = torch.randn(2, 16, 128, 128, generator=chance), torch.randn(512, 4096, generator=chance)
    pooled = torch.randn(768, generator=chance)
    return {"mean": latent[0], "logvar": latent[1], "text": text.bfloat16(), "pooled": pooled.bfloat16()}


def write_store(folder: Path, count: int) -> TensorStore:
    """The records as parts of one store."""
    store = TensorStore(folder, "space")
    for start in range(0, count, PART_ITEMS):
        numbers = range(start, min(start + PART_ITEMS, count))
        store.append(
            [
                Item(str(number), {name: to_stored(tensor) for name, tensor in make_record(number).items()})
                for number in numbers
            ]
        )
    return store


def write_npz(folder: Path, count: int) -> None:
    """The records as kohya's scripts keep them: one drawn latent, and text outputs in float32."""
    folder.mkdir()
    for number in range(count):
        record = make_record(number)
        np.savez(folder / f"{number}_flux.npz", latents_128x128=record["mean"].numpy())
        np.savez(
            folder / f"{number}_flux_te.npz",
            l_pooled=record["pooled"].float().numpy(),
            t5_out=record["text"].float().numpy(),
        )


def from_store(reader: Reader) -> ReadSample:
    """Reads a record from the store."""
    return lambda number: {name: from_stored(tensor) for name, tensor in reader.get(str(number)).items()}


def from_npz(folder: Path) -> ReadSample:
    """Reads a record from its two files."""

    def read(number: int) -> Record:
        with (
            np.load(folder / f"{number}_flux.npz") as latents,
            np.load(folder / f"{number}_flux_te.npz") as text,
        ):
            arrays = {"latents": latents["latents_128x128"], "t5": text["t5_out"], "pooled": text["l_pooled"]}
        return {name: torch.from_numpy(array) for name, array in arrays.items()}

    return read


def stacked(records: Sequence[Record]) -> Record:
    """A batch: the tensors of its samples, copied together."""
    return {name: torch.stack([record[name] for record in records]) for name in records[0]}


def samples_per_s(read: ReadSample, count: int, batch_size: int, seed: int) -> float:
    """Samples a second of one shuffled pass in whole batches."""
    order = list(range(count))
    random.Random(seed).shuffle(order)
    started = time.perf_counter()
    for start in range(0, count, batch_size):
        records = [read(number) for number in order[start : start + batch_size]]
        stacked(records)
    return count / (time.perf_counter() - started)


def measure(folder: Path, *, records: int, batch_size: int, passes: int) -> dict[str, float]:
    """Writes, reads both in turn, and gives the medians."""
    store = write_store(folder, records)
    write_npz(folder / "npz", records)
    stored, files = from_store(store.open()), from_npz(folder / "npz")
    first = samples_per_s(stored, records, batch_size, seed=0)
    samples_per_s(files, records, batch_size, seed=0)
    rates: dict[str, list[float]] = {"store": [], "npz": []}
    for number in range(1, passes + 1):
        rates["store"].append(samples_per_s(stored, records, batch_size, number))
        rates["npz"].append(samples_per_s(files, records, batch_size, number))
    return _row(store.nbytes() / records, first, rates["store"], rates["npz"])


def _row(record_bytes: float, first: float, store: Sequence[float], npz: Sequence[float]) -> dict[str, float]:
    rate, other = statistics.median(store), statistics.median(npz)
    return {
        "record_mb": round(record_bytes / 1e6, 2),
        "store_samples_per_s": round(rate, 1),
        "store_first_pass_samples_per_s": round(first, 1),
        "npz_samples_per_s": round(other, 1),
        "ratio_to_npz": round(rate / other, 2),
        "ratio_to_goal": round(rate / GOAL, 2),
        "first_pass_ratio_to_goal": round(first / GOAL, 2),
        "goal_samples_per_s": GOAL,
    }


def main() -> None:
    """Measures in a temporary folder, which is deleted, and prints."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--records", type=int, default=256, help="6.3 MB each in the store, 9.4 MB as npz")
    parser.add_argument("--batch-size", type=int, default=4)
    parser.add_argument("--passes", type=int, default=5)
    parser.add_argument("--folder", type=Path, help="where the temporary folder is made")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        row = measure(
            Path(folder), records=options.records, batch_size=options.batch_size, passes=options.passes
        )
    if options.json:
        print(json.dumps(row))
        return
    print(
        f"records of {row['record_mb']} MB from the page cache, batches of {options.batch_size}\n"
        f"  store           {row['store_samples_per_s']:8.1f} samples/s  "
        f"({row['ratio_to_goal']} of the goal, {GOAL:.0f} samples/s)\n"
        f"  store, checking {row['store_first_pass_samples_per_s']:8.1f} samples/s  "
        f"({row['first_pass_ratio_to_goal']} of the goal; the first pass checks every byte)\n"
        f"  npz a sample    {row['npz_samples_per_s']:8.1f} samples/s\n"
        f"  ratio           {row['ratio_to_npz']:8.2f}"
    )


if __name__ == "__main__":
    main()
