"""What one has to see on the page can be seen: contrasts of WCAG 2.2, in the light and the dark scheme."""

import re

import pytest
from web_service import ROOT

STYLE = (ROOT / "img2img" / "web" / "static" / "style.css").read_text()
COLOURS = {name: both for name, *both in re.findall(r"--([\w-]+): light-dark\((#\w+), (#\w+)\)", STYLE)}


def luminance(colour: str) -> float:
    digits = colour.removeprefix("#")
    digits = "".join(2 * digit for digit in digits) if len(digits) == 3 else digits
    parts = [int(digits[i : i + 2], 16) / 255 for i in (0, 2, 4)]
    red, green, blue = (part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def contrast(one: str, other: str) -> float:
    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize("scheme", [0, 1], ids=["light", "dark"])
@pytest.mark.parametrize(
    ("colour", "least"), [("focus", 3.0), ("edge", 3.0), ("ink", 4.5), ("soft", 4.5)], ids=["focus", "edge", "ink", "soft"]
)
def test_focus_and_the_edges_of_fields_stand_out_and_text_can_be_read(colour: str, least: float, scheme: int) -> None:
    for behind in ("back", "card", "stage"):
        assert contrast(COLOURS[colour][scheme], COLOURS[behind][scheme]) >= least, behind


def test_each_ring_and_each_field_has_the_colours_that_were_checked() -> None:
    rings = re.findall(r":focus-visible\)? \{ outline: ([^;]+);", STYLE)
    assert set(rings) == {"3px solid var(--focus)"}
    for rule in (".zone {", "#drop {", "input:not([type=file]"):
        (field,) = re.findall(rf"^{re.escape(rule)}[^}}]*", STYLE, re.MULTILINE)
        assert "var(--edge)" in field, rule
