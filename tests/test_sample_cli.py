"""`pforce sample` and `pforce checkpoint` as users type them, in real processes. Oracles: files, codes, messages."""

from __future__ import annotations

import os
import re
import signal
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from pforce import cli
from pforce.models import ModelConfig, build, load_published, save_model, save_published
from pforce.models.autoencoder import load_decoder
from pforce.trial.source import load_source
from tests.support.starts import PFORCE, Start, pforce

pytestmark = pytest.mark.timeout(600)


@pytest.fixture(scope="module")
def latent(tmp_path_factory) -> Path:
    """A published checkpoint of a small PFT on latents."""
    path = tmp_path_factory.mktemp("latent") / "pft.ckpt"
    model = build(ModelConfig(depth=1, width=16, heads=2, patch=2, image_size=(8, 8), channels=4, classes=5))
    torch.nn.init.normal_(model.final_layer.linear.weight, std=0.1)
    save_published(model, path)
    return path


@pytest.fixture(scope="module")
def decoder(tmp_path_factory) -> Path:
    """A real autoencoder in diffusers' format, with random weights: 4 channels, 8 times smaller."""
    from diffusers import AutoencoderKL

    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("vae")
    AutoencoderKL(
        block_out_channels=(8, 8, 8, 8), down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4, norm_num_groups=4, latent_channels=4,
    ).save_pretrained(folder)  # fmt: skip
    return folder


@pytest.mark.process
def test_everything_at_once(trained, tmp_path):
    command = ("sample", str(trained), "--sampler", "dual_loop", "--nfe", "8", "--count", "12", "--classes", "2", "7",
               "--sampler.guidance.scale", "1.5", "--save", "grid", "images", "npz", "--save-maps", "--animate",
               "--show", "2", "--out", "drawn")  # fmt: skip
    result = pforce(*command, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert "8 NFE, 16 forward passes" in result.stdout
    assert "GFLOPs" in result.stdout
    out = tmp_path / "drawn"
    with np.load(out / "samples.npz") as arrays:
        assert arrays["arr_0"].shape == (12, 32, 32, 3)
        assert list(arrays["labels"]) == [2, 7] * 6
    with np.load(out / "maps.npz") as arrays:
        assert arrays["sigma"].shape == (12, 8, 4, 4)
    with Image.open(out / "sampling.gif") as animation:
        assert animation.n_frames == 8
        assert animation.size[0] > 3 * 128
    assert len(list((out / "images").glob("*.png"))) == 12
    again = pforce(*command, cwd=tmp_path)
    assert "All images were there already" in again.stdout
    longer = pforce(*[word if word != "12" else "14" for word in command], cwd=tmp_path)
    assert longer.returncode == 0, longer.stderr
    assert "2 images in" in longer.stdout
    assert len(list((out / "images").glob("*.png"))) == 14
    other = pforce(*command[:-1], "drawn", "--seed", "3", cwd=tmp_path)
    assert other.returncode == 2
    assert "seed 0, now 3" in other.stderr


def blocks(storage: Path) -> dict[str, int]:
    """Name of each block of images → last image, of a storage."""
    return {path.name: int(re.split(r"[-.]", path.name)[1]) for path in storage.glob("drawings/*/images/*.npz")}


def interrupted(arguments: list[str], storage: Path, sent: signal.Signals) -> int:
    """Exit code of a call that gets a signal after 70 images."""
    process = Start([PFORCE, *arguments, "--storage", str(storage)], log=Path(os.devnull))
    while max(blocks(storage).values(), default=0) < 70:
        time.sleep(0.02)
        assert process.poll() is None, "it ended before it could be interrupted"
    process.send_signal(sent)
    return process.wait()


MANY = ["--nfe", "16", "--count", "200", "--batch", "4", "--save", "npz"]


@pytest.mark.process
def test_a_stopped_call_says_so_and_keeps_what_it_drew(trained, tmp_path):
    assert interrupted(["sample", str(trained), *MANY], tmp_path / "stopped", signal.SIGTERM) == 4
    assert 70 <= max(blocks(tmp_path / "stopped").values()) < 200
    assert not list((tmp_path / "stopped").rglob(".tmp*"))


@pytest.mark.process
def test_a_killed_call_goes_on_where_it_was(trained, tmp_path):
    """SIGKILL in the middle; the same command keeps the finished blocks and ends with the undisturbed images."""
    arguments = ["sample", str(trained), *MANY]
    interrupted(arguments, tmp_path / "killed", signal.SIGKILL)
    kept = {path: path.stat().st_mtime_ns for path in (tmp_path / "killed").glob("drawings/*/images/0-64.*.npz")}
    assert kept
    went_on = pforce(*arguments, "--storage", str(tmp_path / "killed"))
    assert went_on.returncode == 0
    assert int(re.search(r"(\d+) images in", went_on.stdout)[1]) <= 136
    assert all(path.stat().st_mtime_ns == written for path, written in kept.items())
    assert pforce(*arguments, "--storage", str(tmp_path / "whole")).returncode == 0
    with (
        np.load(tmp_path / "killed" / "samples" / "samples.npz") as a,
        np.load(tmp_path / "whole" / "samples" / "samples.npz") as b,
    ):
        assert np.array_equal(a["arr_0"], b["arr_0"])


@pytest.mark.process
def test_published_latents_and_their_decoder(latent, decoder, tmp_path):
    """Without a decoder the latents are written; with one their pictures, decoded from the same latents."""
    common = ("sample", str(latent), "--nfe", "4", "--count", "3", "--save", "npz", "grid")
    plain = pforce(*common, "--out", str(tmp_path / "latents"))
    assert plain.returncode == 0, plain.stderr
    with np.load(tmp_path / "latents" / "samples.npz") as arrays:
        latents = torch.from_numpy(arrays["latents"])
    assert latents.shape == (3, 4, 8, 8)
    pictures = pforce(*common, "--decoder", str(decoder), "--animate", "--out", str(tmp_path / "pixels"))
    assert pictures.returncode == 0, pictures.stderr
    with np.load(tmp_path / "pixels" / "samples.npz") as arrays:
        images = arrays["arr_0"]
    assert images.shape == (3, 64, 64, 3)
    decoded = load_decoder(decoder, torch.device("cpu"), channels=4)(latents)
    expected = (decoded * 127.5 + 127.5).round().permute(0, 2, 3, 1).numpy()
    assert np.abs(images - expected).max() <= 1
    assert (tmp_path / "pixels" / "sampling.gif").exists()


REFUSED = [
    (("{trained}", "--captions", "a red fox"), "text-conditioned"),
    (("{trained}", "--classes", "11"), "must be a number from 0 to 10"),
    (("{trained}", "--classes", "-1"), "must be a number from 0 to 10"),
    (("{trained}", "--sampler", "dual_loop", "--sampler.quantile", "0"), "quantile = 0.0: must be between 0 and 1"),
    (("{trained}", "--sampler", "dual_loop", "--sampler.quantile", "1"), "quantile = 1.0: must be between 0 and 1"),
    (("{trained}", "--sampler", "dual_loop", "--nfe", "3"), "must be ≥ 4 for dual_loop"),
    (("{trained}", "--sampler.context-ratio", "2"), "sampler.context_ratio = 2.0: does not apply to"),
    (("{trained}", "--count", "0"), "count = 0: must be ≥ 1"),
    (("{trained}", "--batch", "0"), "batch = 0: must be ≥ 1"),
    (("{trained}", "--decoder", "vae"), "samples pixels, not latents"),
    (("{latent}", "--animate"), "without a --decoder"),
    (("{latent}", "--decoder", "nowhere"), "is not a folder with an autoencoder"),
    (("nowhere.ckpt",), "does not exist"),
    (("openmoji32_micro", "--storage", "nothing"), "holds no sweeps"),
]


@pytest.fixture
def refusal(tmp_path, monkeypatch, capsys):
    """The message and exit code of the entry point, in this process: without the time that imports take."""

    def call(*arguments: str) -> str:
        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr(sys, "argv", ["pforce", *arguments])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        assert ended.value.code == 2
        return " ".join(capsys.readouterr().err.split())

    return call


@pytest.mark.parametrize(("arguments", "message"), REFUSED)
def test_bad_input_is_refused_before_anything_is_drawn(arguments, message, trained, latent, refusal):
    told = refusal("sample", *(word.format(trained=trained, latent=latent) for word in arguments))
    assert message in told
    assert not list(Path().glob("*/drawings"))


def test_a_model_without_label_dropout_is_not_guided(tmp_path, refusal):
    config = ModelConfig(depth=1, width=16, heads=2, patch=8, channels=3, classes=5, class_dropout=0.0)
    save_model(build(config), tmp_path / "m.safetensors")
    assert "without label dropout" in refusal("sample", "m.safetensors", "--sampler.guidance.scale", "2")


@pytest.mark.process
def test_checkpoints_go_out_and_come_in_bit_for_bit(trained, tmp_path):
    exported = pforce("checkpoint", "export", str(trained), str(tmp_path / "m.ckpt"))
    assert exported.returncode == 0, exported.stderr
    imported = pforce("checkpoint", "import", str(tmp_path / "m.ckpt"), str(tmp_path / "m.safetensors"))
    assert imported.returncode == 0, imported.stderr
    source = load_source(trained)
    assert load_source(tmp_path / "m.safetensors").sha256 == source.sha256
    assert all(
        torch.equal(a, b)
        for a, b in zip(source.model.parameters(), load_published(tmp_path / "m.ckpt").parameters(), strict=True)
    )
    verified = pforce("checkpoint", "verify", str(tmp_path / "m.safetensors"))
    assert verified.returncode == 0
    assert source.sha256 in verified.stdout
    again = pforce("checkpoint", "export", str(trained), str(tmp_path / "m.ckpt"))
    assert again.returncode == 2
    assert "is there already" in again.stderr
