"""Where the graph's operators run and what they are told: all that can be seen without a GPU."""

from types import SimpleNamespace

import pytest
import torch

from pipeline.loading.options import LoaderOptions
from tests.needs import require
from tests.pictures import encode, pack_pictures, smooth


@pytest.fixture
def operators(numbered_set, monkeypatch):
    """The operators of a graph, by name. Nothing is run."""
    require("dali")
    from pipeline.loading.dali import build_graph

    monkeypatch.setattr(
        "pipeline.loading.dali._device_id", lambda device: None
    )  # where there is no GPU

    def build(device, until="normalise", shards=None, channels=3, fit=None, **options):
        graph = build_graph(
            shards or numbered_set(12, 5),
            lambda: pytest.fail("nothing is to be read"),
            LoaderOptions(8, 64, channels, device=torch.device(device), workers=1, fit=fit),
            until,
            **options,
        )
        graph._build_graph()  # private, and the only check of a GPU graph that needs no GPU
        assert len(graph.serialize()) > 0
        (output,) = graph._graph_outputs
        on_gpu = device == "cuda"
        assert output.device == ("gpu" if on_gpu else "cpu")
        return {op.name: op._op for op in graph._ops}

    return build


STAGES = {
    "decode": ["decode"],
    "resize": ["decode", "shape", "resize"],
    "normalise": ["decode", "shape", "resize", "normalise"],
}
KINDS = {
    "decode": "decoders__Image",
    "shape": "PeekImageShape",
    "resize": "Resize",
    "normalise": "CropMirrorNormalize",
}


@pytest.mark.parametrize("until", STAGES)
@pytest.mark.parametrize(
    ("device", "decode", "after"), [("cuda", "mixed", "gpu"), ("cpu", "cpu", "cpu")]
)
def test_everything_from_decoding_on_runs_on_the_device(operators, device, decode, after, until):
    found = operators(device, until)
    places = {"decode": decode, "shape": "cpu", "resize": after, "normalise": after}
    named = {name: op for name, op in found.items() if name in KINDS}
    assert sorted(named) == sorted(STAGES[until])
    for name, op in named.items():
        assert (op.schema_name, op._device) == (KINDS[name], places[name])
    # Samples come from outside, and nothing else is on the device
    assert found["encoded"]._device == "cpu"
    others = set(found) - set(named)
    assert {found[name]._device for name in others} == {"cpu"}
    assert not any("reader" in str(getattr(op, "schema_name", "")) for op in found.values())


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize(
    ("fit", "kind"), [("pad:edge", "WarpAffine"), ("pad", "Slice"), ("stretch", None)]
)
def test_what_is_padded_is_padded_on_the_device(operators, fit, kind, channels):
    found = operators("cuda", channels=channels, fit=fit)
    assert found["resize"]._device == found["normalise"]._device == "gpu"
    if kind is None:
        assert "pad" not in found
    else:
        assert (found["pad"].schema_name, found["pad"]._device) == (kind, "gpu")
    after = {"decode", "resize", "pad", "normalise"}
    assert {op._device for name, op in found.items() if name not in after} == {"cpu"}


def test_the_gpus_decoder_is_told_how_to_decode(operators, tmp_path):
    from pipeline.loading.dali import DECODER_SHARE, MEMORY_PADDING

    pictures = {"a.jpg": encode(smooth(50, 20)), "b.jpg": encode(smooth(30, 40))}
    shards = pack_pictures(tmp_path, pictures)
    told = operators("cuda", shards=shards)["decode"]._init_args
    assert told["hw_decoder_load"] == DECODER_SHARE
    assert (told["preallocate_width_hint"], told["preallocate_height_hint"]) == (50, 40)
    assert told["device_memory_padding"] == told["host_memory_padding"] == MEMORY_PADDING
    assert told["jpeg_fancy_upsampling"] is True


def test_the_cpus_decoder_upsamples_alike_and_needs_no_hints(operators):
    told = operators("cpu", "decode")["decode"]._init_args
    assert told["jpeg_fancy_upsampling"] is True
    assert not any("hint" in name or "padding" in name or "hw_" in name for name in told)


@pytest.mark.parametrize(("channels", "kind"), [(3, "RGB"), (1, "GRAY")])
@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_colours_are_what_is_asked_for(operators, device, channels, kind):
    from nvidia.dali import types

    told = operators(device, channels=channels)["decode"]._init_args
    assert told["output_type"] == getattr(types, kind)


@pytest.mark.parametrize(
    ("device", "dtype", "until"),
    [
        ("cuda", torch.float32, "normalise"),
        ("cuda", torch.uint8, "resize"),
        ("cpu", torch.float32, "decode"),
        ("cpu", torch.uint8, "decode"),
    ],
)
def test_the_loaders_graph_ends_where_its_batches_are_made(
    numbered_set, monkeypatch, device, dtype, until
):
    require("dali")
    from pipeline.loading.dali import DaliDecoder

    asked = []

    def build_graph(shards, source, *arguments, **others):
        asked.append(arguments)
        return SimpleNamespace(build=lambda: None)

    monkeypatch.setattr("pipeline.loading.dali.build_graph", build_graph)
    options = LoaderOptions(8, device=torch.device(device), dtype=dtype)
    DaliDecoder(numbered_set(12, 5), options)
    assert asked == [(options, until)]
