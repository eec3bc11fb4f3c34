"""HTML pages that need nothing but a browser."""

from __future__ import annotations

import functools
from importlib import resources

import jinja2


@functools.cache
def page_template(package: str, name: str) -> jinja2.Template:
    """The template `name` among the files of `package`; what it is given is escaped, and what it lacks is an error.

    It may include other files of the package.
    """
    files = resources.files(package)
    environment = jinja2.Environment(
        loader=jinja2.FunctionLoader(lambda file: files.joinpath(file).read_text(encoding="utf-8")),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template(name)
