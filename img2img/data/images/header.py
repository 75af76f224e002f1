"""The headers of image files, and PNGs whose text is larger than Pillow reads.

A prompt, a log or a colour table of megabytes in a PNG says nothing about the pixels, so it is left out.
"""

import io
import struct
import zlib
from typing import Any, BinaryIO

from PIL import Image

SIGNATURE = b"\x89PNG\r\n\x1a\n"
LARGEST = 1 << 20
"""Bytes of one text when it is unpacked, as Pillow has it."""
TOTAL = 32 << 20
"""Bytes of all texts together; Pillow takes twice as many."""
_TEXTS = (b"tEXt", b"zTXt", b"iTXt", b"iCCP", b"eXIf")


def open_header(file: BinaryIO, formats: tuple[str, ...] | None = None) -> Image.Image:
    """The image of a file, its header read and its pixels not yet; a PNG without those texts that are larger than Pillow reads.

    Raises whatever Pillow raises.
    """
    read, profile = without_large_text(file)
    image = Image.open(read, formats=formats)
    if profile is not None:
        image.info["icc_profile"] = profile
    return image


def decoder_arguments(image: Image.Image) -> tuple[Any, ...] | None:
    """What Pillow's decoder is told of how a file keeps its pixels; empty for an image of no file, or of no kind that says it.

    Once they were decoded Pillow has forgotten it, so the file's header is read again; None where there is no such file.
    """
    if getattr(image, "tile", ()):
        args = image.tile[0].args  # type: ignore[attr-defined]
        return args if isinstance(args, tuple) else (args,)
    if image.format not in ("PNG", "PPM", "TIFF"):
        return ()
    path = getattr(image, "filename", "")
    try:
        with open(path, "rb") as file, open_header(file, (image.format,)) as again:
            return decoder_arguments(again) if again.size == image.size and again.tile else None  # type: ignore[attr-defined]
    except Exception:  # it is gone, or another by now
        return None


def without_large_text(file: BinaryIO) -> tuple[BinaryIO, bytes | None]:
    """A PNG's file without the texts, EXIF and colour profile that Pillow would refuse it for, and that profile unpacked.

    Any other file comes back as it is, at its start.
    """
    start = file.read(len(SIGNATURE))
    left_out, profile = _refused(file) if start == SIGNATURE else ([], None)
    file.seek(0)
    if not left_out:
        return file, None
    whole = file.read()
    kept, at = [], 0
    for begin, end in left_out:
        kept.append(whole[at:begin])
        at = end
    return io.BytesIO(b"".join([*kept, whole[at:]])), profile


def _refused(file: BinaryIO) -> tuple[list[tuple[int, int]], bytes | None]:
    """Where the chunks that Pillow would refuse begin and end, and the unpacked profile where it is among them."""
    left_out: list[tuple[int, int]] = []
    profile: bytes | None = None
    total, at = 0, len(SIGNATURE)
    while len(head := file.read(8)) == 8:
        length, kind = struct.unpack(">I4s", head)
        end = at + 12 + length
        if kind in _TEXTS:
            data, check = file.read(length), file.read(4)
            sound = check == struct.pack(">I", zlib.crc32(kind + data))
            size = len(data) + _unpacked(kind, data)
            total += size
            if not sound or size > LARGEST or total > TOTAL:
                left_out.append((at, end))
                total -= size
                if kind == b"iCCP" and sound:
                    profile = _profile(data)
        else:
            file.seek(end)
        at = end
    return left_out, profile


def _unpacked(kind: bytes, data: bytes) -> int:
    """How many bytes the packed part of a chunk becomes, at most one more than `LARGEST`."""
    if kind in (b"tEXt", b"eXIf"):
        return 0
    after = data.find(b"\0") + 2  # the keyword, a zero, and the way of packing
    if kind == b"iTXt":
        if data[after - 1 : after] != b"\1":
            return 0
        after = data.find(b"\0", data.find(b"\0", after + 1) + 1) + 1  # a language and a translated keyword
    try:
        return len(zlib.decompressobj().decompress(data[after:], LARGEST + 1))
    except zlib.error:
        return 0


def _profile(data: bytes) -> bytes | None:
    try:
        return zlib.decompressobj().decompress(data[data.find(b"\0") + 2 :], 16 << 20)
    except zlib.error:
        return None
