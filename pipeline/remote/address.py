"""Where a shard set lies in a store: a URL, which messages show and run folders keep."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from typing import Self
from urllib.parse import SplitResult, unquote, urlsplit

from pipeline.errors import UserError, plain
from pipeline.files import digest
from pipeline.shards.manifest import MANIFEST

BUCKETS = ("s3", "gs", "az")
"""Schemes whose URL names a bucket, and not the host that keeps it."""

SCHEMES = (*BUCKETS, "http", "https", "file")
"""All that is taken: of others, `pipe:` runs a command in webdataset."""


S3_ENDPOINTS = ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL")
"""Variables with the endpoint of S3, the first before the second, as the aws command has them."""

PLACES = (*S3_ENDPOINTS, "AWS_PROFILE", "AZURE_STORAGE_ACCOUNT_NAME", "AZURE_STORAGE_ENDPOINT")
"""Variables that say, with a URL, which bucket is meant."""

_HOST = re.compile(r"[\w.-]+(:\d+)?|\[[0-9a-fA-F:.]+\](:\d+)?")


@dataclass(frozen=True)
class Address:
    """A place in a store, under which a set's objects lie. Nothing in it is secret."""

    url: str
    """Without a trailing slash, a user, a query and a fragment."""
    endpoint: str | None = None
    """The URL of a service that keeps buckets; None for the cloud that the scheme stands for."""

    @classmethod
    def parse(cls, text: str, endpoint: str | None = None, flag: str = "--shards") -> Self:
        """Read a URL and, for a store of one's own, an endpoint.

        Raises:
            UserError: there is no store behind it, or there may be credentials in it, of which
                the message shows nothing.
        """
        parts = _split(flag, text)
        scheme, host, path = parts.scheme, parts.netloc, parts.path
        if scheme == "file" and (host or not path.strip("/")):
            wanted = "three slashes and a folder's path"
            raise _refusal(flag, parts, "no such path", wanted, "write file:///path/of/the/set")
        if scheme != "file" and not host:
            wanted = "a bucket" if scheme in BUCKETS else "a host"
            raise _refusal(flag, parts, f"no {wanted[2:]}", wanted, f"write {_example(scheme)}")
        if scheme in BUCKETS and ":" in host:
            remedy = f"write {_example(scheme)}, and --endpoint http://HOST:PORT"
            raise _refusal(flag, parts, "a port", "the name of a bucket", remedy)
        path = path[1:].rstrip("/")
        segments = path.split("/") if path else []
        literal = segments if scheme in BUCKETS else [unquote(segment) for segment in segments]
        if {"", ".", ".."} & {*literal}:
            found, wanted = "a part of the path that is empty, . or ..", "the names of folders"
            raise _refusal(flag, parts, found, wanted, "leave that part out")
        if segments and segments[-1].endswith((MANIFEST, ".tar", ".idx")):
            found, remedy = "a file of a set", "leave its name out"
            raise _refusal(flag, parts, found, "the folder that a set is", remedy)
        host = host if scheme in BUCKETS else host.lower()
        url = "/".join((f"{scheme}://{host}", *segments))
        return cls(url, None if endpoint is None else read_endpoint(endpoint, scheme))

    @property
    def scheme(self) -> str:
        return self.url.partition("://")[0]

    @property
    def bucket(self) -> str:
        """The bucket's name, or the host's."""
        return self.url.partition("://")[2].partition("/")[0]

    @property
    def prefix(self) -> str:
        """The path in the bucket, without slashes around it."""
        return self.url.partition("://")[2].partition("/")[2]

    @property
    def place(self) -> str:
        """A digest that tells this place from every other of the same URL."""
        named = [os.environ.get(name, "") for name in PLACES]
        return digest("\n".join([self.url, self.endpoint or "", *named]).encode())

    def of(self, name: str) -> str:
        """The URL of an object of the set."""
        return f"{self.url}/{name}"

    def __str__(self) -> str:
        return self.url


def _split(flag: str, text: str) -> SplitResult:
    """Take a URL apart, if it is one of ours and holds nothing that is not shown."""
    scheme, separator, _ = text.partition("://")
    if not separator or scheme.lower() not in SCHEMES:
        kind = f": {scheme}://" if scheme.isalnum() else ""  # no command that names a URL
        found = f"a URL of another kind{kind}" if separator else "no URL"
        wanted = f"one that begins with {', '.join(f'{known}://' for known in SCHEMES)}"
        raise UserError(flag, found, wanted, "name a folder, or a set in such a store")
    return _plain_parts(flag, text, "leave it out: credentials go where the store's tools look")


def _plain_parts(flag: str, text: str, remedy: str) -> SplitResult:
    """Take a URL apart.

    Raises:
        UserError: it holds more than a scheme, a host and a path. Neither the user nor the
            password, nor what follows a question mark, is in the message.
    """
    try:
        parts = urlsplit(text)
        _ = parts.port  # read here, where a number that is none is an error
    except ValueError:
        wanted = "SCHEME://HOST/PATH"
        raise UserError(
            flag, "a URL that cannot be read", wanted, "see how it is spelled"
        ) from None
    if "@" in (text if parts.scheme in {"http", "https"} else parts.netloc):
        found = "a user or a password"
    elif "?" in text or "#" in text:
        found = "a query or a fragment (? or #)"
    elif plain(text) != text or "\\" in text:
        found = "a control character or a backslash"
    elif parts.netloc and not _HOST.fullmatch(parts.netloc):
        found = "a host with characters that names do not have"
    else:
        return parts
    raise _refusal(flag, parts, found, "a URL without it, since URLs are shown and kept", remedy)


def _refusal(flag: str, parts: SplitResult, found: str, wanted: str, remedy: str) -> UserError:
    return UserError(f"{flag} {parts.scheme}://{parts.hostname or ''}/…", found, wanted, remedy)


def _example(scheme: str) -> str:
    return f"{scheme}://{'BUCKET' if scheme in BUCKETS else 'HOST'}/SET"


def read_endpoint(text: str, scheme: str, flag: str = "--endpoint") -> str:
    """Check the URL of a service that keeps buckets.

    Raises:
        UserError: it is none, or there may be credentials in it.
    """
    example = "http://HOST:PORT or https://HOST"
    remedy = "give the URL of the store's service"
    if scheme not in BUCKETS:
        wanted = f"a set of {', '.join(f'{known}://' for known in BUCKETS)}"
        found = f"a set of {scheme}://, whose URL says all"
        raise UserError(flag, found, wanted, "leave --endpoint out")
    if not text.lower().startswith(("http://", "https://")):
        raise UserError(flag, "another kind of text", example, remedy)
    parts = _plain_parts(flag, text, "leave it out: credentials go where the store's tools look")
    if not parts.hostname:
        raise UserError(flag, "no host", example, remedy)
    return text.rstrip("/")
