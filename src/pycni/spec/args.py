"""CNI_ARGS: `KEY=VALUE;KEY=VALUE`, the oldest way to hand a plugin extra arguments.

The specification deprecates it in favour of `args` and `runtimeConfig`; runtimes still send it.
Plugins that take no arguments never look, so that garbage stays harmless there.
"""

from __future__ import annotations

from pycni.spec.errors import INVALID_ENVIRONMENT, CNIError, invalid_config
from pycni.spec.schema import normal_mac
from pycni.spec.versions import quote

_TRUE = ("1", "true")
_FALSE = ("0", "false")


def parse_args(text: str) -> dict[str, str]:
    """Split CNI_ARGS into its pairs; of a repeated key the last counts. Raises CNIError."""
    arguments: dict[str, str] = {}
    if not text:
        return arguments
    for pair in text.split(";"):
        parts = pair.split("=")
        if len(parts) != 2:
            raise CNIError(
                INVALID_ENVIRONMENT,
                f"ARGS: invalid pair {quote(pair)}",
                "CNI_ARGS is KEY=VALUE pairs with ';' between them",
            )
        arguments[parts[0]] = parts[1]
    return arguments


def valid_args(text: str) -> str:
    """CNI_ARGS if they can be parsed, else "".

    A plugin that reads them refuses any others at ADD, so no attachment with such depends on them.
    """
    try:
        parse_args(text)
    except CNIError:
        return ""
    return text


def known_args(text: str, *known: str) -> dict[str, str]:
    """The arguments a plugin knows; others are refused unless IgnoreUnknown is true."""
    arguments = parse_args(text)
    ignore = arguments.pop("IgnoreUnknown", "0")
    if ignore.lower() not in _TRUE + _FALSE:
        raise CNIError(
            INVALID_ENVIRONMENT,
            f"ARGS: error parsing value of pair {quote('IgnoreUnknown=' + ignore)}: "
            f"boolean unmarshal error: invalid input {ignore.lower()}",
            "IgnoreUnknown is 1, true, 0 or false",
        )
    unknown = [f"{key}={value}" for key, value in arguments.items() if key not in known]
    if unknown and ignore.lower() not in _TRUE:
        raise CNIError(
            INVALID_ENVIRONMENT,
            f"ARGS: unknown args [{' '.join(map(quote, unknown))}]",
            f"known are {', '.join(known) or 'none'}; IgnoreUnknown=1 lets others pass",
        )
    return {key: value for key, value in arguments.items() if key in known and value}


def mac_argument(text: str) -> str:
    """The MAC address in CNI_ARGS, "" for none. Raises CNIError."""
    given = known_args(text, "MAC").get("MAC", "")
    if given and not normal_mac(given):
        raise invalid_config(
            f'"{given}" in CNI_ARGS is not a MAC address', "expected one such as 0a:58:0a:01:02:03"
        )
    return normal_mac(given)
