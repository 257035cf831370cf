"""Sampling jobs. Oracle: the images drawn one call of the sampler at a time, without jobs, batches or files."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch

from pforce import seeding
from pforce.base.console import make_console
from pforce.base.errors import FieldError
from pforce.images import to_uint8
from pforce.orchestration.sample import run_job
from pforce.results import drawn
from pforce.sampling import DualLoop, Euler
from pforce.trial.draw import Span
from pforce.trial.jobs import Drawer, Job, JobError, Keeper, blocks_of, claim, drawn_batches, ends_of, missing
from pforce.trial.source import SourceError, load_source

CONSOLE = make_console(width=160)
SAMPLER = DualLoop(num_function_evaluations=8, inner_steps=2)


@pytest.fixture
def job(trained, tmp_path) -> Job:
    source = load_source(trained)
    return Job(
        str(source.path), source.sha256, SAMPLER, classes=(3, 1, 4), count=10, storage=str(tmp_path / "runs"), seed=5,
        batch=4, maps=True,
    )  # fmt: skip


def images_of(job):
    return np.concatenate([batch["images"] for batch in drawn_batches(job)])


def test_a_job_draws_what_the_sampler_draws(job):
    """Image i: noise of (seed, i), class classes[i mod 3]. One at a time, up to one level of rounding."""
    spent = run_job(job, CONSOLE)
    assert (spent.images, spent.num_function_evaluations, spent.forward_passes) == (10, 8, 8)
    images = images_of(job)
    assert images.shape == (10, 32, 32, 3)
    model = load_source(job.source).model
    for i in (0, 5, 9):
        x0 = seeding.noise_for_images(5, i, 1, (3, 32, 32))
        x1 = SAMPLER.sample(model, x0, torch.tensor([(3, 1, 4)[i % 3]]), seed=5, first=i)
        expected = to_uint8(x1)[0].permute(1, 2, 0).numpy().astype(int)
        assert np.abs(images[i] - expected).max() <= 1
    labels = np.concatenate([batch["labels"] for batch in drawn_batches(job)])
    assert list(labels) == [3, 1, 4] * 3 + [3]


def elsewhere(job, tmp_path, **changes):
    return dataclasses.replace(job, storage=str(tmp_path / "elsewhere"), **changes)


def test_the_batch_does_not_change_the_images(job, tmp_path):
    """One that crosses the ends of blocks too."""
    longer = dataclasses.replace(job, count=150)
    run_job(longer, CONSOLE)
    for batch in (7, 64, 100, 128):
        other = dataclasses.replace(longer, storage=str(tmp_path / str(batch)), batch=batch)
        run_job(other, CONSOLE)
        difference = np.abs(images_of(longer).astype(int) - images_of(other))
        assert difference.max() <= 1
        assert (difference > 0).mean() < 0.001


def test_a_stopped_job_goes_on_and_a_finished_one_is_left_alone(job, tmp_path):
    """A pass that was kept is not drawn again; one whose forerunner is not there waits for it."""
    whole = elsewhere(job, tmp_path)
    run_job(whole, CONSOLE)
    drawer, keeper = Drawer(job, torch.device("cpu")), Keeper(job, ends_of(job, [0]))
    keeper.take(drawer(Span(4, 8)))
    assert missing(job) == [[Span(0, 4), Span(4, 8), Span(8, 12)]]
    keeper.take(drawer(Span(0, 4)))
    assert missing(job) == [[Span(8, 12)]]
    assert run_job(job, CONSOLE).images == 2
    assert np.array_equal(images_of(job), images_of(whole))
    assert run_job(job, CONSOLE).images == 0
    for path in keeper.blocks["images"].folder.glob("*.npz"):
        path.unlink()
    with pytest.raises(JobError, match="lacks images 0 to 7"):  # they never begin at image 8
        keeper.take(drawer(Span(8, 12)))


def test_a_job_can_be_made_longer_and_shorter(job):
    """Ten images in batches of four: the last batch was drawn whole, so fourteen begin with the same ten."""
    run_job(job, CONSOLE)
    ten = images_of(job)
    longer = dataclasses.replace(job, count=14)
    assert missing(longer) == [[Span(12, 16)]]
    run_job(longer, CONSOLE)
    fourteen = images_of(longer)
    assert len(fourteen) == 14
    assert np.array_equal(fourteen[:10], ten)
    assert np.array_equal(images_of(dataclasses.replace(job, count=3)), ten[:3])


def test_a_damaged_block_is_drawn_again(job):
    """A block of the maps alone, and one of the images: equal images again."""
    run_job(job, CONSOLE)
    ten = images_of(job)
    for blocks in blocks_of(job).values():
        (path,) = blocks.folder.glob("*.npz")
        content = path.read_bytes()
        path.write_bytes(content[:900] + bytes([content[900] ^ 1]) + content[901:])
        with pytest.warns(UserWarning, match="damaged, drawn again"):
            assert run_job(job, CONSOLE).images == 10
        assert np.array_equal(images_of(job), ten)


def test_a_folder_holds_one_request(job, tmp_path):
    claim(tmp_path, job)
    other = dataclasses.replace(job, seed=6, sampler=Euler(8))
    with pytest.raises(JobError, match=r"sampler\.name 'dual_loop', now 'euler'.*seed 5, now 6"):
        claim(tmp_path, other)


def test_images_that_were_not_drawn_are_not_written(job, tmp_path):
    with pytest.raises(JobError, match="lacks images 0 to 9"):
        drawn.write_grid(job, tmp_path / "grid.png")


def test_other_weights_are_refused(job):
    with pytest.raises(SourceError, match="now holds other weights"):
        Drawer(dataclasses.replace(job, sha256="0" * 64), torch.device("cpu"))


@pytest.mark.parametrize(("field", "value"), [("count", 0), ("batch", 0), ("seed", -1), ("classes", ())])
def test_bad_jobs_are_refused(job, field, value):
    with pytest.raises(FieldError, match=field):
        dataclasses.replace(job, **{field: value})


def test_outputs(job, tmp_path):
    """ADM's evaluator reads arr_0, uint8 NHWC; maps are those of every patch at every evaluation."""
    from PIL import Image

    run_job(job, CONSOLE)
    drawn.write_npz(job, tmp_path / "samples.npz")
    with np.load(tmp_path / "samples.npz") as arrays:
        assert arrays["arr_0"].dtype == np.uint8
        assert np.array_equal(arrays["arr_0"], images_of(job))
        assert list(arrays["labels"]) == [3, 1, 4] * 3 + [3]
    drawn.write_images(job, tmp_path / "images")
    assert np.array_equal(np.asarray(Image.open(tmp_path / "images" / "000007.png")), images_of(job)[7])
    assert len(list((tmp_path / "images").iterdir())) == 10
    drawn.write_grid(job, tmp_path / "grid.png")
    assert Image.open(tmp_path / "grid.png").size[0] > 4 * 64
    drawn.write_maps(job, tmp_path / "maps.npz")
    with np.load(tmp_path / "maps.npz") as arrays:
        assert arrays["timesteps"].shape == arrays["sigma"].shape == (10, 8, 4, 4)
        assert (arrays["timesteps"][:, -1] == 1).all()
        assert (arrays["timesteps"][:, 0] > 0).all()
        # Of 16 patches, 6 are ahead after the first of two evaluations of a step.
        assert ((arrays["timesteps"][:, 0] == 0.25).sum(axis=(1, 2)) == 6).all()
        assert (arrays["sigma"] > 0).all()
