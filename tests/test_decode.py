"""What becomes of odd images: untouched, converted, or rejected with the reason."""

import functools
import io
import subprocess
import sys
import warnings

import numpy as np
import pytest
from PIL import Image

import pipeline.images.decode
from pipeline.images.decode import RejectedError, decode
from pipeline.packing.store import Stored, store
from pipeline.shards.manifest import Recipe
from tests import odd_files
from tests.needs import require, within
from tests.odd_files import JPEG, ODD, PROGRESSIVE, RAMP, Converted, Rejected, Untouched
from tests.pictures import encode, noisy, smooth

ORIGINAL = Recipe()


def of(fate):
    return {name: case for name, case in ODD.items() if isinstance(case[1], fate)}


UNTOUCHED, CONVERTED, REJECTED = of(Untouched), of(Converted), of(Rejected)


def by_pillow(data: bytes) -> np.ndarray:
    """An ordinary JPEG as Pillow shows it."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # as outside of tests, where no warning is an error
        pixels = np.asarray(Image.open(io.BytesIO(data)))
    return pixels if pixels.ndim == 3 else pixels[:, :, None]


@pytest.mark.parametrize("name", UNTOUCHED)
def test_ordinary_jpegs_go_in_untouched(name):
    data, _ = ODD[name]
    stored = store(data, ORIGINAL)
    assert stored.data is data
    assert not stored.converted
    assert np.array_equal(decode(data).pixels, by_pillow(data))
    assert (stored.height, stored.width) == by_pillow(data).shape[:2]


@pytest.mark.parametrize("name", CONVERTED)
def test_other_images_are_converted_with_their_pixels_right(name):
    data, fate = ODD[name]
    assert isinstance(fate, Converted)
    picture = decode(data)
    assert not picture.ordinary
    expected = fate.pixels[..., None] if fate.pixels.ndim == 2 else fate.pixels
    got = picture.pixels.astype(int)
    error = np.abs(got - expected)  # a grey picture that comes out in colour is three times grey
    assert got.shape[:2] == expected.shape[:2]
    assert got.shape[2] >= expected.shape[2]
    lossy = name.startswith("lossy")
    assert error.max() <= (20 if lossy else 2)
    assert error.mean() <= (2.5 if lossy else 0.5)
    stored = store(data, ORIGINAL)
    assert stored.converted
    again = decode(stored.data)
    assert again.ordinary  # what we wrote is itself an ordinary JPEG
    assert again.pixels.shape == got.shape == (stored.height, stored.width, got.shape[2])
    loss = np.abs(again.pixels.astype(int) - got)
    assert loss.mean() <= 1.4  # JPEG at quality 95; measured: at most 1.27
    layers = Image.open(io.BytesIO(stored.data)).layer  # type: ignore[attr-defined]
    assert {layer[1:3] for layer in layers} == {(1, 1)}  # chroma at full size


@pytest.mark.parametrize("name", REJECTED)
def test_what_does_not_decode_is_rejected_with_the_reason(name):
    data, fate = ODD[name]
    assert isinstance(fate, Rejected)
    with pytest.raises(RejectedError) as error:
        decode(data)
    reason = str(error.value)
    assert error.value.kind == fate.kind
    assert fate.detail in reason
    assert len(reason) <= 250
    assert "\n" not in reason
    assert " at 0x" not in reason  # no object's address: the same every time


@pytest.mark.parametrize("fate", [UNTOUCHED, CONVERTED, REJECTED], ids=["un", "con", "rej"])
def test_without_checking_only_damaged_jpegs_fare_otherwise(fate):
    assert fate
    for name, (data, _) in fate.items():
        outcomes: list[Stored | None] = []
        for recipe in (ORIGINAL, Recipe(checked=False)):
            try:
                outcomes.append(store(data, recipe))
            except RejectedError:
                outcomes.append(None)
        checked, unchecked = outcomes
        untouched = unchecked is not None and unchecked.data is data
        assert unchecked == checked or (checked is None and untouched)
        assert unchecked is None or name not in HUGE


# Decompression bombs


HUGE = [name for name, (_, fate) in ODD.items() if isinstance(fate, Rejected) and "huge" in name]


def test_too_many_pixels_are_refused_before_decoding(monkeypatch):
    assert HUGE
    monkeypatch.setattr(Image.Image, "load", lambda self: pytest.fail("decoded"))
    monkeypatch.setattr("simplejpeg.decode_jpeg", lambda *_: pytest.fail("decoded"))
    for name in HUGE:
        with pytest.raises(RejectedError, match="too large"):
            within(2, functools.partial(decode, ODD[name][0]))


MEASURE = """
import resource, sys
from pathlib import Path
from pipeline.images.decode import RejectedError, decode
peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
files = [path.read_bytes() for path in sorted(Path(sys.argv[1]).iterdir())]
before, rejected = peak(), 0
for data in files:
    try:
        decode(data)
    except RejectedError:
        rejected += 1
print(rejected, peak() - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="ru_maxrss is in kilobytes on Linux only")
def test_they_cost_no_memory(tmp_path):
    for name in HUGE:
        (tmp_path / name).write_bytes(ODD[name][0])
    command = [sys.executable, "-c", MEASURE, tmp_path]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    rejected, kilobytes = map(int, done.stdout.split())
    assert rejected == len(HUGE)
    assert kilobytes < 50_000  # measured: under 4,000, of modules


def test_the_limit_is_of_pixels(monkeypatch):
    monkeypatch.setattr(pipeline.images.decode, "MAX_PIXELS", 48 * 40)
    assert decode(JPEG).pixels.shape == decode(ODD["rgb.png"][0]).pixels.shape == (40, 48, 3)
    monkeypatch.setattr(pipeline.images.decode, "MAX_PIXELS", 48 * 40 - 1)
    for data in (JPEG, ODD["rgb.png"][0]):
        with pytest.raises(RejectedError, match="48×40, over 1,919 pixels"):
            decode(data)


# Cuts and flips everywhere

CUTTABLE = {
    "jpeg": JPEG,
    "progressive": PROGRESSIVE,
    "grey": encode(RAMP),
    "webp": odd_files.WEBP,
    "bmp": odd_files.BMP,
}


@pytest.mark.parametrize("whole", CUTTABLE.values(), ids=CUTTABLE)
def test_no_cut_anywhere_passes(whole):
    for length in range(0, len(whole), max(1, len(whole) // 700)):
        with pytest.raises(RejectedError):
            decode(whole[:length])


def test_a_cut_png_passes_only_where_no_pixel_is_lost():
    whole, passed = odd_files.PNG, []
    for length in range(len(whole)):
        try:
            picture = decode(whole[:length])
        except RejectedError:
            continue
        passed.append(length)
        assert np.array_equal(picture.pixels, odd_files.PICTURE)
    assert passed == list(range(passed[0], len(whole)))
    assert len(whole) - passed[0] <= 24  # checksums, and the chunk that only says that it ends


def test_what_pillow_only_warns_of_is_damage_whatever_the_callers_filters():
    whole, bits_per_sample = odd_files.TIFF, b"\x02\x01\x03\0\x03\0\0\0"
    entry = whole.index(bits_per_sample) + len(bits_per_sample)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # as outside of tests, where no warning is an error
        with pytest.raises(RejectedError, match="Truncated File Read"):
            decode(whole[:entry] + b"\xff\xff\xff\x7f" + whole[entry + 4 :])


def test_strict_checking_leaves_the_callers_warnings_alone():
    filters = list(warnings.filters)
    with pytest.raises(RejectedError):
        decode(JPEG[:100])
    assert warnings.filters == filters


def damage(data: bytes, random: np.random.Generator) -> bytes:
    """Change or delete a few bytes, anywhere after the start marker."""
    damaged = bytearray(data)
    for _ in range(random.integers(1, 4)):
        place = int(random.integers(2, len(damaged) - 2))
        if random.random() < 0.5:
            damaged[place] = int(random.integers(256))
        else:
            del damaged[place : place + int(random.integers(1, 6))]
    return bytes(damaged)


def by_dali(files: list[bytes], colours: str) -> list[np.ndarray]:
    """JPEGs as the graph's decoder shows them, in RGB or GRAY."""
    from nvidia.dali import fn, types
    from nvidia.dali.pipeline import Pipeline

    blobs = [[np.frombuffer(data, np.uint8)] for data in files]
    decoder = Pipeline(batch_size=1, num_threads=1, device_id=None, prefetch_queue_depth=1)
    with decoder:
        encoded = fn.external_source(source=blobs)
        images = fn.decoders.image(
            encoded, output_type=getattr(types, colours), jpeg_fancy_upsampling=True
        )
        decoder.set_outputs(images)
    decoder.build()
    return [np.array(within(20, decoder.run)[0].at(0)) for _ in files]


def test_dali_shows_untouched_jpegs_as_they_were_checked():
    require("dali")
    files = [data for data, _ in UNTOUCHED.values()]
    for data, image in zip(files, by_dali(files, "RGB"), strict=True):
        expected = decode(data).pixels
        assert np.array_equal(image, np.broadcast_to(expected, (*expected.shape[:2], 3)))


def test_dali_takes_whatever_damaged_jpegs_were_admitted(capfd):
    """The promise of checking: of 3,000 damaged JPEGs, those that pass do not stop training."""
    require("dali")
    random = np.random.default_rng(0)
    picture = smooth(48, 40)
    bases = [JPEG, encode(noisy(48, 40)), encode(RAMP), encode(picture, progressive=True)]
    passed: dict[bytes, np.ndarray] = {}
    for number in range(3000):
        data = damage(bases[number % len(bases)], random)
        try:
            stored = store(data, ORIGINAL)
        except RejectedError:
            continue
        passed[stored.data] = decode(stored.data).pixels
    assert 500 < len(passed) < 1500
    files = list(passed)
    for data, image in zip(files, by_dali(files, "RGB"), strict=True):
        pixels = passed[data]
        assert np.array_equal(image, np.broadcast_to(pixels, (*pixels.shape[:2], 3)))
    capfd.readouterr()  # libjpeg's own remarks on each
