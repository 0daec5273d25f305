"""A client of a store, with the endpoint and the credentials that its kind of store goes by."""

from __future__ import annotations

import netrc
import os
import re
from base64 import b64encode
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote, urlsplit

from pipeline.errors import UserError, first_line
from pipeline.files import writing
from pipeline.remote.address import S3_ENDPOINTS, Address, read_endpoint
from pipeline.remote.refusals import CREDENTIALS

if TYPE_CHECKING:
    from obstore.store import (
        AzureConfig,
        ClientConfig,
        GCSConfig,
        ObjectStore,
        RetryConfig,
        S3Config,
    )

RETRIES: RetryConfig = {"max_retries": 0}
"""None of obstore's own. They hold a thread until they are over, Ctrl-C or not; of an answer that
is cut off, they count the seconds from its first byte."""


def connect(address: Address, flag: str, silence: float, writable: bool = False) -> ObjectStore:
    """A client for the objects under an address.

    Args:
        address: of a set.
        flag: the option that named it.
        silence: seconds without a byte received after which a request has failed. It takes in the
            time of sending what is uploaded.
        writable: make the folder of a `file://` URL.

    Raises:
        UserError: the extra is not installed, or what holds credentials cannot be read.
        obstore.exceptions.BaseError: for obstore, something is missing.
    """
    try:
        from obstore.store import AzureStore, GCSStore, HTTPStore, LocalStore
    except ImportError:
        raise _not_installed(address, flag, "obstore") from None
    if address.scheme == "file":
        folder = Path("/", unquote(address.prefix))
        with writing(f"{flag} {address}"):
            return LocalStore(folder, mkdir=writable, automatic_cleanup=True)
    options: ClientConfig = {
        "timeout": timedelta(days=365),  # of a whole answer, which may be long
        "read_timeout": timedelta(seconds=silence),
        "connect_timeout": timedelta(seconds=min(5, silence)),
    }
    common: dict[str, Any] = {"client_options": options, "retry_config": RETRIES}
    if address.scheme in {"http", "https"}:
        options["allow_http"] = address.scheme == "http"
        options["default_headers"] = _login(address, flag)
        return HTTPStore(address.url, **common)
    common["prefix"] = address.prefix or None
    if address.scheme == "s3":
        return _s3(address, flag, common)
    options["allow_http"] = (address.endpoint or "").lower().startswith("http://")
    if address.scheme == "gs":
        google: GCSConfig = {"base_url": address.endpoint} if address.endpoint else {}
        return GCSStore(address.bucket, config=google, **common)
    azure: AzureConfig = {"endpoint": address.endpoint} if address.endpoint else {}
    return AzureStore(address.bucket, config=azure, **common)


def _not_installed(address: Address, flag: str, package: str) -> UserError:
    return UserError(
        f"{flag} {address}",
        f"a URL, and no {package} that reads it",
        f"{package}, which is an extra",
        "pip install 'dcgan-shards[remote]'",
    )


def _s3(address: Address, flag: str, common: dict[str, Any]) -> ObjectStore:
    """As the aws command finds its endpoint, region and credentials; unsigned if there are none."""
    try:
        import boto3
        import botocore.session
        from botocore.exceptions import BotoCoreError
        from obstore.auth.boto3 import Boto3CredentialProvider
    except ImportError:
        raise _not_installed(address, flag, "boto3") from None
    from obstore.store import S3Store

    core = botocore.session.get_session()
    config: S3Config = {}
    provider = None
    try:
        session = boto3.Session(botocore_session=core)
        if session.get_credentials() is None:
            config["skip_signature"] = True
        else:
            # Asked again every few minutes, since some last no longer than a quarter of an hour
            provider = Boto3CredentialProvider(session, ttl=timedelta(minutes=5))
            provider()
        profile = core.get_scoped_config()
    except BotoCoreError as error:
        where = f"{flag} {address}"
        wanted = "credentials as the aws command has them"
        raise UserError(where, first_line(error), wanted, CREDENTIALS["s3"]) from None
    if region := os.environ.get("AWS_REGION") or session.region_name:
        if not re.fullmatch(r"[\w-]+", region):
            wanted = "a region's name, as us-east-1"
            raise UserError("AWS_REGION", "characters that no region has", wanted, "correct it")
        config["region"] = region
    if endpoint := address.endpoint or _usual_endpoint(profile):
        config["aws_endpoint_url_s3"] = endpoint
        common["client_options"]["allow_http"] = endpoint.lower().startswith("http://")
    return S3Store(address.bucket, config=config, credential_provider=provider, **common)


def _usual_endpoint(profile: dict[str, Any]) -> str | None:
    """What the variables name, or else a profile of ~/.aws/config."""
    named = {name: os.environ.get(name) for name in S3_ENDPOINTS}
    named |= {"endpoint_url in ~/.aws/config": profile.get("endpoint_url")}
    found = next(((name, text) for name, text in named.items() if text), None)
    return read_endpoint(found[1], "s3", found[0]) if found else None


def _login(address: Address, flag: str) -> dict[str, str]:
    """The header that `~/.netrc` gives for a host (RFC 7617); none if it does not name it.

    It goes to no other host, wherever that one redirects to: reqwest, under obstore, leaves it out.
    """
    try:
        path = Path(os.environ.get("NETRC") or Path.home() / ".netrc")
    except RuntimeError:  # nobody knows a home
        return {}
    try:
        hosts = netrc.netrc(path).hosts
    except FileNotFoundError:
        return {}
    except (netrc.NetrcParseError, OSError, UnicodeDecodeError) as error:
        line = f", near line {error.lineno}" if isinstance(error, netrc.NetrcParseError) else ""
        found, wanted = f"what cannot be read{line}", "lines of machine, login and password"
        remedy = f"put it right, or name another by NETRC: {flag} {address} asks for it"
        raise UserError(path, found, wanted, remedy) from None
    login, _, password = hosts.get(urlsplit(address.url).hostname or "", ("", "", ""))
    if not login:
        return {}
    return {"Authorization": f"Basic {b64encode(f'{login}:{password}'.encode()).decode()}"}
