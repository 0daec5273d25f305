"""What went wrong at a store, in four parts, from what obstore tells of it.

Its own texts are not shown: they hold URLs with their queries, and what a server answered, which
may repeat a signature.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from http import HTTPStatus
from typing import Self

from pipeline.errors import UserError
from pipeline.remote.address import BUCKETS, S3_ENDPOINTS, Address

CREDENTIALS = {
    "s3": "log in as for the aws command: AWS_PROFILE, AWS_ACCESS_KEY_ID with"
    " AWS_SECRET_ACCESS_KEY, or ~/.aws/credentials. Without the right to list a bucket, S3 says 403"
    " of what is not there, too",
    "gs": "name a key file by GOOGLE_APPLICATION_CREDENTIALS, or run: gcloud auth"
    " application-default login; for a public bucket, set GOOGLE_SKIP_SIGNATURE=true",
    "az": "set AZURE_STORAGE_ACCOUNT_NAME, with AZURE_STORAGE_ACCOUNT_KEY or"
    " AZURE_STORAGE_SAS_TOKEN, or with AZURE_SKIP_SIGNATURE=true for a public container",
    "http": "put the host with its login and password into ~/.netrc",
    "https": "put the host with its login and password into ~/.netrc",
    "file": "see whose it is with ls -l",
}
"""What to do about a store that lets one in no further, by its scheme."""

_EXPIRED = {"ExpiredToken", "TokenRefreshRequired", "InvalidToken"}
_SKEWED = {"RequestTimeTooSkewed", "RequestExpired"}
_ELSEWHERE = {"PermanentRedirect", "AuthorizationHeaderMalformed", "TemporaryRedirect"}
_NO_BUCKET = {"NoSuchBucket", "ContainerNotFound"}
"""The stores' own words for an error:
docs.aws.amazon.com/AmazonS3/latest/API/ErrorResponses.html,
learn.microsoft.com/rest/api/storageservices/blob-service-error-codes."""

_AGAIN = {
    HTTPStatus.REQUEST_TIMEOUT,
    HTTPStatus.TOO_MANY_REQUESTS,
    HTTPStatus.INTERNAL_SERVER_ERROR,
    HTTPStatus.BAD_GATEWAY,
    HTTPStatus.SERVICE_UNAVAILABLE,
    HTTPStatus.GATEWAY_TIMEOUT,
}
"""Answers that may be others a moment later."""

_SIGNS = {
    "dns error": "no host of that name",
    "ConnectionRefused": "the connection is refused",
    "InvalidCertificate": "a certificate that is not trusted",
    "InvalidContentType": "no TLS, which https:// wants",
    "TooManyRedirects": "redirects without end",
    "kind: Timeout": "no answer, or one that stands still",
    "IncompleteBody": "an answer that is cut off",
    "kind: Interrupted": "an answer that is cut off",
    "RangeNotSupported": "an answer that is cut off, of a server that sends no part of an object",
    "NoContentRange": "an answer that is cut off, of a server that sends no part of an object",
    "kind: Connect": "no connection",
    "kind: Request": "no answer",
    "kind: Decode": "an answer that is damaged on its way",
}
"""What obstore's long form of an error holds where no answer came whole, and what that means."""

_LASTING = ("dns error", "InvalidCertificate", "InvalidContentType", "TooManyRedirects")
_NO_PARTS = ("RangeNotSupported", "NoContentRange")
_NO_ENTRY = ("PermissionDeniedError", "UnauthenticatedError", 401, 403)
_UNSIGNED = re.compile(r"source: (\w*Credential\w*|MissingAccount|Token\w+|AzureCli)\b")
"""Where the way to a request's signature ended: a key file, an account's name, a token."""


class UnreachableError(UserError):
    """The store gave no usable answer in time: no connection, or 429 or 5xx to the end."""


class MissingError(UserError):
    """The store says that there is no such object."""


class ExistsError(UserError):
    """The store has an object of that name already."""


@dataclass(frozen=True)
class Failure:
    """An error of obstore's, by what can be told of it without repeating it."""

    kind: str
    """The name of its type."""
    status: int | None
    code: str
    """The store's own word for it, or nothing."""
    sign: str | None
    """A key of `_SIGNS`, where there is no status."""
    text: str

    @classmethod
    def of(cls, error: BaseException) -> Self:
        text = str(error)
        status = re.search(r"status code: (\d{3})\b", text)
        code = re.search(r"<Code>(\w{1,60})</Code>", text)
        return cls(
            kind=type(error).__name__,
            status=int(status[1]) if status else None,
            code=code[1] if code else "",
            sign=None if status else next((sign for sign in _SIGNS if sign in text), None),
            text=text,
        )

    @property
    def anew(self) -> bool:
        """Whether the rest cannot be had: another object by now, or a server without ranges."""
        return self.kind == "PreconditionError" or self.sign in _NO_PARTS

    @property
    def passing(self) -> bool:
        """Whether the same request may do a moment later."""
        if self.status is not None:
            return self.status in _AGAIN or self.anew
        return self.sign is not None and self.sign not in _LASTING

    @property
    def found(self) -> str:
        """In a few words."""
        if self.status is None:
            return _SIGNS[self.sign] if self.sign else _without_secrets(self.text)
        known = self.status in {status.value for status in HTTPStatus}
        phrase = f" {HTTPStatus(self.status).phrase}" if known else ""
        return f"{self.status}{phrase}{f' ({self.code})' if self.code else ''}"


def refusal(failure: Failure, address: Address, name: str, flag: str, patience: float) -> UserError:
    """The error that people see, of an object or, without a name, of the whole set.

    What may pass was tried again for `patience` seconds.
    """
    where = f"{flag} {address.of(name) if name else address}"
    where += f" at {address.endpoint}" if address.endpoint else ""
    found, code, status = failure.found, failure.code, failure.status
    if failure.passing or failure.sign in _LASTING:
        return _unreached(failure, address, where, patience)
    if code in _SKEWED:
        remedy = "set the clock, by NTP for example, and start again"
        return UserError(where, found, "a clock that is right, on this machine", remedy)
    if code in _ELSEWHERE or "BareRedirect" in failure.text:
        return _redirected(failure, address, where)
    refused = failure.kind in _NO_ENTRY or status in _NO_ENTRY or code in _EXPIRED
    if refused or _UNSIGNED.search(failure.text):
        found = found if status else "no credentials"
        return UserError(where, found, "credentials that suffice", CREDENTIALS[address.scheme])
    missing = failure.kind == "FileNotFoundError" or "kind: NotFound" in failure.text
    if missing or code in _NO_BUCKET:
        if code in _NO_BUCKET:
            remedy = "see that the URL is right, or make the bucket with the store's own tools"
            return MissingError(where, "no such bucket", "a bucket that exists", remedy)
        remedy = "see that the URL is right, and that packing to it has ended"
        return MissingError(where, "no such object", "an object of a shard set", remedy)
    if failure.kind == "AlreadyExistsError":
        remedy = f"choose another {flag}, or delete it first"
        return ExistsError(where, "an object of that name", "a place that is free", remedy)
    if "MissingContentLength" in failure.text:
        found, wanted = "an answer that does not say how long it is", "the header Content-Length"
        return UserError(where, found, wanted, "have the server send files as they are")
    return UserError(
        where, found, "an object", "see that the URL and the store's settings are right"
    )


def _unreached(failure: Failure, address: Address, where: str, patience: float) -> UserError:
    """The refusal where no answer came, or none of use."""
    tried = f", for {patience:g} seconds" if failure.passing else ""
    remedy = "see that the store is up and that this machine reaches it, and start again"
    if failure.sign == "dns error" and address.scheme in BUCKETS and not address.endpoint:
        remedy = "see that this machine is online; for a store of your own, give --endpoint"
    if failure.sign == "InvalidContentType":
        remedy = "write http://, if the store has no certificate"
    wanted = f"an answer of {_service(address)}"
    return UnreachableError(where, failure.found + tried, wanted, remedy)


def _redirected(failure: Failure, address: Address, where: str) -> UserError:
    """The refusal where the object is elsewhere."""
    if address.scheme != "s3" and not failure.code:
        found, wanted = "a redirect that does not say where", "an object"
        return UserError(where, found, wanted, "see that the URL is that of a set's folder")
    found = "a redirect to another region" if failure.status is None else failure.found
    remedy = "set AWS_REGION to the bucket's, or name its service by --endpoint"
    return UserError(where, found, "the region that has the bucket", remedy)


def _service(address: Address) -> str:
    clouds = {"s3": "Amazon S3", "gs": "Google Cloud Storage", "az": "Azure Blob Storage"}
    if address.scheme == "s3" and any(name in os.environ for name in S3_ENDPOINTS):
        return "the endpoint in AWS_ENDPOINT_URL"
    return address.endpoint or clouds.get(address.scheme, address.bucket)


def _without_secrets(text: str) -> str:
    """The first line of a text, up to what might be a URL or a value that is quoted."""
    line = re.split(r"\w+://|[\"'?@=<{]|[Uu]rl:", text.splitlines()[0] if text else "")[0]
    return line.strip()[:160] or "an error without words"
