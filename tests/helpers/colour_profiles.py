"""Colour profiles written by hand: matrices and gammas of the usual wide spaces (adapted to D50), as the ICC format has them."""

import struct
from collections.abc import Sequence

D50 = (0.9642, 1.0, 0.8249)


def _fixed(values: Sequence[float]) -> bytes:
    return struct.pack(f">{len(values)}i", *(round(v * 65536) for v in values))


def _xyz(values: Sequence[float]) -> bytes:
    return b"XYZ \0\0\0\0" + _fixed(values)


def _curve(gamma: float) -> bytes:
    return b"curv\0\0\0\0" + struct.pack(">IH", 1, round(gamma * 256)) + b"\0\0"


def _profile(space: bytes, tags: dict[bytes, bytes]) -> bytes:
    body, table, start = b"", b"", 128 + 4 + 12 * len(tags)
    for name, data in tags.items():
        table += name + struct.pack(">II", start + len(body), len(data))
        body += data
    head = struct.pack(">I4xI4s4s4s12x4s28x", start + len(body), 0x02400000, b"mntr", space, b"XYZ ", b"acsp") + _fixed(D50)
    return head.ljust(128, b"\0") + struct.pack(">I", len(tags)) + table + body


def rgb_profile(red: Sequence[float], green: Sequence[float], blue: Sequence[float], gamma: float) -> bytes:
    """An RGB space by the XYZ of its primaries."""
    primaries = dict(zip((b"rXYZ", b"gXYZ", b"bXYZ"), map(_xyz, (red, green, blue)), strict=True))
    curves = dict.fromkeys((b"rTRC", b"gTRC", b"bTRC"), _curve(gamma))
    return _profile(b"RGB ", {**primaries, **curves, b"wtpt": _xyz(D50)})


def grey_profile(gamma: float) -> bytes:
    return _profile(b"GRAY", {b"kTRC": _curve(gamma), b"wtpt": _xyz(D50)})


PRIMARIES = {
    "display-p3": ((0.51512, 0.2412, -0.00105), (0.29198, 0.69225, 0.04189), (0.1571, 0.06657, 0.78407)),
    "adobe": ((0.60974, 0.31111, 0.01947), (0.20528, 0.62567, 0.06087), (0.14919, 0.06322, 0.74457)),
    "prophoto": ((0.79767, 0.28804, 0.0), (0.13518, 0.71188, 0.0), (0.03135, 0.00009, 0.82491)),
}
GAMMAS = {"display-p3": 2.2, "adobe": 563 / 256, "prophoto": 1.8}
WIDE = {name: rgb_profile(*primaries, gamma=GAMMAS[name]) for name, primaries in PRIMARIES.items()}
