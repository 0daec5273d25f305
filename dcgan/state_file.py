"""Tensors by name: written whole or not at all; of anybody's file read, or refused, and not run."""

from __future__ import annotations

import warnings
import zipfile
from pathlib import Path

import torch
from torch import nn

from pipeline.errors import UserError
from pipeline.files import replacing

WRAPPERS = ("module", "_orig_mod")
"""What DataParallel and torch.compile add to the names of tensors, around a net or a part of it."""

WANTED = "a state dict of tensors, as torch.save(net.state_dict(), path) writes it"


def refuse_swollen(path: Path) -> None:
    """Refuse a zip that holds more than it is: a decompression bomb.

    torch and numpy write what they save into zips as it is, and inflate what somebody else
    deflated, however much comes out.

    Raises:
        ValueError: members are compressed, or lie over each other.
        Exception: whatever zipfile trips over.
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
    """Whether it is an ordinary tensor on the CPU, all of whose numbers are really there.

    A view may repeat one number a billion times: whoever copies it needs the memory for all.
    """
    return (
        type(tensor) in (torch.Tensor, torch.nn.Parameter)
        and tensor.layout == torch.strided
        and tensor.device.type == "cpu"
        and not (tensor.is_quantized or tensor.is_nested or tensor.is_complex())
        and tensor.numel() * tensor.element_size() <= tensor.untyped_storage().nbytes()
    )


def read_state(path: Path, where: str) -> dict[str, torch.Tensor]:
    """Read a state dict, under the names that the net itself gives to its tensors.

    Args:
        path: as `torch.save(net.state_dict(), path)` writes it, also of a net that was wrapped by
            DataParallel or torch.compile, or saved before torch 0.4.1.
        where: the file as the user named it, for the error.

    Returns:
        Tensors on the CPU, finite in float32.

    Raises:
        UserError: for a missing file, or one that holds anything else.
    """
    if not path.is_file():
        raise UserError(
            where, "a folder" if path.is_dir() else "no such file", WANTED, "check the path"
        )
    try:
        with warnings.catch_warnings():  # of foreign formats, on their way to becoming our error
            warnings.simplefilter("ignore")
            refuse_swollen(path)
            found = torch.load(path, map_location="cpu", weights_only=True)
    except PermissionError as error:
        raise UserError(
            where, str(error.strerror), "a file that this user may read", "see ls -ld, or copy it"
        ) from None
    except Exception as error:  # whatever torch's readers trip over in a file that is not theirs
        raise UserError(
            where,
            f"a file that torch.load(weights_only=True) refuses ({type(error).__name__})",
            WANTED,
            "name a netG.pth or netD.pth; if it holds a whole pickled net that you trust, load that"
            " in Python and save its state_dict()",
        ) from error
    if not isinstance(found, dict):
        raise UserError(where, f"a {type(found).__name__}", WANTED, "save net.state_dict() instead")
    state = {}
    for name, value in dict.items(found):  # not by methods of the file's own choice
        _require_tensor(name, value, where)
        state[".".join(part for part in name.split(".") if part not in WRAPPERS)] = value
    for name in [*state]:  # BatchNorm did not count its batches before torch 0.4.1
        layer, _, part = name.rpartition(".")
        if part == "running_var":
            state.setdefault(f"{layer}.num_batches_tracked", torch.tensor(0))
    return state


def _require_tensor(name: object, value: object, where: str) -> None:
    """Refuse an entry of a file's dict that a net cannot take, or that would spoil it."""
    if isinstance(value, torch.Tensor) and not is_plain(value):
        raise UserError(
            where,
            f"a tensor {name!r:.80} that holds less than it claims",
            WANTED,
            "save it anew",
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
            "name a net that was saved earlier; a run keeps some in its folder nets/",
        )


def save_weights(net: nn.Module, path: Path) -> None:
    """Write a net's state dict, whole or not at all, for us and the ancestors."""
    state = {name: tensor.cpu() for name, tensor in net.state_dict().items()}
    try:
        with replacing(path) as temporary:
            torch.save(state, temporary)
    except (OSError, RuntimeError) as error:  # torch's own writer raises RuntimeError
        raise UserError(
            path,
            f"cannot be written ({str(error).splitlines()[0][:160]})",
            "room for the net",
            "make room, then give the same command again",
        ) from error
