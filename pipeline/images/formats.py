"""What a file that cannot be decoded is, by its first bytes."""

from __future__ import annotations

from pipeline.images.netpbm import is_netpbm

FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF", "AVIF", "JPEG2000")
"""Formats that are decoded beside Netpbm's, by Pillow's names. It also knows EPS, for which it runs
Ghostscript."""

IMAGES = {
    b"8BPS": "Photoshop (PSD)",
    b"\xff\x0a": "JPEG XL",
    b"\0\0\0\x0cJXL ": "JPEG XL",
    b"II\xbc\x01": "JPEG XR",
    b"v/1\x01": "OpenEXR",
    b"#?RADIANCE": "Radiance HDR",
    b"DDS ": "DDS",
    b"qoif": "QOI",
    b"gimp xcf": "GIMP",
    b"\0\0\x01\0": "ICO",
    b"%!PS": "PostScript",
    b"P7\n": "PAM",
    b"Pf\n": "PFM",
    b"PF\n": "PFM",
}
"""First bytes of images that are not decoded here."""

OTHERS = {
    b"%PDF": "a PDF",
    b"PK\x03\x04": "a zip",
    b"\x1f\x8b": "a gzip file",
    b"Rar!": "a rar archive",
    b"7z\xbc\xaf\x27\x1c": "a 7z archive",
    b"\x1a\x45\xdf\xa3": "a video",
    b"\x93NUMPY": "a NumPy array",
    b"version https://git-lfs": "a Git LFS pointer: git lfs pull fetches the file itself",
    b"<!doctype html": "a web page",
    b"<html": "a web page",
    b"<?xml": "an XML document",
    b"{": "a JSON document",
}
"""First bytes, in lower case, of other files that users have under an image's name."""

_DECODED: tuple[bytes, ...] = (
    b"\0\0\0\x0cjP  ",
    b"\xff\xd8\xff",
    b"\x89PNG\r\n\x1a\n",
    b"GIF8",
    b"II*\0",
    b"MM\0*",
    b"\xff\x4f\xff\x51",
)
"""First bytes of images that are decoded, for formats that a fixed prefix tells."""

HEAD_BYTES = 1024


def unsupported(data: bytes) -> str:
    """Name a file that no decoder took: a fault, then its particulars in parentheses."""
    head = data[:HEAD_BYTES]
    name = _container(head) or next(
        (name for magic, name in IMAGES.items() if head.startswith(magic)), None
    )
    text = head.removeprefix(b"\xef\xbb\xbf").lstrip().lower()
    if b"<svg" in text and text.startswith(b"<"):
        name = "SVG"
    if name == "video":
        return "not an image (a video)"
    if name is not None:
        return f"unsupported {name} (convert it to PNG or JPEG)"
    if not data.strip(b"\0"):
        return f"not an image ({'only zeros' if data else 'an empty file'})"
    for magic, name in OTHERS.items():
        if text.startswith(magic.lower()):
            return f"not an image ({name})"
    return "not an image"


def is_image(head: bytes) -> bool:
    """Whether a file that begins so is an image, decoded here or not."""
    if head.startswith((*_DECODED, *IMAGES)) or is_netpbm(head):
        return True
    if head.startswith(b"BM"):
        return head[6:10] == bytes(4)
    if head.startswith(b"RIFF"):
        return head[8:12] == b"WEBP"
    return _container(head) in ("AVIF", "HEIC")


def _container(head: bytes) -> str | None:
    """The format inside a container of ISO/IEC 14496-12 or in RIFF."""
    if head.startswith(b"RIFF") and head[8:12] == b"AVI ":
        return "video"
    if head[4:8] != b"ftyp":
        return None
    brands = head[8 : int.from_bytes(head[:4], "big")]
    if any(brand in brands for brand in (b"heic", b"heix", b"hevc", b"heim", b"heis", b"mif1")):
        return "AVIF" if b"avif" in brands else "HEIC"
    if b"avif" in brands or b"avis" in brands:
        return "AVIF"
    return "Canon raw (CR3)" if brands.startswith(b"crx ") else "video"
