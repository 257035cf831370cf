"""Images from folders, npz files and tensors. Oracles: the arrays that the test wrote, and torch-fidelity's reading."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from pforce.metrics.image_sets import ImageArray, ImageFolder, ImageSetError, ImageTensor, open_images


def pixels(count: int = 7, size: tuple[int, int] = (6, 8)) -> np.ndarray:
    """(N, H, W, 3) uint8."""
    return np.random.default_rng(0).integers(0, 256, (count, *size, 3), dtype=np.uint8)


def read(images: ImageFolder | ImageArray | ImageTensor, batch: int = 3) -> np.ndarray:
    """All batches as (N, H, W, 3); every batch but the last is full."""
    parts = list(images.batches(batch))
    assert [len(part) for part in parts[:-1]] == [batch] * (len(parts) - 1)
    assert all(part.dtype == torch.uint8 for part in parts)
    return torch.cat(parts).permute(0, 2, 3, 1).numpy()


def save(folder: Path, images: np.ndarray, mode: str | None = None) -> None:
    folder.mkdir(exist_ok=True)
    for number, image in enumerate(images):
        picture = Image.fromarray(image)
        (picture.convert(mode) if mode else picture).save(folder / f"{number:03d}.png")


def test_a_folder_in_the_order_of_its_paths(tmp_path: Path) -> None:
    images = pixels()
    save(tmp_path / "b", images[:3])
    save(tmp_path / "a", images[3:])
    (tmp_path / "notes.txt").write_text("not an image")
    found = ImageFolder(tmp_path)
    assert (len(found), found.size) == (7, (6, 8))
    assert found.notes == ("7 of its 7 images are in 2 subfolders (a, b)",)
    assert ImageFolder(tmp_path / "a").notes == ()
    np.testing.assert_array_equal(read(found), np.concatenate([images[3:], images[:3]]))


def test_a_subfolder_that_vanishes_meanwhile_is_passed_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another process removes its temporary folder between the listing of its parent and its own."""
    save(tmp_path, pixels())
    save(tmp_path / "gone", pixels())
    listed = os.scandir

    def scan(path: str) -> object:
        if Path(path).name == "gone":
            raise FileNotFoundError(path)
        return listed(path)

    monkeypatch.setattr(os, "scandir", scan)
    assert len(ImageFolder(tmp_path)) == 7


@pytest.mark.parametrize("size", [(6, 8), (130, 4)])
def test_many_batches_keep_their_order(tmp_path: Path, size: tuple[int, int]) -> None:
    """More batches than are decoded ahead; small images without threads, large ones with."""
    images = pixels(40, size)
    save(tmp_path, images)
    np.testing.assert_array_equal(read(ImageFolder(tmp_path)), images)


def test_grey_and_transparent_images_are_read_as_rgb_and_told(tmp_path: Path) -> None:
    """Oracle: torch-fidelity's own reading of the same files."""
    from torch_fidelity.datasets import ImagesPathDataset

    save(tmp_path / "grey", pixels(), "L")
    save(tmp_path / "alpha", pixels(), "RGBA")
    for folder, mode in (("grey", "L"), ("alpha", "RGBA")):
        found = ImageFolder(tmp_path / folder)
        theirs = ImagesPathDataset([str(path) for path in sorted((tmp_path / folder).iterdir())])
        expected = torch.stack([theirs[i] for i in range(len(theirs))]).permute(0, 2, 3, 1).numpy()
        np.testing.assert_array_equal(read(found), expected)
        assert any(mode in note for note in found.notes)


def test_lossy_files_are_told(tmp_path: Path) -> None:
    for number in range(2):
        Image.fromarray(pixels()[number]).save(tmp_path / f"{number}.jpg")
    assert any("lossy" in note for note in ImageFolder(tmp_path).notes)


@pytest.mark.parametrize("write", [np.savez, np.savez_compressed])
def test_an_adm_sample_file_batch_by_batch(tmp_path: Path, write: object) -> None:
    images = pixels()
    write(tmp_path / "samples.npz", images, np.arange(7))  # type: ignore[operator]
    found = ImageArray(tmp_path / "samples.npz")
    assert (len(found), found.size) == (7, (6, 8))
    np.testing.assert_array_equal(read(found), images)
    grey = images[..., :1]
    write(tmp_path / "grey.npz", grey)  # type: ignore[operator]
    np.testing.assert_array_equal(read(ImageArray(tmp_path / "grey.npz")), np.repeat(grey, 3, axis=3))
    assert ImageArray(tmp_path / "grey.npz").notes


def test_a_tensor() -> None:
    images = torch.from_numpy(pixels()).permute(0, 3, 1, 2)
    np.testing.assert_array_equal(read(ImageTensor(images)), pixels())


def test_the_hash_is_of_the_images(tmp_path: Path) -> None:
    """Equal images elsewhere have it; one changed pixel has another."""
    images = pixels()
    save(tmp_path / "a", images)
    save(tmp_path / "b", images)
    assert ImageFolder(tmp_path / "a").content_hash() == ImageFolder(tmp_path / "b").content_hash()
    images[3, 2, 1, 0] ^= 1
    save(tmp_path / "b", images)
    assert ImageFolder(tmp_path / "a").content_hash() != ImageFolder(tmp_path / "b").content_hash()


def _write(path: Path, array: np.ndarray, name: str = "arr_0") -> Path:
    np.savez(path, **{name: array})
    return path


def test_bad_files_are_refused_with_their_cure(tmp_path: Path) -> None:
    good = pixels()
    with pytest.raises(ImageSetError, match=r"channels first.*np\.transpose"):
        ImageArray(_write(tmp_path / "chw.npz", good.transpose(0, 3, 1, 2)))
    with pytest.raises(ImageSetError, match="uint8 from 0 to 255"):
        ImageArray(_write(tmp_path / "float.npz", good.astype(np.float32)))
    with pytest.raises(ImageSetError, match="at least 2"):
        ImageArray(_write(tmp_path / "one.npz", good[:1]))
    with pytest.raises(ImageSetError, match="images are"):
        ImageArray(_write(tmp_path / "flat.npz", good[0, 0]))
    np.savez(tmp_path / "names.npz", x=good, y=good)
    with pytest.raises(ImageSetError, match="arr_0"):
        ImageArray(tmp_path / "names.npz")
    with pytest.raises(ImageSetError, match="an array holds"):
        ImageArray(_write(tmp_path / "objects.npz", np.array([{}], dtype=object)))
    (tmp_path / "text.npz").write_text("no archive")
    with pytest.raises(ImageSetError, match="no npz"):
        ImageArray(tmp_path / "text.npz")
    with pytest.raises(ImageSetError, match="does not exist"):
        open_images(tmp_path / "absent")
    (tmp_path / "a.txt").touch()
    with pytest.raises(ImageSetError, match="neither"):
        open_images(tmp_path / "a.txt")


def test_bad_folders_are_refused_naming_the_file(tmp_path: Path) -> None:
    with pytest.raises(ImageSetError, match="holds 0 image files"):
        ImageFolder(tmp_path)
    save(tmp_path, pixels(1))
    with pytest.raises(ImageSetError, match="holds 1 image file "):
        ImageFolder(tmp_path)
    save(tmp_path, pixels(3))
    Image.fromarray(pixels(1, (5, 5))[0]).save(tmp_path / "zz.png")
    with pytest.raises(ImageSetError, match=r"zz\.png: 5×5 pixels, but 000\.png has 8×6"):
        ImageFolder(tmp_path)
    (tmp_path / "zz.png").write_bytes((tmp_path / "000.png").read_bytes()[:60])
    with pytest.raises(ImageSetError, match=r"zz\.png: it cannot be decoded"):
        read(ImageFolder(tmp_path))


def test_a_bad_tensor_is_refused() -> None:
    for bad in (torch.zeros(4, 3, 8, 8), torch.zeros(1, 3, 8, 8, dtype=torch.uint8), torch.zeros(4, 8, 8)):
        with pytest.raises(ImageSetError, match="uint8 with N ≥ 2"):
            ImageTensor(bad)
