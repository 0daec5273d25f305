"""Files that are no archive of images, though they should be: what they are, and what to type."""

from __future__ import annotations

import json
import re
import shlex
from contextlib import suppress
from pathlib import Path

from pipeline.errors import UserError
from pipeline.images.formats import is_image
from pipeline.shards.shard_set import pack_command
from pipeline.shards.tar import COMPRESSIONS

CELEBA_ZIP_BYTES = 1_443_490_838
"""The size of `img_align_celeba.zip` as its authors publish it."""

PAGE_BYTES = 1 << 16
"""How much of a web page is looked at: Google Drive's have 2 to 10 kB."""

_ARCHIVE = re.compile(
    r"\.(zip|7z|rar|tar|tgz|tbz2?|txz|tar\.(gz|bz2|xz|zst|lz4|z))(\.001|\.aa)?$", re.IGNORECASE
)
"""The end of the name of an archive, or of the first part of a split one."""

_SPLIT_BYTES = re.compile(
    r"(.+\.(?:zip|7z|rar|tar|tgz|gz|bz2|xz|zst|lz4))\.(?:\d{3}|a[a-z])", re.IGNORECASE
)
_SPLIT_ZIP = re.compile(r"(.+)\.z\d\d", re.IGNORECASE)
_SPLIT_RAR = re.compile(r".+\.(?:part\d+\.rar|r\d\d)", re.IGNORECASE)

_OTHER_KINDS = {
    b"7z\xbc\xaf\x27\x1c": ("a 7z archive", "7z x {} -o{}"),
    b"Rar!\x1a\x07": ("a rar archive", "unrar x {} {}/"),
    b"\x28\xb5\x2f\xfd": ("a file compressed by zstd", "zstd -d {} -o {}"),
    b"\x04\x22\x4d\x18": ("a file compressed by lz4", "lz4 -d {} {}"),
    b"\x1f\x9d": ("a file compressed by compress", "gzip -dc {} > {}"),
}
"""First bytes of what is not read here: its kind, and what unpacks it to a folder or a tar."""

_PAGE = re.compile(r"<(!doctype\s+html|html|head)\b", re.IGNORECASE)
_TITLE = re.compile(r"<title[^>]*>([^<]*)", re.IGNORECASE)
_DRIVE_SCAN = re.compile(r"""id=["'](?:download-form|uc-download-link)["']""")
_ERROR_CODE = re.compile(r"<Code>([^<]*)")
_PASSED_OVER = {"<!--": "-->", "<?xml": "?>"}
"""What may stand before a page's first element: starts and ends."""
_SCRIPT = re.compile(r"</?script\b", re.IGNORECASE)
_SPACE = "\ufeff \t\r\n"
_DRIVE_ID = re.compile(r"""name="id" value="([\w-]+)"|[?&;]id=([\w-]+)""")


def is_archive(name: str) -> bool:
    """Whether a name ends as that of an archive, readable here or not."""
    return _ARCHIVE.search(name) is not None


def without_suffix(name: str) -> str:
    """An archive's name without what says that it is one."""
    return _ARCHIVE.sub("", name)


def unpacked_folder(path: Path) -> Path:
    """A folder beside an archive to unpack it to: its name without its suffix."""
    name = without_suffix(path.name)
    return path.with_name(name if name != path.name else f"{path.name}-unpacked")


def not_an_archive(path: Path, damage: str = "") -> UserError:
    """The refusal of a file that is no zip or tar that can be read.

    Args:
        path: the file.
        damage: what is wrong with a tar, compressed or not.
    """
    with path.open("rb") as file:
        head = file.read(PAGE_BYTES)
    size = path.stat().st_size
    where, wanted = f"SOURCE {path}", "a folder of images, or a zip or tar of them"
    if instead := stand_in(head, size):
        wanted = f"the archive itself (CelebA's zip has {CELEBA_ZIP_BYTES:,} bytes)"
        return UserError(where, instead[0], wanted, instead[1])
    if is_image(head):
        remedy = f"name its folder: {pack_command(path.absolute().parent)}"
        return UserError(where, "one image", wanted, remedy)
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


def is_stand_in(path: Path) -> bool:
    """Whether a file is what a server or a tool saved in place of another."""
    with path.open("rb") as file:
        return stand_in(file.read(PAGE_BYTES), path.stat().st_size) is not None


def stand_in(head: bytes, size: int) -> tuple[str, str] | None:
    """What was saved in place of a file, and the remedy; None if it is something else.

    It is told by the file's beginning, and its size in bytes.
    """
    if not size:
        return "an empty file", "download it again"
    if head.startswith(b"version https://git-lfs"):
        return "a Git LFS pointer", "fetch the file itself: git lfs pull, in its repository"
    if page := web_page(head, size):
        return page
    text = _text(head)
    again = "the server refused: see that the link is right and has not expired, and download again"
    if text.startswith("<Error>"):
        code = match[1] if (match := _ERROR_CODE.search(text)) else "no code"
        return f"a server's error message of {size:,} bytes ({code:.80})", again
    if text.startswith("{") and size <= PAGE_BYTES:
        with suppress(ValueError, RecursionError):
            json.loads(text)
            shown = " ".join(text.split())
            return f"a server's message of {size:,} bytes, in JSON ({shown:.80})", again
    return None


def _text(head: bytes) -> str:
    """A text file's beginning, from its first element on: no XML declaration, no comment."""
    if head.startswith((b"\xff\xfe", b"\xfe\xff")):
        text = head.decode("utf-16", errors="replace")
    else:
        text = head.decode(errors="replace")
    place = 0
    while True:
        while text[place : place + 1] and text[place] in _SPACE:
            place += 1
        ends = [end for start, end in _PASSED_OVER.items() if text.startswith(start, place)]
        if not ends or (found := text.find(ends[0], place)) < 0:
            return text[place:]
        place = found + len(ends[0])


def web_page(head: bytes, size: int) -> tuple[str, str] | None:
    """What a web page saved in place of a file is, and the remedy; None if it is no page.

    Google Drive sends one of two. The names in its form are the same in every language.
    """
    text = _text(head)
    if not _PAGE.match(text):
        return None
    found = f"a web page of {size:,} bytes"
    if title := " ".join(match[1].split()) if (match := _TITLE.search(text)) else "":
        found += f" ({title:.80})"
    if "google" in text.lower() and _DRIVE_SCAN.search(text):
        match = _DRIVE_ID.search(text)
        drive_id = (match[1] or match[2]) if match else "ID_IN_THE_LINK"
        return found, (
            "confirm the download on that page in a browser,"
            f" or: pip install gdown && gdown {drive_id}"
        )
    read = "".join(_SCRIPT.split(text)[::2]).lower()
    if "quota" in read or "too many users" in read:
        return found, "the download quota was exceeded: try again tomorrow, or take a mirror"
    return found, "open the link in a browser, see what the page asks for, and download again"


def _part(path: Path) -> tuple[str, str] | None:
    """What a part of a split archive is, by its name, and what to type."""
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
    """What an archive that is not read here is, by its first bytes, and what to type."""
    for magic, (kind, program) in _OTHER_KINDS.items():
        if head.startswith(magic):
            folder = unpacked_folder(path)
            tar = folder.with_name(f"{folder.name}.tar")
            return kind, _unpacking(program, path, tar if "compressed" in kind else folder)
    return None


def _unpacking(program: str, path: Path, target: Path) -> str:
    command = program.format(shlex.quote(str(path)), shlex.quote(str(target)))
    return f"unpack it first: {command} && {pack_command(target)}"
