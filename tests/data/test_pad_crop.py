"""Cuts of small images, and batches of a set in memory."""

import numpy as np
import pytest
import torch
from torchvision.transforms.functional import crop, hflip, pad

from img2img import InputError
from img2img.data.base import Sample
from img2img.data.cache import CachedDataset
from img2img.data.loader import TrainBatches
from img2img.data.pad_crop import PadCrop
from img2img.data.split import limit
from img2img.data.synthetic.patterns import Patterns


def _images(count: int = 40, size: int = 6, channels: int = 3) -> np.ndarray:
    return np.random.default_rng(0).integers(1, 256, (count, size, size, channels)).astype(np.uint8)


def test_each_cut_is_one_that_torchvision_makes() -> None:
    images = _images()
    done = PadCrop(6, pad=2).batch(images, 5)
    assert done.shape == (40, 3, 6, 6)
    seen = set()
    for before, after in zip(images, done, strict=True):
        source = pad(torch.from_numpy(before).permute(2, 0, 1), [2])
        cuts = {(t, x): crop(source, t, x, 6, 6) for t in range(5) for x in range(5)}
        found = [
            (t, x, m)
            for (t, x), c in cuts.items()
            for m in (False, True)
            if torch.equal(hflip(c) if m else c, torch.from_numpy(after))
        ]
        assert len(found) == 1, "a cut of the image with its border, mirrored or not"
        seen.add(found[0])
    assert len({(t, x) for t, x, _ in seen}) > 12
    assert {m for _, _, m in seen} == {False, True}


def test_a_seed_gives_the_same_cuts_and_another_gives_others() -> None:
    images, shift = _images(), PadCrop(6, pad=2)
    first = shift.batch(images, 1)
    assert np.array_equal(first, shift.batch(images, 1))
    assert not np.array_equal(first, shift.batch(images, 2))


def test_without_border_and_mirror_a_image_stays_as_it_is() -> None:
    images = _images(channels=1)
    assert np.array_equal(PadCrop(6, flip=False).batch(images, 0)[:, 0], images[..., 0])
    assert np.array_equal(PadCrop(6, flip=False).batch(images[..., 0], 0)[:, 0], images[..., 0]), (
        "grey without an axis of channels"
    )


def test_one_sample_is_a_batch_of_one() -> None:
    image = _images(1)[0]
    shifted = PadCrop(6, pad=1)(Sample(image, category=3), 9)
    assert np.array_equal(shifted.image.transpose(2, 0, 1), PadCrop(6, pad=1).batch(image[None], 9)[0])
    assert shifted.category == 3
    with pytest.raises(InputError, match=r"augmentation\.pad"):
        PadCrop(6)(Sample(image, np.zeros((6, 6), np.uint8)), 0)


def test_what_cannot_be_cut_is_refused() -> None:
    with pytest.raises(InputError, match="cannot be cut to 9"):
        PadCrop(9, pad=1).batch(_images(), 0)
    with pytest.raises(InputError, match="pad=-1"):
        PadCrop(9, pad=-1)


def test_batches_of_a_set_in_memory_are_those_of_its_samples() -> None:
    dataset = CachedDataset(limit(Patterns("train", count=20, size=8), 17))
    batches = TrainBatches(dataset, PadCrop(8, flip=False), batch_size=5, seed=3)
    loader = iter(batches.iterate(2))
    for step in (2, 3, 4):
        batch = batches.batch(step)
        assert torch.equal(next(loader).image, batch.image)
        assert batch.category is not None
        for image, category in zip(batch.image, batch.category, strict=True):
            same = [i for i in range(17) if np.array_equal(dataset[i].image, image.permute(1, 2, 0).numpy())]
            assert len(same) == 1
            assert dataset[same[0]].category == int(category)


def test_parts_of_batches_of_a_set_in_memory_are_those_batches_shared_out() -> None:
    batches = TrainBatches(Patterns("train", count=15, size=8), PadCrop(6, pad=1), batch_size=6, seed=3)
    whole, parts = batches.batch(4), [batches.part(i, 2).batch(4) for i in range(2)]
    assert torch.equal(torch.cat([part.image for part in parts]), whole.image)
    assert whole.category is not None
    assert [c for part in parts if part.category is not None for c in part.category] == list(whole.category)


def test_an_epoch_of_a_set_in_memory_has_every_image_once() -> None:
    dataset = Patterns("train", count=15, size=8)
    batches = TrainBatches(dataset, PadCrop(8, flip=False), batch_size=5, seed=0)
    seen = torch.cat([batches.batch(step).image.flatten(1) for step in range(3)])
    whole = torch.from_numpy(dataset.arrays()[0]).permute(0, 3, 1, 2).flatten(1)
    assert {tuple(row.tolist()) for row in seen} == {tuple(row.tolist()) for row in whole}
