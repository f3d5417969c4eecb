"""HTML pages that need no other file."""

from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined


def render(template: str, **values: Any) -> bytes:
    """Fill in a template of this folder; what is not marked safe in it is escaped."""
    environment = Environment(
        loader=PackageLoader("shards.tools", "."), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
    # a JSON escape can bring half of a surrogate pair, which no file can hold
    return environment.get_template(template).render(**values).encode("utf-8", "replace")
