"""`pycni schema`: the plugins' configurations as JSON Schema, for editors and validators, and as
tables for readers.
"""

from __future__ import annotations

import json
from typing import Any

import click

from pycni.cli.key_table import NETWORK_KEYS, key_table
from pycni.plugins import NAMES, load
from pycni.runtime.config import LIST_KEYS
from pycni.spec.schema import Anything

DIALECT = "https://json-schema.org/draft/2020-12/schema"
_LIST = "list"
_FROM_RUNTIME = ("prevResult", "runtimeConfig", "cni.dev/valid-attachments")


@click.command()
@click.argument("plugin", metavar="TYPE", default=_LIST, type=click.Choice([_LIST, *NAMES]))
@click.option("--markdown", is_flag=True, help="Print a table of the keys instead, in Markdown.")
def schema(plugin: str, markdown: bool) -> None:
    """Print the JSON Schema of a plugin's configuration.

    TYPE is a plugin's; without it, or as 'list', the schema is that of a whole .conflist file, and
    the table of --markdown that of the keys that all plugins have.
    """
    if markdown:
        click.echo(key_table(NETWORK_KEYS if plugin == _LIST else plugin), nl=False)
        return
    document = list_schema() if plugin == _LIST else plugin_schema(plugin)
    click.echo(json.dumps({"$schema": DIALECT, **document}, indent=2))


def plugin_schema(name: str) -> dict[str, Any]:
    """The configuration of a plugin, as it stands in a file."""
    document = load(name).config.schema()
    properties = document["properties"]
    for key in _FROM_RUNTIME:
        properties.pop(key, None)
    properties["type"] = {**properties["type"], "const": name}
    document["required"] = sorted({*document.get("required", ()), "type"})
    if isinstance(load(name).config.declared["ipam"].kind, Anything):
        properties["ipam"] = {**properties["ipam"], **_ipam_schema()}
    return {"title": f"configuration of the CNI plugin {name}", **document}


def list_schema() -> dict[str, Any]:
    """A network configuration list."""
    properties = {key: kind.schema() for key, kind in LIST_KEYS.items()}
    properties["plugins"] = {
        "type": "array",
        "minItems": 1,
        "items": {
            "type": "object",
            "required": ["type"],
            "properties": {"type": {"type": "string"}},
            "allOf": [
                {
                    "if": {"properties": {"type": {"const": name}}},
                    "then": plugin_schema(name),
                }
                for name in NAMES
            ],
        },
    }
    return {
        "title": "CNI network configuration list",
        "type": "object",
        "required": ["name"],
        "properties": properties,
    }


def _ipam_schema() -> dict[str, Any]:
    """The section `ipam`: what it may hold follows from its type."""
    sections = {
        name: load(name).config.schema()["properties"]["ipam"]
        for name in NAMES
        if not isinstance(load(name).config.declared["ipam"].kind, Anything)
    }
    return {
        "type": "object",
        "properties": {"type": {"type": "string"}},
        "allOf": [
            {"if": {"properties": {"type": {"const": name}}, "required": ["type"]}, "then": section}
            for name, section in sections.items()
        ],
    }
