"""`pforce evaluate`. Oracles: the trial's own evaluation, and other paths to the same images."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from pforce import results
from pforce.base.console import DONE, make_console
from pforce.base.errors import ConfigError, FieldError, InputError
from pforce.commands.evaluate import evaluate
from pforce.commands.evaluation_plan import plan_model
from pforce.commands.sample import Arguments as SampleArguments
from pforce.commands.sample import sample
from pforce.metrics.detectors import load_detector
from pforce.metrics.image_sets import ImageSetError
from pforce.metrics.reference import StatisticsError
from pforce.models import ModelConfig, build, save_model, save_published
from pforce.records.ledger import Ledger
from pforce.storage import Storage
from pforce.tracking import default_uri
from tests.support.asked import asked
from tests.support.starts import pforce

pytestmark = [pytest.mark.timeout(600), pytest.mark.process]


def found(storage: Path, out: str = "") -> dict[str, object]:
    """The newest evaluation.json below a storage folder, or of an output folder."""
    paths = storage.glob(f"{out or 'evaluations/*'}/evaluation.json")
    return json.loads(max(paths, key=lambda path: path.stat().st_mtime).read_text())


def measure(target: object, storage: Path, **options: object) -> dict[str, float]:
    """Metrics of a call that must succeed."""
    assert evaluate(asked(target, storage, **options)) == DONE
    return found(storage)["metrics"]  # type: ignore[return-value]


@pytest.fixture(scope="module")
def recorded(trained: Path) -> dict[str, float]:
    """What the trial itself measured."""
    ledger = Ledger(Storage.open(trained.parents[1]))
    return {name: value for record in ledger.all() for name, value in record.numbers().items()}


@pytest.fixture(scope="module")
def drawn(trained: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One model's images, as npz and PNG files."""
    out = tmp_path_factory.mktemp("drawn") / "out"
    assert sample(SampleArguments(model=str(trained), count=24, batch=8, out=out, save=("npz", "images"))) == DONE
    return out


def test_a_model_is_measured_as_its_trial_was(trained, recorded, tmp_path) -> None:
    """Bit for bit: the same images, seed, sampler and reference. And every promised file and record."""
    options = {"images": 8, "held_out": 16, "metrics": ("frechet",), "batch": 64}
    metrics = measure(trained, tmp_path, measure=("images", "loss", "difficulty", "context"), **options)
    for name in ("fd/openmoji", "fd/openmoji_low", "val/loss", "difficulty/pearson_t0.60", "calibration/error_t0.20",
                 "cost/nfe", "cost/flops_per_image"):  # fmt: skip
        assert metrics[name] == recorded[name], name
    assert len([name for name in metrics if name.startswith("difficulty/pearson")]) == 3 * 19
    record = found(tmp_path)["about"]
    for name in ("detector_sha256", "reference_identity", "images", "sampler.name", "sampler.num_function_evaluations",
                 "sampler.guidance.scale", "weights", "seed", "sha256", "data_hash"):  # fmt: skip
        assert record[name] not in (None, ""), name
    (run,) = results.runs(default_uri(tmp_path), "evaluations").to_dict("records")
    assert (run["status"], run["fd/openmoji"]) == ("FINISHED", metrics["fd/openmoji"])
    assert str(run["detector_sha256"]) == record["detector_sha256"]
    (folder,) = (tmp_path / "evaluations").iterdir()
    names = {path.name for path in folder.glob("*.png")}
    assert names == {
        "samples.png", "difficulty.png", "difficulty_scatter.png", "difficulty_by_class.png", "calibration.png",
        "uncertainty_maps.png", "context_helps.png", "context_uncertainty.png",
    }  # fmt: skip
    stored = {path.name for path in (tmp_path / "artifacts").rglob("*.png")}
    assert names <= stored
    curves = found(tmp_path)["curves"]
    assert [curve["t"] for curve in curves["context_helps"]] == [0.1, 0.2, 0.3]


def test_the_number_of_workers_changes_no_number(trained, tmp_path, ray_cluster) -> None:
    """One, and two in each executor that has several: equal to the last bit, which is more than the 1e-9 promised."""
    options = {"images": 70, "batch": 8, "measure": ("images",)}
    found_by = [
        measure(trained, tmp_path / executor, workers=workers, executor=executor, **options)
        for workers, executor in ((1, "local"), (2, "processes"), (2, "tune"))
    ]
    names = [name for name in found_by[0] if not name.startswith("cost/")]
    for other in found_by[1:]:
        assert [other[name] for name in names] == [found_by[0][name] for name in names]


def test_images_from_files_are_measured_as_those_of_the_sampler(trained, drawn, tmp_path) -> None:
    """The model, its npz and its PNG files: one distance, bit for bit, but for the classes that are drawn."""
    options = {"data": None, "reference": str(drawn / "images"), "detector": "openmoji"}
    shutil.copytree(drawn / "images", tmp_path / "copy")
    npz = measure(drawn / "samples.npz", tmp_path / "a", **options)
    png = measure(tmp_path / "copy", tmp_path / "b", **options)
    names = [name for name in npz if not name.startswith("cost/")]
    assert [npz[name] for name in names] == [png[name] for name in names]
    assert npz["fd/openmoji"] == pytest.approx(0, abs=1e-6)
    assert npz["precision/openmoji"] == 1


def test_a_stopped_evaluation_goes_on_with_what_is_missing(trained, tmp_path, capsys) -> None:
    """Oracle: times of the batches' files, and the number of the undisturbed call."""
    options = {"images": 160, "measure": ("images",), "out": tmp_path / "out"}
    storage = tmp_path / "whole"
    evaluate(asked(trained, storage, **options))
    whole = json.loads((tmp_path / "out" / "evaluation.json").read_text())["metrics"]
    blocks = sorted(storage.glob("drawings/*/openmoji-*/*.npz"))
    assert [path.name.split(".")[0] for path in blocks] == ["0-64", "128-192", "64-128"]
    before = [path.stat().st_mtime_ns for path in blocks]
    blocks[1].unlink()
    for path in storage.glob("records/*/*.json"):
        path.unlink()
    assert evaluate(asked(trained, storage, **options)) == DONE
    after = [path.stat().st_mtime_ns for path in blocks]
    assert (after[0], after[2]) == (before[0], before[2])
    assert after[1] > before[1]
    metrics = json.loads((tmp_path / "out" / "evaluation.json").read_text())["metrics"]
    assert metrics["fd/openmoji"] == whole["fd/openmoji"]
    assert evaluate(asked(trained, storage, again=True, **options)) == DONE
    again = sorted(storage.glob("drawings/*/openmoji-*/*.npz"))
    assert [path.name for path in again] == [path.name for path in blocks], "the same features, bit for bit"
    assert all(path.stat().st_mtime_ns > time for path, time in zip(again, after, strict=True))


def test_a_folder_of_the_users_holds_the_last_evaluation(trained, drawn, tmp_path, capsys) -> None:
    """One --out for two references: each call tells its own numbers."""
    options = {"detector": "openmoji", "out": tmp_path / "out"}
    few = tmp_path / "few"
    shutil.copytree(drawn / "images", few)
    for path in sorted(few.iterdir())[6:]:
        path.unlink()

    def distance(reference: Path) -> float:
        assert evaluate(asked(drawn / "samples.npz", tmp_path, reference=str(reference), **options)) == DONE
        return json.loads((tmp_path / "out" / "evaluation.json").read_text())["metrics"]["fd/openmoji"]

    first, second = distance(drawn / "images"), distance(few)
    assert first != second
    assert distance(drawn / "images") == first


def test_a_model_file_does_not_choose_what_code_runs(trained, tmp_path) -> None:
    """A detector that is a function's path is taken from the command line only."""
    folder = tmp_path / "copy"
    shutil.copytree(trained, folder)
    experiment = json.loads((folder / "experiment.json").read_text())
    experiment["evaluation"]["detector"] = "os:getpid"
    (folder / "experiment.json").write_text(json.dumps(experiment))
    refused(folder, tmp_path / "runs", "if you trust it", ConfigError, images=8)


def test_few_images_lack_what_needs_more(drawn, tmp_path) -> None:
    """Three images have a distance, and no precision: left out, with a note."""
    few = tmp_path / "few"
    shutil.copytree(drawn / "images", few)
    for path in sorted(few.iterdir())[3:]:
        path.unlink()
    metrics = measure(few, tmp_path / "runs", reference=str(drawn / "images"), detector="openmoji", extrapolate=True)
    assert "fd/openmoji" in metrics
    assert "precision/openmoji" not in metrics
    assert "fd_infinity/openmoji" not in metrics
    notes = " ".join(found(tmp_path / "runs")["notes"])  # type: ignore[arg-type]
    assert "precision_recall: left out, as 3 images are fewer than the 4" in notes
    assert "frechet_infinity: left out" in notes


def test_what_was_measured_is_shown_again(trained, tmp_path, capsys) -> None:
    options = {"images": 8, "measure": ("images",)}
    first = measure(trained, tmp_path, **options)
    capsys.readouterr()
    again = measure(trained, tmp_path, **options)
    assert again == {name: value for name, value in first.items() if name != "cost/evaluation_seconds"}
    shown = capsys.readouterr().out
    assert "measured before" in shown
    assert f"{first['fd/openmoji']:.4f}" in shown
    assert len(results.runs(default_uri(tmp_path))) == 1
    measure(trained, tmp_path, **options, seed=1)
    assert len(results.runs(default_uri(tmp_path))) == 2


def test_statistics_are_written_and_read(trained, drawn, tmp_path) -> None:
    """The distance to a stored file is that to its images; precision needs images, and is left out with a note."""
    stored = tmp_path / "stats.npz"
    options = {"data": None, "detector": "openmoji"}
    other = tmp_path / "other"
    shutil.copytree(drawn / "images", other)
    for path in sorted(other.iterdir())[:12]:
        path.unlink()
    metrics = measure(drawn / "samples.npz", tmp_path, reference=str(other), save_reference=stored, **options)
    again = measure(drawn / "samples.npz", tmp_path / "b", reference=str(stored), **options)
    assert again["fd/openmoji"] == pytest.approx(metrics["fd/openmoji"], rel=1e-9)
    with np.load(stored) as arrays:
        only = {name: arrays[name] for name in ("mu", "sigma", "detector", "detector_sha256")}
    np.savez(tmp_path / "moments.npz", **only)
    moments = measure(drawn / "samples.npz", tmp_path / "c", reference=str(tmp_path / "moments.npz"), **options)
    assert moments["fd/openmoji"] == pytest.approx(metrics["fd/openmoji"], rel=1e-9)
    assert "precision/openmoji" not in moments
    assert any("precision_recall: left out" in note for note in found(tmp_path / "c")["notes"])  # type: ignore[attr-defined]


def refused(target: object, storage: Path, match: str, kind: type[Exception], **options: object) -> None:
    with pytest.raises(kind, match=match):
        evaluate(asked(target, storage, **options))
    assert not list(storage.glob("drawings/*/*"))


def test_bad_input_is_refused_before_anything_is_drawn(trained, drawn, tmp_path) -> None:
    storage = tmp_path / "runs"
    images = np.zeros((4, 3, 32, 32), np.uint8)
    np.savez(tmp_path / "chw.npz", images)
    refused(tmp_path / "chw.npz", storage, "channels first", ImageSetError, data="openmoji32_micro")
    refused(drawn / "samples.npz", storage, "name one with --data", ConfigError, detector="openmoji")
    refused(drawn / "samples.npz", storage, "detector: not given", ConfigError, reference=str(drawn / "images"))
    np.savez(tmp_path / "small.npz", np.zeros((4, 16, 16, 3), np.uint8))
    refused(
        tmp_path / "small.npz", storage, "16×16 pixels, the reference has 32×32", ConfigError,
        reference=str(drawn / "images"), detector="openmoji",
    )  # fmt: skip
    detector = load_detector("fashion-mnist")
    np.savez(
        tmp_path / "fashion.npz", mu=np.zeros(64), sigma=np.eye(64), detector="fashion-mnist",
        detector_sha256=detector.sha256,
    )  # fmt: skip
    refused(trained, storage, "of detector fashion-mnist", StatisticsError, reference=str(tmp_path / "fashion.npz"))
    refused(trained, storage, "images = 1", FieldError, images=1)
    refused(trained, storage, "workers = 0", FieldError, workers=0)
    refused(trained, storage, "does not exist", ImageSetError, reference=str(tmp_path / "absent"))
    refused(drawn / "samples.npz", storage, "measure = .*does not apply", FieldError, measure=("difficulty",))
    refused(drawn / "samples.npz", storage, "images = 5", FieldError, images=5)
    refused(
        drawn / "samples.npz", storage, "sampler.quantile = 0.3: does not apply to images", FieldError, quantile=0.3
    )
    refused(
        trained,
        storage,
        "sampler.quantile = 0.3: does not apply to euler: it is a setting of dual_loop",
        FieldError,
        quantile=0.3,
    )
    refused(trained, storage, "ends in .npz", FieldError, save_reference=tmp_path / "reference.bin")
    folder = tmp_path / "mixed"
    shutil.copytree(drawn / "images", folder)
    Image.new("RGB", (16, 16)).save(folder / "zz.png")
    with pytest.raises(InputError, match=r"zz\.png: 16×16 pixels"):
        evaluate(asked(folder, storage, detector="openmoji", reference=str(drawn / "images")))


def test_a_sit_has_no_difficulty(tmp_path) -> None:
    """By default it is measured without; asked for, it is refused."""
    path = tmp_path / "sit.safetensors"
    config = ModelConfig(
        depth=1, width=16, heads=2, patch=8, image_size=(32, 32), channels=3, classes=11, difficulty_head=False
    )
    save_model(build(config, generator=torch.Generator().manual_seed(0)), path)
    options = {"data": "openmoji32_micro", "images": 8, "held_out": 16, "nfe": 2}
    console = make_console()
    planned = plan_model(asked(path, tmp_path, **options), console)
    assert planned.model is not None
    assert planned.model.request.loss
    assert not planned.model.request.difficulty
    refused(path, tmp_path, "no difficulty head", FieldError, measure=("difficulty",), **options)
    assert (
        planned.identity
        != plan_model(
            asked(path, tmp_path, **{**options, "nfe": 3}),
            console,
        ).identity
    )


def test_the_help_explains() -> None:
    shown = pforce("evaluate", "--help")
    assert shown.returncode == 0
    for word in (
        "best:ltg_grid",
        "validation or train images",
        "--evaluation.detector-weights",
        "--evaluation.no-extrapolate",
        "FID",
    ):
        assert word in shown.stdout
    wrong = pforce("evaluate", "absent/folder")
    assert wrong.returncode == 2
    assert "does not exist" in wrong.stderr


def test_a_model_of_latents_is_measured_through_its_decoder(tmp_path) -> None:
    """Real decoder with random weights. Another decoder is another evaluation; without one it is refused."""
    from diffusers import AutoencoderKL

    model = build(ModelConfig(depth=1, width=16, heads=2, patch=2, image_size=(8, 8), channels=4, classes=5))
    torch.nn.init.normal_(model.final_layer.linear.weight, std=0.1)
    save_published(model, tmp_path / "pft.ckpt")
    for seed in (0, 1):
        torch.manual_seed(seed)
        AutoencoderKL(
            block_out_channels=(8, 8, 8, 8), down_block_types=("DownEncoderBlock2D",) * 4,
            up_block_types=("UpDecoderBlock2D",) * 4, norm_num_groups=4, latent_channels=4,
        ).save_pretrained(tmp_path / f"vae{seed}")  # fmt: skip
    real = torch.randint(0, 256, (6, 64, 64, 3), dtype=torch.uint8).numpy()
    np.savez(tmp_path / "real.npz", real)
    options = {"reference": str(tmp_path / "real.npz"), "detector": "openmoji", "images": 6, "nfe": 2}
    storage = tmp_path / "runs"
    refused(tmp_path / "pft.ckpt", storage, "give their --decoder", ConfigError, **options)
    first = measure(tmp_path / "pft.ckpt", storage, decoder=tmp_path / "vae0", **options)
    second = measure(tmp_path / "pft.ckpt", storage, decoder=tmp_path / "vae1", **options)
    assert first["fd/openmoji"] != second["fd/openmoji"]
    assert len(results.runs(default_uri(storage), "evaluations")) == 2
