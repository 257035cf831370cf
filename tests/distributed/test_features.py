"""Features read on several processes. Real gloo processes; oracle: one process, and numpy on all features."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor

from pforce.metrics.detectors import load_detector
from pforce.metrics.features import read_padded
from pforce.metrics.frechet import MomentSums, distance_of_moments, frechet_distance, moments

pytestmark = pytest.mark.process

IMAGES, BATCH = 203, 16


def images(seed: int) -> Tensor:
    """(203, 3, 32, 32) smooth random images."""
    coarse = torch.rand(IMAGES, 3, 8, 8, generator=torch.Generator().manual_seed(seed))
    return (torch.nn.functional.interpolate(coarse, size=32, mode="bilinear") * 255).to(torch.uint8)


def _rank(rank: int, workers: int, folder: str) -> None:
    """Reads every `workers`-th batch, adds up with the others, and writes what it got."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=workers)
    detector = load_detector("openmoji")
    sums = MomentSums(detector.feature_size)
    for batch in images(0).split(BATCH)[rank::workers]:
        sums.add(read_padded(detector, batch, BATCH).features)
    own = sums.n
    total = sums.all_reduce().moments()
    np.savez(f"{folder}/rank{rank}.npz", mean=total.mean, covariance=total.covariance, n=total.n, own=own)
    dist.destroy_process_group()


@pytest.mark.timeout(600)
@pytest.mark.parametrize("workers", [1, 2, 3])
def test_the_distance_of_one_two_and_three_workers_is_the_same(tmp_path: Path, workers: int) -> None:
    """1e-9 relative, on every rank."""
    mp.start_processes(_rank, (workers, str(tmp_path)), nprocs=workers, start_method="forkserver")
    detector = load_detector("openmoji")
    features = torch.cat([read_padded(detector, batch, BATCH).features for batch in images(0).split(BATCH)])
    reference = torch.cat([read_padded(detector, batch, BATCH).features for batch in images(1).split(BATCH)])
    expected = frechet_distance(features, reference)
    counts = []
    for rank in range(workers):
        with np.load(tmp_path / f"rank{rank}.npz") as found:
            mean, covariance, n = found["mean"], found["covariance"], int(found["n"])
            counts.append(int(found["own"]))
        assert n == IMAGES
        distance = distance_of_moments(moments(features)._replace(mean=mean, covariance=covariance), moments(reference))
        assert distance == pytest.approx(expected, rel=1e-9)
    assert sum(counts) == IMAGES
    assert workers == 1 or max(counts) < IMAGES
    np.testing.assert_allclose(mean, features.double().numpy().mean(0), rtol=1e-12)
