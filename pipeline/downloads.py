"""What a file is that should have been an archive of images, and what to type about it."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

from pipeline.errors import UserError
from pipeline.tars import COMPRESSIONS

CELEBA_ZIP_BYTES = 1_443_490_838
"""Of `img_align_celeba.zip` as its authors publish it."""

PAGE_BYTES = 1 << 16
"""Of a web page, that are looked at: Google Drive's have 2 to 10 kB."""

_ARCHIVE = re.compile(
    r"\.(zip|7z|rar|tar|tgz|tbz2?|txz|tar\.(gz|bz2|xz|zst))(\.001|\.aa)?$", re.IGNORECASE
)
"""The end of an archive's name, or of the first part's where it was split."""

_SPLIT_BYTES = re.compile(
    r"(.+\.(?:zip|7z|rar|tar|tgz|gz|bz2|xz|zst))\.(?:\d{3}|a[a-z])", re.IGNORECASE
)
_SPLIT_ZIP = re.compile(r"(.+)\.z\d\d", re.IGNORECASE)
_SPLIT_RAR = re.compile(r".+\.(?:part\d+\.rar|r\d\d)", re.IGNORECASE)

_PAGE = re.compile(rb"^\W*<(!doctype html|html|head)\b", re.IGNORECASE)
_TITLE = re.compile(r"<title[^>]*>([^<]*)", re.IGNORECASE)
_DRIVE_ID = re.compile(r"""name="id" value="([\w-]+)"|[?&;]id=([\w-]+)""")


def is_archive(name: str) -> bool:
    """Whether a name ends as that of an archive, of a kind that is read or another."""
    return _ARCHIVE.search(name) is not None


def pack_command(source: Path | str) -> str:
    """The command that packs a source, to paste."""
    return f"python tools/make_shards.py {shlex.quote(str(source))}"


def unpacked_folder(path: Path) -> Path:
    """Where to unpack an archive to: its name without its suffix, beside it."""
    name = _ARCHIVE.sub("", path.name)
    return path.with_name(name if name != path.name else f"{path.name}-unpacked")


def not_an_archive(path: Path, damage: str = "") -> UserError:
    """Say what a file is instead of a zip or tar that can be read.

    Args:
        path: of the file.
        damage: of a tar, compressed or not: what is wrong with it.
    """
    with path.open("rb") as file:
        head = file.read(PAGE_BYTES)
    size = path.stat().st_size
    where, wanted = f"SOURCE {path}", "a folder of images, or a zip or tar of them"
    if page := web_page(head, size):
        wanted = f"the archive itself (CelebA's zip has {CELEBA_ZIP_BYTES:,} bytes)"
        return UserError(where, page[0], wanted, page[1])
    if other := _part(path) or _other_kind(path, head):
        found, command = other
        return UserError(where, found, wanted, command)
    if damage:
        kind = "a compressed tar" if head.startswith(tuple(COMPRESSIONS)) else "a tar"
        found = f"{kind} of {size:,} bytes, cut off or damaged: {damage}"
        remedy = "copy or download it again"
    elif head.startswith(tuple(COMPRESSIONS)):
        found = f"a compressed file of {size:,} bytes, damaged or without a tar in it"
        remedy = "download it again, or name the archive that holds the images"
    elif head.startswith(b"PK"):
        found, remedy = f"a zip of {size:,} bytes, cut off or damaged", "download it again"
    else:
        found = f"{size:,} bytes of something else"
        remedy = "name the folder or the archive that holds the images"
    return UserError(where, found, wanted, remedy)


def web_page(head: bytes, size: int) -> tuple[str, str] | None:
    """What a web page is that was saved in place of a file, and the remedy; None if it is none.

    Google Drive answers so for two reasons. The names of the form are the same in every language.

    Args:
        head: the file's beginning.
        size: the file's, in bytes.
    """
    if not _PAGE.match(head):
        return None
    text = head.decode(errors="replace")
    found = f"a web page of {size:,} bytes"
    if title := " ".join(match[1].split()) if (match := _TITLE.search(text)) else "":
        found += f" ({title:.80})"
    if "download-form" in text or "virus" in text.lower():
        match = _DRIVE_ID.search(text)
        drive_id = (match[1] or match[2]) if match else "ID_IN_THE_LINK"
        return found, (
            "confirm the download on that page in a browser,"
            f" or: pip install gdown && gdown {drive_id}"
        )
    if "quota" in text.lower() or "too many users" in text.lower():
        return found, "the download quota was exceeded: try again tomorrow, or take a mirror"
    return found, "open the link in a browser, see what the page asks for, and download again"


def _part(path: Path) -> tuple[str, str] | None:
    """What a part of a split archive is, and what to type; by its name."""
    folder = unpacked_folder(path)
    if match := _SPLIT_BYTES.fullmatch(path.name):
        whole = path.with_name(match[1])
        joined = f"cat {shlex.quote(str(whole))}.* > {shlex.quote(str(whole))}"
        return "one part of a split archive", f"join all of them: {joined} && {pack_command(whole)}"
    match = _SPLIT_ZIP.fullmatch(path.name)
    last = path.with_name(match[1] + ".zip") if match else path
    if match or (path.suffix.lower() == ".zip" and path.with_suffix(".z01").exists()):
        whole = last.with_name(f"{last.stem}-whole.zip")
        joined = f"zip -s 0 {shlex.quote(str(last))} --out {shlex.quote(str(whole))}"
        return "one part of a split zip", f"join all of them: {joined} && {pack_command(whole)}"
    if _SPLIT_RAR.fullmatch(path.name):
        return "one part of a split rar", _unpacking("unrar x {} {}/", path, folder)
    return None


def _other_kind(path: Path, head: bytes) -> tuple[str, str] | None:
    """What an archive of a kind that is not read is, and what to type; by its first bytes."""
    folder = unpacked_folder(path)
    if head.startswith(b"7z\xbc\xaf\x27\x1c"):
        return "a 7z archive", _unpacking("7z x {} -o{}", path, folder)
    if head.startswith(b"Rar!\x1a\x07"):
        return "a rar archive", _unpacking("unrar x {} {}/", path, folder)
    if head.startswith(b"\x28\xb5\x2f\xfd"):
        tar = folder.with_name(f"{folder.name}.tar")
        return "a file compressed by zstd", _unpacking("zstd -d {} -o {}", path, tar)
    return None


def _unpacking(program: str, path: Path, target: Path) -> str:
    command = program.format(shlex.quote(str(path)), shlex.quote(str(target)))
    return f"unpack it first: {command} && {pack_command(target)}"
