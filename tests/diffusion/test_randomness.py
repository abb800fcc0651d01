import torch

from eridiff.diffusion.randomness import generator


def draw(*parts, seed=42):
    return torch.randn(4, generator=generator(seed, *parts))


def test_equal_names_give_equal_numbers():
    assert torch.equal(draw("noise", 7, "cat"), draw("noise", 7, "cat"))


def test_every_part_of_the_name_counts():
    streams = [
        draw("noise", 7, "cat"),
        draw("noise", 7, "cat", seed=43),
        draw("time", 7, "cat"),
        draw("noise", 8, "cat"),
        draw("noise", 7, "dog"),
    ]
    assert len({tuple(stream.tolist()) for stream in streams}) == len(streams)


def test_numbers_never_change_between_versions():
    assert torch.randint(1000, (4,), generator=generator(42, "noise", 0, "cat")).tolist() == [
        578,
        889,
        918,
        162,
    ]


def test_global_state_is_neither_read_nor_moved():
    before = torch.random.get_rng_state()
    first = draw("noise")
    assert torch.equal(torch.random.get_rng_state(), before)
    torch.rand(3)
    assert torch.equal(draw("noise"), first)
