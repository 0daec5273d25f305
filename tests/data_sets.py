"""Data sets that the tests make in their authors' formats, with sums that torchvision accepts."""

import gzip
import hashlib
import pickle
import struct
from pathlib import Path

import lmdb
import numpy as np
import numpy.typing as npt
import pytest
from torchvision import datasets

Pixels = npt.NDArray[np.uint8]


def write_mnist(
    root: Path, patch: pytest.MonkeyPatch, train: int = 20, test: int = 10
) -> dict[str, tuple[Pixels, list[int]]]:
    """MNIST's files, packed and unpacked; pixels (n, 28, 28) and classes by split."""
    folder = root / "MNIST" / "raw"
    folder.mkdir(parents=True)
    random, sums, written = np.random.default_rng(0), [], {}
    for split, count in (("train", train), ("t10k", test)):
        pixels = random.integers(0, 256, (count, 28, 28), np.uint8)
        classes = [number % 10 for number in range(count)]
        written[split] = pixels, classes
        files = {
            "images-idx3": struct.pack(">4I", 2051, count, 28, 28) + pixels.tobytes(),
            "labels-idx1": struct.pack(">2I", 2049, count) + bytes(classes),
        }
        for kind, data in files.items():
            name, packed = f"{split}-{kind}-ubyte", gzip.compress(data)
            (folder / name).write_bytes(data)
            (folder / f"{name}.gz").write_bytes(packed)
            sums.append((f"{name}.gz", _md5(packed)))
    patch.setattr(datasets.MNIST, "resources", sums)
    return written


def write_cifar10(
    root: Path, patch: pytest.MonkeyPatch, batch: int = 4
) -> tuple[Pixels, list[int]]:
    """CIFAR-10's files: pixels (n, 32, 32, 3) and classes of the training split."""
    folder = root / "cifar-10-batches-py"
    folder.mkdir(parents=True)
    random, sums = np.random.default_rng(0), {}
    rows = random.integers(0, 256, (6, batch, 3 * 32 * 32), np.uint8)
    classes = [[(place + start) % 10 for place in range(batch)] for start in range(6)]
    names = [*(f"data_batch_{number}" for number in range(1, 6)), "test_batch"]
    files: dict[str, object] = {
        name: {"data": data, "labels": own}
        for name, data, own in zip(names, rows, classes, strict=True)
    }
    files["batches.meta"] = {"label_names": ["airplane", "automobile", *map(str, range(8))]}
    for name, contents in files.items():
        (folder / name).write_bytes(pickle.dumps(contents))
        sums[name] = _md5((folder / name).read_bytes())
    patch.setattr(datasets.CIFAR10, "train_list", [[name, sums[name]] for name in names[:5]])
    patch.setattr(datasets.CIFAR10, "test_list", [["test_batch", sums["test_batch"]]])
    patch.setattr(datasets.CIFAR10, "meta", datasets.CIFAR10.meta | {"md5": sums["batches.meta"]})
    pixels = rows[:5].reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)
    return pixels, [number for own in classes[:5] for number in own]


def _md5(data: bytes) -> str:
    return hashlib.md5(data).hexdigest()


def write_lsun(folder: Path, images: dict[str, bytes]) -> Path:
    """A database of images by key, as LSUN's authors give it to people: without its lock."""
    with lmdb.open(str(folder), map_size=1 << 24) as env, env.begin(write=True) as transaction:
        for key, data in images.items():
            transaction.put(key.encode(), data)
    (folder / "lock.mdb").unlink()
    return folder
