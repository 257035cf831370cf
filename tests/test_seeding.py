"""Seeding. Oracle: recorded values (a change would change every result) and independence of batch and order."""

from __future__ import annotations

import torch

from pforce import seeding


def test_keys_are_stable_and_distinct():
    assert seeding.seed_of("training", 0, 1) == 6156510339211429867
    keys = [("a", 1), ("a", 11), ("a1", 1), ("a", 1, 1), ("a", "1"), ("b", 1)]
    assert len({seeding.seed_of(*key) for key in keys}) == len(keys)


def test_noise_belongs_to_the_image():
    whole = seeding.noise_for_images(3, 0, 6, (2, 2))
    parts = torch.cat([seeding.noise_for_images(3, 0, 1, (2, 2)), seeding.noise_for_images(3, 1, 5, (2, 2))])
    assert torch.equal(whole, parts)
    assert not torch.equal(whole[0], whole[1])
    assert not torch.equal(whole, seeding.noise_for_images(4, 0, 6, (2, 2)))
