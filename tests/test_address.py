"""A set's URL is one of the kinds that are read, and holds nothing that must not be shown."""

import pytest

from pipeline.errors import UserError
from pipeline.remote.address import Address

SECRET = "hunter2"


@pytest.mark.parametrize(
    ("text", "url", "bucket", "prefix"),
    [
        ("s3://bucket/sets/a b/", "s3://bucket/sets/a b", "bucket", "sets/a b"),
        ("S3://bucket", "s3://bucket", "bucket", ""),
        ("https://Example.org:8443/sets/", "https://example.org:8443/sets", None, "sets"),
        ("file:///disk/set//", "file:///disk/set", "", "disk/set"),
    ],
)
def test_an_address_is_kept_in_one_form(text, url, bucket, prefix):
    address = Address.parse(text)
    assert (str(address), address.prefix) == (url, prefix)
    assert bucket is None or address.bucket == bucket
    assert Address.parse(url) == address
    assert address.of("manifest.json") == f"{url}/manifest.json"


@pytest.mark.parametrize(
    ("text", "found"),
    [
        (f"pipe:touch {SECRET}", "no URL"),
        (f"pipe:curl -u {SECRET} https://host", "another kind"),
        ("memory:///set", "another kind"),
        (f"ftp://user:{SECRET}@host/set", "another kind"),
        ("s3:///set", "no bucket"),
        ("https://", "no host"),
        ("file://disk/set", "no such path"),
        ("file:///", "no such path"),
        ("s3://127.0.0.1:9000/bucket/set", "a port"),
        (f"s3://key:{SECRET}@bucket/set", "a user or a password"),
        (f"https://host/set?sig={SECRET}", "a query"),
        (f"https://host/set#{SECRET}", "a fragment"),
        (f"https://host/%2E%2E/{SECRET}", "a part of the path"),
        ("s3://bucket//set", "a part of the path"),
        (f"s3://bucket/set\n{SECRET}", "a control character"),
        (f"https://[{SECRET}/set", "cannot be read"),
        (f"https://user:{SECRET}/set", "cannot be read"),
    ],
)
def test_what_is_no_address_is_refused_and_not_repeated(text, found):
    with pytest.raises(UserError) as refused:
        Address.parse(text, flag="--out")
    assert found in refused.value.found
    assert refused.value.where.startswith("--out")
    assert SECRET not in str(refused.value)


@pytest.mark.parametrize(
    ("url", "endpoint", "found"),
    [
        ("https://host/set", "http://host", "whose URL says all"),
        ("file:///set", "http://host", "whose URL says all"),
        ("s3://bucket", f"host:9000/{SECRET}", "another kind"),
        ("s3://bucket", "https://", "no host"),
        ("az://bucket", f"https://key:{SECRET}@host", "a user or a password"),
        ("gs://bucket", f"https://host/?token={SECRET}", "a query"),
    ],
)
def test_an_endpoint_is_a_services_url(url, endpoint, found):
    with pytest.raises(UserError) as refused:
        Address.parse(url, endpoint)
    assert found in refused.value.found
    assert refused.value.where.startswith("--endpoint")
    assert SECRET not in str(refused.value)
    assert Address.parse("s3://bucket", "http://host:9000/").endpoint == "http://host:9000"
