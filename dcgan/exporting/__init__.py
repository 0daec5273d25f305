"""A trained generator for others: a folder with its weights, an ONNX net, a card and a page."""
