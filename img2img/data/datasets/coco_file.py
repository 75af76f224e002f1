"""A COCO instance file as it is read: every field by its type, or an error that names the field and the file."""

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any
from unicodedata import normalize

from img2img.errors import InputError
from img2img.files.json_files import read_json


def whole_number(value: Any) -> int:
    """A whole number in any form that JSON files have: 48, 48.0 or "48".

    Raises:
        ValueError: anything else, true and false among it.
    """
    if isinstance(value, str) and re.fullmatch(r"0|-?[1-9][0-9]{0,18}", value):  # not "01", which is another id than "1"
        return int(value)
    if isinstance(value, float) and value.is_integer():
        return int(value)
    if isinstance(value, int) and not isinstance(value, bool):
        return value
    raise ValueError("expected a whole number")


def _pixels(value: Any) -> int:
    number = whole_number(value)
    if number < 1:
        raise ValueError("expected 1 pixel or more")
    return number


def _id(value: Any) -> int | str:
    try:
        return whole_number(value)
    except ValueError:
        if isinstance(value, str) and value:
            return value
        raise ValueError("expected a whole number or text") from None


def _text(value: Any) -> str:
    if not isinstance(value, str) or not value.strip():
        raise ValueError("expected text")
    return normalize("NFC", value)


def _outline(value: Any) -> list[Any] | dict[str, Any]:
    if not value:
        raise ValueError("it has no outline, as in files of boxes: expected polygons or run lengths")
    if not isinstance(value, list | dict):
        raise ValueError("expected polygons [[x, y, ...], ...] or run lengths {size, counts}")
    return value


def _crowd(value: Any) -> bool:
    if value is None or isinstance(value, bool):
        return bool(value)
    number = whole_number(value)
    if number not in (0, 1):
        raise ValueError("expected 0 or 1")
    return number == 1


_Readers = dict[str, Callable[[Any], Any]]
PARTS: Mapping[str, _Readers] = {
    "images": {"id": _id, "file_name": _text, "height": _pixels, "width": _pixels},
    "annotations": {"id": _id, "image_id": _id, "category_id": _id, "segmentation": _outline},
    "categories": {"id": _id, "name": _text},
}
"""The lists of a file that are used, and how the fields that each of their objects must have are read."""

_MAY_LACK: Mapping[str, _Readers] = {"annotations": {"iscrowd": _crowd}}


def read_coco(path: Path) -> dict[str, list[dict[str, Any]]]:
    """The lists of `PARTS`, with those fields alone: sizes as ints, ids as ints or text, names in Unicode's form NFC.

    Whole numbers may be written in any form: 48, 48.0 or "48". `iscrowd` may be missing, 0, 1, true or false. Whether a region
    can be drawn is not looked at here.

    Raises:
        InputError: no such file, no JSON, no COCO, a field of another type, an id or a picture that occurs twice, or an
            annotation of a picture or a category that is not there.
    """
    data = read_json(path)
    if not isinstance(data, dict) or any(not isinstance(data.get(part), list) for part in PARTS):
        has = sorted(data) if isinstance(data, dict) else f"a {type(data).__name__}"
        raise InputError(
            f"{path} has {has}: expected a COCO instance file with lists {', '.join(PARTS)}; give an `instances_*.json`"
        )
    read = {part: [_item(path, part, i, item) for i, item in enumerate(data[part])] for part in PARTS}
    images, categories = ({item["id"] for item in read[part]} for part in ("images", "categories"))
    if len(images) < len(read["images"]) or len(categories) < len(read["categories"]):
        raise InputError(f"{path} has images or categories of one id: expected each id once; number them anew")
    of_file: dict[str, Any] = {}
    for image in read["images"]:
        if (other := of_file.setdefault(image["file_name"], image["id"])) != image["id"]:
            raise InputError(
                f"images {other!r} and {image['id']!r} in {path} are one file, {image['file_name']}: expected each file once, "
                "since what one outlines would be background in the other; put their annotations under one id"
            )
    for a in read["annotations"]:
        for key, known in (("image_id", images), ("category_id", categories)):
            if a[key] not in known:
                raise InputError(
                    f"annotation {a['id']} in {path} has {key} {a[key]!r}, which the file does not define: expected one of its "
                    f"{len(known)} ids; correct or remove it"
                )
    return read


def _item(path: Path, part: str, index: int, item: Any) -> dict[str, Any]:
    """The fields of one object of a list."""
    readers = PARTS[part]
    if not isinstance(item, dict) or any(key not in item for key in readers):
        lack = ", ".join(key for key in readers if key not in item) if isinstance(item, dict) else ""
        what = f"lacks {lack}" if lack else "is not an object"
        raise InputError(f"{part}[{index}] in {path} {what}: expected {', '.join(readers)}; restore the file")
    read: dict[str, Any] = {}
    for key, reader in (readers | _MAY_LACK.get(part, {})).items():
        try:
            read[key] = reader(item.get(key))
        except ValueError as error:
            which = f"annotation {item['id']!r:.50}" if part == "annotations" else f"{part}[{index}]"
            raise InputError(f"{which} in {path} has {key} {item[key]!r:.80}: {error}; correct or remove it") from error
    return read


def id_order(value: int | str) -> tuple[bool, int | str]:
    """What sorts ids: numbers first, then texts."""
    return isinstance(value, str), value
