"""Weights in files: written whole or not at all, and read without running any code in them."""

from __future__ import annotations

import contextlib
import re
import warnings
import zipfile
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError
from torch import nn

from dcgan.nets.conditional import numbered
from dcgan.nets.models import Discriminator, Generator
from dcgan.options import RunLabels
from dcgan.rundir.folder import EXPORTED, RunFolder
from pipeline.errors import UserError, first_line
from pipeline.files import replacing
from pipeline.images.labels import LabelSpace
from pipeline.images.size import DOUBLINGS, ImageSize, image_size

WRAPPERS = ("module", "_orig_mod")
"""Prefixes that DataParallel and torch.compile add to the names of a net's tensors."""

WANTED = "a state dict of tensors, as torch.save(net.state_dict(), path) writes it"


def weights_in(path: Path) -> Path:
    """The file of weights in a folder that dcgan-export has written; any other path as it is."""
    weights = path / EXPORTED
    return weights if weights.is_file() else path


def load_tensors(path: Path) -> Any:
    """Load a file of `torch.save` onto the CPU, without running code or inflating a bomb.

    Raises:
        ValueError: the file unpacks to more than its size.
        Exception: any error of zipfile or torch about a file that is not theirs.
    """
    refuse_inflated(path)
    return torch.load(path, map_location="cpu", weights_only=True)


def refuse_inflated(path: Path) -> None:
    """Refuse a zip that unpacks to more than its size: a decompression bomb.

    torch and numpy write zips without compression, but when they read, they inflate compressed
    members of any size.

    Raises:
        ValueError: members are compressed, or overlap.
        Exception: any error of zipfile.
    """
    if not zipfile.is_zipfile(path):
        return
    with zipfile.ZipFile(path) as archive:
        members = archive.infolist()
    size = path.stat().st_size
    stored = all(member.compress_type == zipfile.ZIP_STORED for member in members)
    if not stored or sum(member.file_size for member in members) > size:
        raise ValueError(f"it unpacks to more than its {size:,} bytes")


def is_plain(tensor: torch.Tensor) -> bool:
    """Return whether this is an ordinary tensor with storage for all its numbers.

    A view may repeat one number a billion times, and a copy of it would need memory for all.
    """
    return (
        type(tensor) in (torch.Tensor, torch.nn.Parameter)
        and tensor.layout == torch.strided
        and tensor.device.type != "meta"
        and not (tensor.is_quantized or tensor.is_nested or tensor.is_complex())
        and tensor.numel() * tensor.element_size() <= tensor.untyped_storage().nbytes()
    )


def read_state(path: Path, where: str) -> dict[str, torch.Tensor]:
    """Read a state dict, with the tensor names of the unwrapped net.

    Args:
        path: a file written by `torch.save(net.state_dict(), path)`, where the net may have been
            wrapped by DataParallel or torch.compile, or saved before torch 0.4.1; or the same
            tensors as safetensors, under a name that ends so.
        where: the file as the user named it, for the error.

    Returns:
        Tensors on the CPU, finite in float32.

    Raises:
        UserError: the file is missing, or contains anything else; or a package to read it is.
    """
    if not path.is_file():
        raise UserError(
            where, "a folder" if path.is_dir() else "no such file", WANTED, "check the path"
        )
    try:
        with warnings.catch_warnings():  # about foreign formats, which become our own error
            warnings.simplefilter("ignore")
            safe = path.suffix.lower() == ".safetensors"
            found = _load_safetensors(path, where) if safe else load_tensors(path)
    except UserError:
        raise
    except PermissionError as error:
        raise UserError(
            where, str(error.strerror), "a file that this user may read", "see ls -ld, or copy it"
        ) from None
    except Exception as error:  # torch's readers may raise anything on a file that is not theirs
        reader = "safetensors" if safe else "torch.load(weights_only=True)"
        raise UserError(
            where,
            f"a file that {reader} refuses ({type(error).__name__})",
            WANTED,
            "name a netG.pth or netD.pth; if it holds a whole pickled net that you trust, load that"
            " in Python and save its state_dict()",
        ) from error
    if not isinstance(found, dict):
        raise UserError(where, f"a {type(found).__name__}", WANTED, "save net.state_dict() instead")
    state = {}
    for name, value in dict.items(found):  # not a method that a subclass in the file may override
        _require_tensor(name, value, where)
        state[".".join(part for part in name.split(".") if part not in WRAPPERS)] = value
    for name in [*state]:  # BatchNorm did not count its batches before torch 0.4.1
        layer, _, part = name.rpartition(".")
        if part == "running_var":
            state.setdefault(f"{layer}.num_batches_tracked", torch.tensor(0))
    return state


def _load_safetensors(path: Path, where: str) -> dict[str, torch.Tensor]:
    try:
        from safetensors.torch import load
    except ImportError:
        raise UserError(
            where,
            "no package safetensors to read it with",
            "the packages of dcgan-export",
            "pip install 'dcgan-shards[export]'",
        ) from None
    state = load(path.read_bytes())
    # The file has them by size and name, and `_origin` needs them layer after layer
    return {name: state[name] for name in sorted(state, key=_by_number)}


def _by_number(name: str) -> str:
    return re.sub(r"\d+", lambda digits: digits[0].zfill(9), name)


def _require_tensor(name: object, value: object, where: str) -> None:
    """Refuse an entry of a file's dict that a net cannot or should not load."""
    if isinstance(value, torch.Tensor) and not is_plain(value):
        raise UserError(
            where,
            f"a tensor {name!r:.80} without storage for all its numbers",
            WANTED,
            "save it again",
        )
    if not (isinstance(name, str) and isinstance(value, torch.Tensor)):
        raise UserError(
            where,
            f"a dict in which {name!r} is a {type(value).__name__}",
            WANTED,
            "save the net's state_dict() alone, not a checkpoint around it",
        )
    if not value.float().isfinite().all():
        raise UserError(
            where,
            f"numbers in {name:.80} that are not finite: its training diverged",
            "finite weights",
            "name a net that was saved earlier; a run saves some in its folder nets/",
        )


def load_weights(net: Generator | Discriminator, path: str | Path, flag: str) -> None:
    """Load a state dict from a file into a net, completely or, on an error, not at all.

    The net keeps its device and type; for the file see `read_state`. `flag` is the option that
    named it.

    Raises:
        UserError: the file is missing, contains anything else, or does not fit the net.
    """
    where = f"{flag} {path}"
    state = read_state(Path(path), where)
    found, wanted = _first_difference(_shapes(state), _shapes(net.state_dict()))
    if found:
        raise UserError(where, found, wanted, _remedy(net, state, flag))
    net.load_state_dict(state)


def load_generator(path: str | Path) -> Generator:
    """Build a generator from a file of its weights, whose shapes determine its options.

    Args:
        path: a state dict, ours or pytorch/examples', also as safetensors (see `read_state`); or a
            folder that dcgan-export has written.

    Returns:
        The generator on the CPU, in float32 and in eval mode. Torch's random state is unchanged.
        The labels of a conditional one have the names, and attributes the examples, that the
        config.json in the file's folder or the one above tells; without one, numbers for names.

    Raises:
        UserError: the file is missing, or contains anything else; or config.json cannot be read.
    """
    file = weights_in(Path(path))
    state = read_state(file, str(path))
    net = _origin(state)
    wanted = "the weights of a DCGAN's generator, as dcgan-train and pytorch/examples save them"
    if not isinstance(net, Generator):
        found = "the weights of a Discriminator" if net else "tensors of another net"
        remedy = "name a netG.pt of dcgan-train, or a netG_epoch_N.pth of pytorch/examples"
        raise UserError(path, found, wanted, remedy)
    net.to_empty(device="cpu").load_state_dict(state)
    if net.labels is not None and (labels := labels_beside(file, net.labels)) is not None:
        net.labels, net.usual_labels = labels.space, examples_of(labels)
    return net.eval()


def labels_beside(net: Path, like: LabelSpace) -> RunLabels | None:
    """Read what the labels of a net are called, in its run's folder or an exported one.

    Args:
        net: a file in that folder or in a folder there, or anywhere else.
        like: labels of the same kind and number.

    Returns:
        None if there is no such folder, or one of other labels.

    Raises:
        UserError: its config.json cannot be read.
    """
    # A hub's cache has links to files elsewhere, and a link to a run's net may be anywhere
    folders = [*net.absolute().parents[:2], *net.resolve().parents[:2]]
    for place, folder in enumerate(map(RunFolder, folders)):
        if folder.config.is_file():
            # In the one above, a file of that name may be anybody's
            others = (ValidationError, UserError)[: 1 + place % 2]
            with contextlib.suppress(*others):
                labels = RunLabels.model_validate(folder.options().get("labels"))
                if (labels.kind, len(labels.names)) == (like.kind, len(like.names)):
                    return labels
    return None


def examples_of(labels: RunLabels) -> torch.Tensor | None:
    """Return the attributes that a run keeps, (m, k) float32; None for classes."""
    if labels.kind == "classes":
        return None
    return torch.tensor([[int(value) for value in row] for row in labels.rows]).float()


def _shapes(state: dict[str, torch.Tensor]) -> dict[str, tuple[int, ...]]:
    return {name: tuple(tensor.shape) for name, tensor in state.items()}


def _first_difference(
    found: dict[str, tuple[int, ...]], wanted: dict[str, tuple[int, ...]]
) -> tuple[str, str]:
    """Describe the first tensor that differs, as found and as wanted; two "" if none differs."""
    for name, shape in wanted.items():
        if name not in found:
            return f"no {name}", f"{name} of shape {shape}"
        if found[name] != shape:
            return f"{name} of shape {found[name]}", f"{name} of shape {shape}"
    for name, shape in found.items():
        if name not in wanted:
            return f"{name} of shape {shape}", f"nothing after {list(wanted)[-1]}"
    return "", ""


def _remedy(net: Generator | Discriminator, state: dict[str, torch.Tensor], flag: str) -> str:
    origin = _origin(state)
    if origin is None:
        return f"check {', '.join(net.options)}: they must be those that the file was trained with"
    if type(origin) is not type(net):
        return (
            f"this file holds a {type(origin).__name__};"
            f" give {flag} the weights of a {type(net).__name__}"
        )
    if (remedy := _labels_remedy(net, origin)) is not None:
        return remedy
    differing = (
        f"{option} {value}"
        for option, value in origin.options.items()
        if net.options[option] != value
    )
    return f"run with {' '.join(differing)}"


def _labels_remedy(net: Generator | Discriminator, origin: Generator | Discriminator) -> str | None:
    """Say what to do if a file's net was trained on other labels; None if on such as these."""
    wanted, found = net.labels, origin.labels
    if found is None:
        if wanted is None:
            return None
        return "it was trained without labels: run without --conditional, or name another file"
    trained = f"it was trained on {len(found.names):,} {found.kind}"
    if wanted is None:
        return f"{trained}: run with --conditional, or name another file"
    if (len(found.names), found.kind) == (len(wanted.names), wanted.kind):
        return None
    return f"{trained}: name a set with as many, or another file"


def _origin(state: dict[str, torch.Tensor]) -> Generator | Discriminator | None:
    """Build on the meta device the net that has these weights; None if no options give it."""
    kernels = [tuple(tensor.shape) for tensor in state.values() if tensor.ndim == 4]
    if len(kernels) < 2 or 0 in kernels[0] + kernels[-1]:
        return None
    first, last = kernels[0], kernels[-1]  # (in, out, …) in a Generator, else (out, in, …)
    doublings = len(kernels) - 1
    # A net that the file has no numbers for may be too large even for the meta device
    narrow, wide = (first[0], last[0]), (last[1], first[1])
    doubled = (b == a << doublings - 1 for a, b in zip(narrow, wide, strict=True))
    if doublings > DOUBLINGS[-1] or not any(doubled):
        return None
    labels, features = numbered(_shapes(state))
    nz = first[0] - features
    with torch.device("meta"):
        for build in (
            lambda: Generator(_drawn(first, doublings), nz, last[0], last[1], labels),
            lambda: Discriminator(_drawn(last, doublings), first[0], first[1], labels),
        ):
            with contextlib.suppress(UserError):
                net = build()
                if _shapes(net.state_dict()) == _shapes(state):
                    return net
    return None


def _drawn(kernel: tuple[int, ...], doublings: int) -> ImageSize:
    """The size of the images of a net whose kernel at the smallest map has this shape."""
    return image_size(kernel[3] << doublings, kernel[2] << doublings)


def save_weights(net: nn.Module, path: Path) -> None:
    """Write a net's state dict, whole or not at all; pytorch/examples can load it, too."""
    state = {name: tensor.cpu() for name, tensor in net.state_dict().items()}
    try:
        with replacing(path) as temporary:
            torch.save(state, temporary)
    except (OSError, RuntimeError) as error:  # torch's own writer raises RuntimeError
        raise UserError(
            path,
            f"cannot be written ({first_line(error)})",
            "room for the net",
            "make room, then give the same command again",
        ) from error
