"""Keys, dealing, the tar and its index, for any input: against plain and slow ways to make them."""

import hashlib
import io
import re
import tarfile

from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from pipeline.packing.plan import Deal
from pipeline.packing.sources.base import Member
from pipeline.shards.order import permutation
from pipeline.shards.tar import TarWriter, index_text

COUNTS = st.integers(0, 300)
SEEDS = st.integers(0, 2**63)


def members_of(count):
    return [Member(f"{number:04d}.jpg", number) for number in range(count)]


# Dealing


@given(COUNTS, SEEDS, st.integers(1, 400))
def test_every_member_is_dealt_exactly_once_with_its_rank_as_key(count, seed, per_shard):
    members = members_of(count)
    dealt = [*Deal(members, seed, per_shard).values()]
    entries = [entry for shard in dealt for entry in shard]
    assert sorted(entries) == list(enumerate(members))
    assert [len(shard) for shard in dealt] == [
        min(per_shard, count - first) for first in range(0, count, per_shard)
    ]


@given(COUNTS, SEEDS, st.integers(1, 400))
def test_shard_k_owns_its_places_of_the_permutation(count, seed, per_shard):
    order = permutation(count, seed).tolist()
    for k, shard in Deal(members_of(count), seed, per_shard).items():
        places = order[k * per_shard : (k + 1) * per_shard]
        assert [key for key, _ in shard] == places


# The tar

SAMPLES = st.dictionaries(
    st.integers(0, 99_999_999),
    st.one_of(
        st.binary(max_size=40),
        st.sampled_from([511, 512, 513, 1024, 9_999, 10_240]).map(bytes),
    ),
    max_size=12,
)
EXTENSIONS = st.sampled_from(["jpg", "raw"])


def written(samples, extension):
    """What `TarWriter` makes of samples by key."""
    file = io.BytesIO()
    writer = TarWriter(file)
    for key, data in samples.items():
        writer.add(f"{key:08d}", extension, data)
    writer.finish()
    return file.getvalue(), writer


def by_tarfile(samples, extension):
    """The same, as Python's own module writes it."""
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w", format=tarfile.USTAR_FORMAT) as archive:
        for key, data in samples.items():
            member = tarfile.TarInfo(f"{key:08d}.{extension}")
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    return file.getvalue()


@given(SAMPLES, EXTENSIONS)
@example({number: bytes(512) for number in range(9)}, "jpg")  # ends on a whole record
@example({number: bytes(512) for number in range(10)}, "jpg")
@example({}, "raw")
def test_the_tar_is_tarfiles_own_to_the_byte(samples, extension):
    data, writer = written(samples, extension)
    assert data == by_tarfile(samples, extension)
    assert writer.size == len(data)
    assert writer.sha256.hexdigest() == hashlib.sha256(data).hexdigest()


@given(SAMPLES, EXTENSIONS)
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_the_index_is_what_reading_the_tar_gives(tmp_path, samples, extension):
    data, writer = written(samples, extension)
    (tmp_path / "a.tar").write_bytes(data)
    text = writer.index()
    assert text == index_text(tmp_path / "a.tar")
    header, *rows = text.splitlines()
    assert header == f"v1.2 {len(samples)}"
    for row, (key, stored) in zip(rows, samples.items(), strict=True):
        kind, offset, size, name = row.split(" ")
        assert (kind, name) == (extension, f"{key:08d}.{extension}")
        assert re.fullmatch(r"\d{8}", name.partition(".")[0])
        assert data[int(offset) : int(offset) + int(size)] == stored


def test_a_key_beyond_eight_digits_is_still_a_name():
    data, _ = written({123_456_789: b"x"}, "jpg")
    with tarfile.open(fileobj=io.BytesIO(data)) as archive:
        assert archive.getnames() == ["123456789.jpg"]
