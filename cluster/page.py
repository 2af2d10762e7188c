"""Pages a person opens in a browser, made of the templates beside this file."""

from pathlib import Path
from typing import Any

import jinja2


def fill(template: str, **values: Any) -> str:
    """Fill a template; text is escaped, and a value that is not given is an error."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).with_name("templates")),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template(template).render(**values)
