"""A trained generator for others: a folder with its weights, an ONNX net, a card and a page."""

import os

# From its import on, onnxruntime 1.32 reports its use to its makers unless this is set (its
# Privacy.md). Nothing is uploaded here.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
