"""A page that draws: the net and a runtime for it in one file, for a browser without a network."""

from __future__ import annotations

import base64
import gzip
import hashlib
import shlex
from importlib import resources
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from markupsafe import Markup

from dcgan.cli import version
from dcgan.exporting.onnx_net import difference
from dcgan.nets.models import Generator
from dcgan.options import RunLabels
from dcgan.reporting.page import templates
from pipeline.errors import UserError, plain
from pipeline.files import cache_folder, file_digest
from pipeline.images.size import sides

RUNTIME_VERSION = "1.30.0"
MODULE, WASM = "ort.wasm.bundle.min.mjs", "ort-wasm-simd-threaded.wasm"
DIGESTS = {
    MODULE: "11e64bd8ffe11bd1a2a2f0d6275fdfbbba7262f0b76b99b53d228a8a22ef3d90",
    WASM: "3398c10d07d229bd91b364548e130e0e51a8e5704b88c7c083ebbeb78842dee2",
}
"""SHA-256 of the files in npm's onnxruntime-web of `RUNTIME_VERSION`."""

TOOLS = {"picture": "Picture", "walk": "Walk", "arithmetic": "Arithmetic", "plane": "Plane"}

SCRIPTS = ("normals", "points", "drawing", "canvases", "tools", "page")
"""Of the page, in this order one module."""


class WebRuntime(NamedTuple):
    """The files of onnxruntime-web that a page holds."""

    module: bytes
    """The JavaScript module."""
    wasm: bytes
    """What it runs."""


def find_web_runtime(folder: Path | None) -> WebRuntime:
    """Read onnxruntime-web from where npm put it, and check that it is the version pinned here.

    Args:
        folder: the one that `npm install --prefix` was given, or the package itself; None for
            the user's cache.

    Raises:
        UserError: it is not there, or is another version.
    """
    try:
        prefix = folder or cache_folder() / "web"
    except RuntimeError as error:  # no home
        raise UserError(
            "--web-runtime", str(error), "a folder with onnxruntime-web", "name one"
        ) from None
    places = [prefix / "node_modules" / "onnxruntime-web" / "dist", prefix / "dist"]
    dist = next((place for place in places if (place / WASM).is_file()), places[0])
    install = f"npm install --prefix {shlex.quote(str(prefix))} onnxruntime-web@{RUNTIME_VERSION}"
    for name, digest in DIGESTS.items():
        path = dist / name
        if not path.is_file() or file_digest(path) != digest:
            raise UserError(
                f"--web-runtime {folder}" if folder else prefix,
                f"another {path}" if path.is_file() else f"no {path}",
                f"that of onnxruntime-web {RUNTIME_VERSION}, which the page draws with",
                install,
            )
    return WebRuntime((dist / MODULE).read_bytes(), (dist / WASM).read_bytes())


def playground_page(
    model: bytes, net: Generator, labels: RunLabels | None, title: str, runtime: WebRuntime
) -> str:
    """Write a page that draws with a net, in eval mode on the CPU, whose ONNX model is `model`.

    Returns:
        HTML that needs no other file. Weights are in half precision if on 64 seeds no pixel
        differs by more than a level from torch's.
    """
    weights, smaller = "half", halve_weights(model)
    levels = difference(smaller, net).levels
    if levels > 1:
        weights, smaller = "single", model
        levels = difference(model, net).levels
    ours = {name: _asset(f"{name}.js") for name in ("worker", *SCRIPTS)}
    style = (resources.files("dcgan.reporting") / "assets" / "style.css").read_text("utf-8")
    parts = {
        "ort": _packed(runtime.module),
        "wasm": _packed(runtime.wasm),
        "net": _packed(smaller),
        "worker": ours.pop("worker"),
        "script": "\n".join(ours.values()),
        "style": style + _asset("playground.css"),
    }
    return (
        templates("dcgan.exporting")
        .get_template("playground.html")
        .render(
            # Ours, the runtime's, and base64: nothing that a run's files hold
            **{name: Markup(part) for name, part in parts.items()},  # noqa: S704
            policy=_policy(parts["script"], parts["style"]),
            title=plain(title),
            facts=_facts(net, labels),
            tools=TOOLS,
            weights=weights,
            levels="1 level" if levels == 1 else f"{levels} levels",
            sizes=_sizes(parts),
            licence=_asset("onnxruntime-licence.txt"),
            runtime_version=RUNTIME_VERSION,
            version=version(),
        )
    )


def halve_weights(model: bytes) -> bytes:
    """Store the weights of an ONNX model in half precision; it computes in single as before.

    Vectors stay as they are: BatchNorm's variances may be too small for it.
    """
    import onnx

    halved = onnx.load_from_string(model)
    graph = halved.graph
    casts = []
    for tensor in graph.initializer:
        if tensor.data_type == onnx.TensorProto.FLOAT and len(tensor.dims) > 1:
            name, half = tensor.name, f"{tensor.name}.half"
            weights = onnx.numpy_helper.to_array(tensor).astype(np.float16)
            tensor.CopyFrom(onnx.numpy_helper.from_array(weights, half))
            cast = onnx.helper.make_node("Cast", [half], [name], to=onnx.TensorProto.FLOAT)
            casts.append(cast)
    nodes = [*casts, *graph.node]  # each after those that it takes from
    del graph.node[:]
    graph.node.extend(nodes)
    data: bytes = halved.SerializeToString()
    return data


def _facts(net: Generator, labels: RunLabels | None) -> dict[str, Any]:
    """What the page's script needs to know of the net."""
    width, height = sides(net.image_size)
    space = labels.space if labels else net.labels
    return {
        "nz": net.options["--nz"],
        "width": width,
        "height": height,
        "channels": net.options["--channels"],
        "labels": space
        and {
            "kind": space.kind,
            "names": [plain(name) for name in space.names],
            "rows": labels.rows if labels else [],
        },
    }


def _sizes(parts: dict[str, str]) -> dict[str, str]:
    """The megabytes of a page, and of what it holds."""
    sizes = {name: len(part) for name, part in parts.items()}
    runtime, net, total = sizes["ort"] + sizes["wasm"], sizes["net"], sum(sizes.values())
    found = {"total": total, "runtime": runtime, "net": net, "rest": total - runtime - net}
    return {name: f"{size / 1e6:.{1 if size > 1e6 else 2}f}" for name, size in found.items()}


def _policy(script: str, style: str) -> str:
    """A policy under which nothing is loaded, and nothing runs but our script and what it unpacks.

    The worker and the runtime are blobs that the script makes.
    """
    ours, looks = (
        base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
        for text in (script, style)
    )
    return (
        f"default-src 'none'; script-src 'sha256-{ours}' blob: 'wasm-unsafe-eval'; "
        f"worker-src blob:; style-src 'sha256-{looks}'; img-src data: blob:; "
        "base-uri 'none'; form-action 'none'"
    )


def _packed(data: bytes) -> str:
    return base64.b64encode(gzip.compress(data, 6, mtime=0)).decode()


def _asset(name: str) -> str:
    return (resources.files("dcgan.exporting") / "assets" / name).read_text("utf-8")
