"""Hostile states of nets and runs: what `weights_only` lets through, and what it must not."""

import os
import zipfile
from collections import OrderedDict

import torch
from hypothesis import strategies as st


def paths(value, before=()):
    found = [before] if before else []
    for key, each in value.items() if isinstance(value, dict) else ():
        found += paths(each, (*before, key))
    return found


def replaced(state, path, value):
    """A state in which one part, however deep, is another one, or gone."""
    state = dict(state)
    if len(path) > 1:
        state[path[0]] = replaced(state[path[0]], path[1:], value)
    elif value is GONE:
        del state[path[0]]
    else:
        state[path[0]] = value
    return state


GONE = object()


def laughs():
    """A list that is short here, and 2^60 long for whoever walks it."""
    value: list[object] = [1.0]
    for _ in range(60):
        value = [value, value]
    return value


TENSORS = st.one_of(
    st.builds(torch.zeros, st.lists(st.integers(0, 9), max_size=4)),
    st.sampled_from([torch.zeros(1).expand(10**12), torch.zeros(1, 5).expand(10**9, 5)]),
    st.sampled_from(
        [torch.zeros(5056, dtype=torch.uint8), torch.zeros(3, 5, dtype=torch.complex64)]
    ),
    st.sampled_from([torch.zeros(3, 5).to_sparse(), torch.full((3, 5), float("nan"))]),
)


class Hijacked:
    """Pickles as an OrderedDict whose `keys` is what the file says."""

    def __reduce__(self):
        return OrderedDict, (), {"keys": 5, "items": 5, "_metadata": 5}


class Opens:
    def __reduce__(self):
        return os.mkdir, ("pwned",)


def deflated(path):
    """The same zip, its members compressed."""
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    return path
