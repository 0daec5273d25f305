"""Tensors by name from a file of anybody's: read, or refused, and no code of it ever run."""

from __future__ import annotations

import warnings
from pathlib import Path

import torch
from torch.nn.modules.utils import consume_prefix_in_state_dict_if_present

from pipeline.errors import UserError


def read_state(path: Path, where: str) -> dict[str, torch.Tensor]:
    """Read a state dict, without the `module.` that DataParallel puts before each name.

    Args:
        path: as `torch.save(net.state_dict(), path)` writes it.
        where: the file as the user named it, for the error.

    Returns:
        Tensors on the CPU.

    Raises:
        UserError: for a missing file, or one that holds anything else.
    """
    wanted = "a state dict of tensors, as torch.save(net.state_dict(), path) writes it"
    if not path.is_file():
        raise UserError(
            where, "a folder" if path.is_dir() else "no such file", wanted, "check the path"
        )
    try:
        with warnings.catch_warnings():  # of foreign formats, on their way to becoming our error
            warnings.simplefilter("ignore")
            state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # whatever torch's readers trip over in a file that is not theirs
        raise UserError(
            where,
            f"a file that torch.load(weights_only=True) refuses ({type(error).__name__})",
            wanted,
            "name a netG.pth or netD.pth; if it holds a whole pickled net that you trust, load that"
            " in Python and save its state_dict()",
        ) from error
    if not isinstance(state, dict):
        raise UserError(where, f"a {type(state).__name__}", wanted, "save net.state_dict() instead")
    for name, value in state.items():
        if not (isinstance(name, str) and isinstance(value, torch.Tensor)):
            raise UserError(
                where,
                f"a dict in which {name!r} is a {type(value).__name__}",
                wanted,
                "save the net's state_dict() alone, not a checkpoint around it",
            )
    consume_prefix_in_state_dict_if_present(state, "module.")
    return state
