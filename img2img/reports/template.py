"""Jinja templates of the pages, with the filters that show numbers as people read them."""

from functools import cache

from jinja2 import Environment, PackageLoader, StrictUndefined, Template

from img2img.reports import text

_FILTERS = (text.number, text.signed, text.percent, text.gain, text.count, text.size, text.duration, text.spelled)


@cache
def page_template(package: str, folder: str) -> Template:
    """`page.html.jinja` of a folder of a package; everything that it shows is escaped, and an unknown name is an error."""
    environment = Environment(
        loader=PackageLoader(package, folder),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {show.__name__: show for show in _FILTERS}
    return environment.get_template("page.html.jinja")
