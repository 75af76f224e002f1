"""Decoded images on disk: shared by processes, whole after a kill at any moment, and never beyond the bound."""

import fcntl
import multiprocessing
import os
import pickle
import signal
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from img2img.data import build_data
from img2img.data import disk_cache as module
from img2img.data.base import ImageDataset, Sample
from img2img.data.cache import CachedDataset
from img2img.data.checksums import file_checksums
from img2img.data.datasets.folder import ImageFolder
from img2img.data.disk_cache import CachedSet, DiskCache
from img2img.errors import InputError

FORK = multiprocessing.get_context("fork")


def key(number: int) -> bytes:
    return number.to_bytes(16, "big")[::-1]


def content(number: int, size: int = 5000) -> bytes:
    return np.random.default_rng(number).bytes(size)


def files(cache: DiskCache) -> list[Path]:
    return [path for path in cache.folder.rglob("*") if path.is_file()]


@pytest.fixture
def cache(tmp_path: Path) -> DiskCache:
    return DiskCache(tmp_path / "cache", 10_000_000)


def test_what_was_put_is_there_for_another_object_of_the_same_options(cache: DiskCache) -> None:
    first = cache.open_set({"resize": 8})
    assert first.get(key(1)) is None
    assert [first.put(key(n), content(n)) for n in (1, 2)] == [True, True]
    for again in (first, DiskCache(cache.folder, 10_000_000).open_set({"resize": 8}), pickle.loads(pickle.dumps(first))):
        assert [bytes(again.get(key(n)) or b"") for n in (2, 1, 3)] == [content(2), content(1), b""]
    assert cache.open_set({"resize": 9}).get(key(1)) is None, "other options"
    second = cache.open_set({"resize": 8})
    assert first.put(key(3), content(3))
    assert bytes(second.get(key(3)) or b"") == content(3), "written after it was opened"
    size = cache.used_bytes()
    assert second.put(key(3), content(3))
    assert cache.used_bytes() == size, "nothing is stored twice"


def _writes(cached: CachedSet, numbers: list[int]) -> None:
    for number in numbers:
        assert cached.put(key(number), content(number))
        assert bytes(cached.get(key(number)) or b"") == content(number)


def test_processes_write_and_read_at_once(cache: DiskCache) -> None:
    cached = cache.open_set({})
    cached.put(key(0), content(0))  # open before the fork: a lock of the parent's open file would be the children's too
    orders = [np.random.default_rng(seed).permutation(60).tolist() for seed in range(4)]
    children = [FORK.Process(target=_writes, args=(cached, order)) for order in orders]
    for child in children:
        child.start()
    for child in children:
        child.join(60)
    assert [child.exitcode for child in children] == [0] * 4
    assert all(bytes(cached.get(key(n)) or b"") == content(n) for n in range(60))
    assert sum(path.stat().st_size for path in files(cache) if path.name == "images") == 60 * 5000, "each once"


def _writes_until_killed(cached: CachedSet) -> None:
    number = 0
    while True:
        cached.put(key(number), content(number, 300_000))
        number += 1


def test_a_kill_at_any_moment_leaves_a_sound_cache(tmp_path: Path) -> None:
    cache = DiskCache(tmp_path / "cache", 1 << 40)
    cached = cache.open_set({})
    for turn in range(4):
        child = FORK.Process(target=_writes_until_killed, args=(cached,))
        child.start()
        until = time.monotonic() + 30
        while cached.get(key(turn)) is None and time.monotonic() < until:
            time.sleep(0.003)
        assert child.pid is not None
        os.kill(child.pid, signal.SIGKILL)
        child.join()
        number = 0
        while (found := cached.get(key(number))) is not None:
            assert bytes(found) == content(number, 300_000)
            number += 1
        assert number > turn
    assert cached.put(key(10**9), content(1)), "the lock is free"


@pytest.mark.parametrize("damage", ["record cut off", "bytes without a record", "record of zeros"])
def test_what_a_writer_left_unfinished_is_written_over(cache: DiskCache, damage: str) -> None:
    first = cache.open_set({})
    first.put(key(1), content(1))
    index, images = (next(path for path in files(cache) if path.name == name) for name in ("index", "images"))
    with open(images if damage == "bytes without a record" else index, "ab") as file:
        file.write({"record cut off": b"\7" * 13, "bytes without a record": b"x" * 777, "record of zeros": bytes(40)}[damage])
    second = cache.open_set({})
    assert second.put(key(2), content(2))
    for cached in (first, second, cache.open_set({})):
        assert [bytes(cached.get(key(n)) or b"") for n in (1, 2)] == [content(1), content(2)]


def test_damaged_bytes_are_not_given_but_written_again(cache: DiskCache) -> None:
    cache.open_set({}).put(key(1), content(1))
    images = next(path for path in files(cache) if path.name == "images")
    images.write_bytes(b"\0" * images.stat().st_size)
    cached = cache.open_set({})
    assert cached.get(key(1)) is None
    assert cached.put(key(1), content(1))
    assert bytes(cache.open_set({}).get(key(1)) or b"") == content(1)


def test_the_bound_holds_and_sets_in_use_keep_what_they_have(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    cache = DiskCache(tmp_path / "cache", 26_000)  # five of 5,000 bytes, with what tells them apart
    old, unused = cache.open_set({"set": "old"}), cache.open_set({"set": "unused"})
    for cached, age in ((old, 200), (unused, 100)):
        assert cached.put(key(1), content(1))
        cached.close()
        os.utime(cache.folder / cached._name / "about.json", (time.time() - age,) * 2)
    new = cache.open_set({"set": "new"})
    assert all(new.put(key(n), content(n)) for n in range(4))
    assert not (cache.folder / old._name).exists(), "the one opened longest ago goes first"
    held = cache.open_set({"set": "unused"})
    assert bytes(held.get(key(1)) or b"") == content(1)
    assert not new.put(key(4), content(4))
    assert all(new.get(key(n)) is not None for n in range(4)), "nothing of what is in use goes"
    assert held.get(key(1)) is not None
    assert 20_000 < cache.used_bytes() <= 26_000
    assert "is full" in caplog.text
    assert "cache_gb" in caplog.text
    held.close()
    new.close()
    assert new.put(key(4), content(4)), "there is room again for whoever opens the set"
    assert not (cache.folder / held._name).exists()


def test_what_else_lies_in_the_folder_is_left_alone(tmp_path: Path) -> None:
    """A user may give a folder that holds other things: only what the cache made is counted, and deleted."""
    kept = {"photos/a.jpg": b"photo", "thesis/chapter.tex": b"text", "0123456789abcdef0123456789abcdef/mine.txt": b"mine"}
    for name, content_of in kept.items():
        (tmp_path / name).parent.mkdir(parents=True)
        (tmp_path / name).write_bytes(content_of)
    (tmp_path / ("f" * 32)).symlink_to(tmp_path / "photos")
    cache = DiskCache(tmp_path, 12_000)
    assert cache.used_bytes() == 0
    first = cache.open_set({"set": 1})
    assert first.put(key(1), content(1))
    first.close()
    second = cache.open_set({"set": 2})
    assert all(second.put(key(n), content(n)) for n in range(2))
    assert not (tmp_path / first._name).exists()
    assert {name: (tmp_path / name).read_bytes() for name in kept} == kept
    assert (tmp_path / ("f" * 32)).is_symlink()


def test_the_disk_is_not_filled(cache: DiskCache, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "KEEP_FREE", 1 << 60)
    cached = cache.open_set({})
    assert not cached.put(key(1), content(1))
    assert cached.get(key(1)) is None


def test_a_folder_without_locks_and_a_bound_below_zero_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match=r"cache_dir=.*file.*local disk"):
        DiskCache(tmp_path / "file", 1)
    with pytest.raises(InputError, match=r"-1 bytes.*cache_gb"):
        DiskCache(tmp_path, -1)

    def refuses(*_: Any) -> None:
        raise OSError("no locks available")

    monkeypatch.setattr(fcntl, "flock", refuses)
    with pytest.raises(InputError, match=r"no locks.*leave cache_dir out"):
        DiskCache(tmp_path, 1)


# ---------------------------------------------------------------------- samples


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    folder = tmp_path / "photos"
    folder.mkdir()
    for i in range(10):
        noise = np.random.default_rng(i).integers(0, 256, (20, 30, 3), dtype=np.uint8)
        Image.fromarray(noise).save(folder / f"{i}.png")
    return folder


@pytest.fixture
def decoded(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the images that were decoded."""
    names: list[str] = []
    whole = ImageFolder.__getitem__

    def counted(self: ImageFolder, index: int) -> Sample:
        names.append(self._files[index] if isinstance(self._files[index], str) else self._files[index].name)
        return whole(self, index)

    monkeypatch.setattr(ImageFolder, "__getitem__", counted)
    return names


def samples(options: dict[str, Any], cache: DiskCache | None) -> list[Sample]:
    parts = build_data({"kind": "image_folder", "fractions": [0.6, 0.2, 0.2]} | options, cache=cache)
    return [part[i] for part in (parts.train, parts.val, parts.test) for i in range(len(part))]


def test_a_second_run_decodes_nothing_and_gives_the_same(photos: Path, cache: DiskCache, decoded: list[str]) -> None:
    options = {"root": str(photos), "resize": 10, "middle": 8}
    plain = samples(options, None)
    decoded.clear()
    for expected_reads in (10, 0):
        found = samples(options, DiskCache(cache.folder, 10_000_000))
        assert len(decoded) == expected_reads
        decoded.clear()
        for a, b in zip(plain, found, strict=True):
            np.testing.assert_array_equal(a.image, b.image)
            assert (a.name, a.label, a.source, a.category) == (b.name, b.label, b.source, b.category)
    samples(options | {"middle": 6}, cache)
    samples(options | {"limit": {"train": 3}}, cache)
    samples(options | {"fractions": [0.2, 0.2, 0.6]}, cache)
    assert decoded == [], "options that leave the images as they are"
    for more in ({"resize": 9}, {"white": 4095}, {"fast_decode": True}):
        samples(options | more, cache)
        assert len(decoded) == 10, more
        decoded.clear()


def test_a_changed_file_alone_is_decoded_again(photos: Path, cache: DiskCache, decoded: list[str]) -> None:
    samples({"root": str(photos)}, cache)
    decoded.clear()
    Image.new("RGB", (30, 20), "red").save(photos / "4.png")
    Image.new("RGB", (30, 20), "blue").save(photos / "new.png")
    found = {sample.name: sample.image[0, 0].tolist() for sample in samples({"root": str(photos)}, cache)}
    assert (found["4.png"], found["new.png"]) == ([255, 0, 0], [0, 0, 255])
    assert sorted(decoded) == ["4.png", "new.png"]


def test_memory_holds_no_image_of_the_disk_and_preload_decodes_none(photos: Path, cache: DiskCache, decoded: list[str]) -> None:
    parts = build_data({"kind": "image_folder", "root": str(photos)}, cache=cache)
    parts.train.preload()
    assert decoded == []
    for _ in range(2):
        assert parts.train[0].image.shape == (20, 30, 3)
    assert parts.train._bytes == 0
    assert not parts.train[0].image.flags.writeable
    parts.train.forget()
    assert parts.train[0].image.shape == (20, 30, 3)
    assert len(decoded) == 1


def test_labels_depend_on_the_options_and_on_the_file_of_the_classes(tmp_path: Path, photos: Path, cache: DiskCache) -> None:
    labels = tmp_path / "labels"
    labels.mkdir()
    for i in range(10):
        Image.fromarray(np.random.default_rng(i).integers(0, 3, (20, 30), dtype=np.uint8)).save(labels / f"{i}.png")
    (tmp_path / "classes.txt").write_text("a\nb\nc\n")
    options: dict[str, Any] = {"kind": "image_label_folder", "images": str(photos), "labels": str(labels), "resize": 10}
    options["classes"] = str(tmp_path / "classes.txt")

    def first(more: dict[str, Any], cache: DiskCache | None) -> Sample:
        return build_data(options | more, cache=cache).train[0]

    for more in ({}, {"groups": {"x": ["b", "c"]}}, {}, {"void": [1]}):
        expected, found = first(more, None), first(more, cache)
        assert expected.label is not None
        assert found.label is not None
        np.testing.assert_array_equal(expected.label, found.label)
        np.testing.assert_array_equal(expected.image, found.image)
    (tmp_path / "classes.txt").write_text("c\nb\na\n")
    assert len(list(cache.folder.glob("*/index"))) == 3
    first({}, cache)
    assert len(list(cache.folder.glob("*/index"))) == 4


def test_a_new_folder_of_a_class_changes_the_numbers_of_the_others(tmp_path: Path, cache: DiskCache) -> None:
    for name in ("cat", "dog", "bear"):
        (tmp_path / "classes" / name).mkdir(parents=True)
        for i in range(10):
            noise = np.random.default_rng(i).integers(0, 256, (20, 30, 3), dtype=np.uint8)
            Image.fromarray(noise).save(tmp_path / "classes" / name / f"{i}.png")
        train = build_data({"kind": "class_folder", "root": str(tmp_path / "classes"), "resize": 10}, cache=cache).train
        shown = [train[i] for i in range(len(train))]
        assert {(sample.name or "").split("/")[0] for sample in shown} == set(train.classes)
        for sample in shown:
            assert sample.category is not None
            assert (sample.name or "").startswith(train.classes[sample.category])


def test_a_set_that_is_read_from_no_file_stays_in_memory(cache: DiskCache) -> None:
    class Made(ImageDataset):
        reads = 0

        def __len__(self) -> int:
            return 1

        def __getitem__(self, index: int) -> Sample:
            self.reads += 1
            return Sample(np.zeros((4, 4, 3), np.uint8))

    made = Made()
    cached = CachedDataset(made, stored=cache.open_set({}))
    assert cached[0] is cached[0]
    assert made.reads == 1
    assert cached._bytes == 48


def test_beyond_the_bound_images_are_kept_in_memory(photos: Path, tmp_path: Path, decoded: list[str]) -> None:
    cache = DiskCache(tmp_path / "small", 12_000)
    parts = build_data({"kind": "image_folder", "root": str(photos)}, cache=cache)
    for _ in range(2):
        for i in range(len(parts.train)):
            np.testing.assert_array_equal(parts.train[i].image, ImageFolder(photos)[int(parts.train[i].name[0])].image)
    assert 0 < parts.train._bytes < len(parts.train) * 1800
    assert cache.used_bytes() <= 12_000


_events: list[tuple[str, str]] | None = None


def _audit(event: str, arguments: tuple[Any, ...]) -> None:
    if _events is not None and event in ("open", "os.scandir", "os.listdir") and isinstance(arguments[0], str | os.PathLike):
        _events.append((event, os.fspath(arguments[0])))


def test_no_folder_is_listed_and_no_file_opened_or_hashed_twice(
    photos: Path, cache: DiskCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two tasks on one folder, as a run opens them: listed, hashed for the record, read for two epochs and by a second run."""
    os.utime(photos, (1, 1))
    sys.addaudithook(_audit)  # it stays, and does nothing outside of this test

    def events(what: Callable[[], object]) -> tuple[Counter[str], Counter[str]]:
        seen: list[tuple[str, str]] = []
        monkeypatch.setattr(sys.modules[__name__], "_events", seen)
        what()
        monkeypatch.setattr(sys.modules[__name__], "_events", None)
        opened = Counter(Path(path).name for event, path in seen if event == "open" and path.endswith(".png"))
        return opened, Counter(path for event, path in seen if event != "open" and path.startswith(str(photos)))

    tasks: list[Any] = []
    config = {"kind": "image_folder", "root": str(photos), "resize": 10}
    opened, listed = events(lambda: tasks.extend(build_data(config, cache=cache) for _ in range(2)))
    assert (opened, listed) == (Counter(), Counter({str(photos): 1}))
    parts = [part for task in tasks for part in (task.train, task.val, task.test)]
    every = [f"{i}.png" for i in range(10)]

    def hashes() -> None:
        for part in parts:
            file_checksums(file for i in range(len(part)) for file in part.files(i))

    assert events(hashes) == (Counter(every), Counter())

    def epoch() -> None:
        for part in parts:
            part.preload()
            for i in range(len(part)):
                part[i]

    assert events(epoch) == (Counter(every), Counter()), "decoded once for both tasks"
    assert events(epoch) == (Counter(), Counter())
    for part in parts:
        part.forget()
    assert events(epoch) == (Counter(), Counter()), "in a second run"
