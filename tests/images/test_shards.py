from __future__ import annotations

import hashlib
import random
import tarfile
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from eridiff.errors import DataError, StoreError
from eridiff.images.shards import ShardImage, plan_shards, read_images, write_shard
from eridiff.images.sources import whole_file


@dataclass(frozen=True)
class Wanted:
    content: str
    shard: str


@pytest.fixture
def images(tmp_path, photo):
    def make(count, start=0):
        (tmp_path / "user").mkdir(exist_ok=True)
        found = []
        for seed in range(start, start + count):
            path = tmp_path / "user" / f"{seed}.jpg"
            path.write_bytes(photo(seed, 16, 16))
            content = hashlib.sha256(path.read_bytes()).hexdigest()
            source = whole_file(str(path), str(path), path.stat())
            found.append(ShardImage(content, "jpg", f"picture {seed}", source))
        return found

    return make


def names(shards):
    return {shard.name for shard in shards}


def write_all(folder, shards):
    folder.mkdir(exist_ok=True)
    for shard in shards:
        assert write_shard(folder / shard.name, shard) == shard.num_bytes
        assert (folder / shard.name).stat().st_size == shard.num_bytes
    return [Wanted(image.content, shard.name) for shard in shards for image in shard.images]


def test_every_image_lies_in_one_shard_of_limited_size(images):
    made = images(100)
    shards = plan_shards(made, shard_images=8)
    assert sorted(image.content for shard in shards for image in shard.images) == sorted(
        i.content for i in made
    )
    assert max(len(shard.images) for shard in shards) <= 8
    assert len(shards) < 40


def test_the_order_in_which_images_come_does_not_matter(images):
    made = images(60)
    wanted = plan_shards(made, shard_images=8)
    random.Random(1).shuffle(made)
    assert plan_shards(made, shard_images=8) == wanted
    assert plan_shards(made + made[:9], shard_images=8) == wanted


@pytest.mark.parametrize("limit", [1, 4, 16])
def test_one_more_or_less_costs_at_most_one_shard(images, limit):
    made = images(64)
    for count in range(1, 64):
        before = plan_shards(made[:count], shard_images=limit)
        after = plan_shards(made[: count + 1], shard_images=limit)
        for old, new in ((before, after), (after, before)):
            rewritten = [shard for shard in new if shard.name not in names(old)]
            assert sum(len(shard.images) for shard in rewritten) <= limit + 1


def test_an_edited_caption_costs_one_shard(images):
    made = images(40)
    before = plan_shards(made, shard_images=8)
    made[5] = replace(made[5], caption="another")
    assert len(names(plan_shards(made, shard_images=8)) - names(before)) == 1


def test_bytes_are_the_same_wherever_the_files_lie(images, tmp_path):
    (shard,) = plan_shards(images(5), shard_images=8)
    write_shard(tmp_path / "1.tar", shard)
    for image in shard.images:
        Path(image.source.path).rename(f"{image.source.path}.moved")
    moved = [
        replace(image, source=replace(image.source, path=f"{image.source.path}.moved"))
        for image in shard.images
    ]
    write_shard(tmp_path / "2.tar", replace(shard, images=tuple(moved)))
    assert (tmp_path / "1.tar").read_bytes() == (tmp_path / "2.tar").read_bytes()


def test_golden_bytes(images, tmp_path):
    image = images(1)[0]
    Path(image.source.path).write_bytes(b"not quite an image")
    path = Path(image.source.path)
    source = whole_file(str(path), str(path), path.stat())
    (shard,) = plan_shards([ShardImage("ab" * 32, "jpg", "a wörd", source)], shard_images=1)
    write_shard(tmp_path / "golden.tar", shard)
    assert shard.name == "3898748f5f9d0a342182c47d630fa9c4.tar"
    assert (
        hashlib.sha256((tmp_path / "golden.tar").read_bytes()).hexdigest()
        == "7af1fccb6282d67ca893de8d27edba218916337ad73b406e9181e412c834f90c"
    )


def test_a_file_that_is_gone_is_an_error_with_its_name(images, tmp_path):
    (shard,) = plan_shards(images(1), shard_images=8)
    Path(shard.images[0].source.path).unlink()
    with pytest.raises(DataError, match="no longer") as raised:
        write_shard(tmp_path / "x.tar", shard)
    assert "0.jpg" in str(raised.value)


def test_tar_programs_and_equal_images_with_two_captions(images, tmp_path):
    first = images(1)[0]
    (shard,) = plan_shards([first, replace(first, caption="another")], shard_images=8)
    write_shard(tmp_path / "x.tar", shard)
    key = first.content[:20]
    with tarfile.open(tmp_path / "x.tar") as tar:
        assert tar.getnames() == [f"{key}.jpg", f"{key}.txt", f"{key}-1.jpg", f"{key}-1.txt"]
        assert {member.mtime for member in tar} == {0}


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")
def test_webdataset_reads_images_with_captions(images, tmp_path):
    webdataset = pytest.importorskip("webdataset")
    made = images(20)
    write_all(tmp_path / "shards", plan_shards(made, shard_images=8))
    paths = [str(path) for path in sorted((tmp_path / "shards").iterdir())]
    dataset = webdataset.WebDataset(paths, shardshuffle=False).decode("pil").to_tuple("__key__", "jpg", "txt")
    read = {key: (image.size, caption) for key, image, caption in dataset}
    assert read == {image.content[:20]: ((16, 16), image.caption) for image in made}


def test_images_come_back_in_the_order_asked_for(images, tmp_path):
    made = images(20)
    wanted = write_all(tmp_path / "shards", plan_shards(made, shard_images=4))
    random.Random(2).shuffle(wanted)
    read = list(read_images(tmp_path / "shards", wanted[:11]))
    assert [sample for sample, _ in read] == wanted[:11]
    by_content = {image.content: Path(image.source.path).read_bytes() for image in made}
    assert all(data == by_content[sample.content] for sample, data in read)


def test_damage_is_found(images, tmp_path):
    (wanted,) = write_all(tmp_path / "shards", plan_shards(images(1), shard_images=4))
    path = tmp_path / "shards" / wanted.shard
    data = bytearray(path.read_bytes())
    data[700] ^= 1
    path.write_bytes(data)
    with pytest.raises(StoreError, match="damaged"):
        list(read_images(tmp_path / "shards", [wanted]))
    path.write_bytes(data[:600])
    with pytest.raises(StoreError, match="damaged"):
        list(read_images(tmp_path / "shards", [wanted]))
    with pytest.raises(StoreError, match="damaged"):
        list(read_images(tmp_path / "shards", [replace(wanted, content="0" * 64)]))
    path.unlink()
    with pytest.raises(StoreError, match="missing"):
        list(read_images(tmp_path / "shards", [wanted]))
