"""Versions: parsing and order, negotiation, the VERSION answer."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pycni.spec import jsontext, versions
from pycni.spec.errors import CNIError


@pytest.mark.parametrize(
    ("text", "numbers"),
    [
        ("1.2.3", (1, 2, 3)),
        ("", (0, 1, 0)),
        ("1", (1, 0, 0)),
        ("1.1", (1, 1, 0)),
        ("01.+1.3", (1, 1, 3)),
        ("0.-42.0", (0, -42, 0)),  # what the reference's test plugin supports
    ],
)
def test_parse(text: str, numbers: tuple[int, int, int]) -> None:
    assert versions.parse(text) == numbers


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("1.2.3.4.5", 'invalid version "1.2.3.4.5": too many parts'),
        ("asdfasdf", 'failed to convert major version part "asdfasdf": not a number'),
        ("asdf.", 'failed to convert major version part "asdf": not a number'),
        (".asdfas", 'failed to convert major version part "": not a number'),
        ("asdf.adsf.", 'failed to convert major version part "asdf": not a number'),
        ("0.", 'failed to convert minor version part "": not a number'),
        ("..", 'failed to convert major version part "": not a number'),
        ("1.1.0-rc1", 'failed to convert micro version part "0-rc1": not a number'),
        ("v1.0.0", 'failed to convert major version part "v1": not a number'),
        ("1. 1.0", 'failed to convert minor version part " 1": not a number'),
        ("1.1_0.0", 'failed to convert minor version part "1_0": not a number'),
        ("1.٣", 'failed to convert minor version part "٣": not a number'),
        ("1.++1", 'failed to convert minor version part "++1": not a number'),
        ("99999999999999999999", None),
    ],
)
def test_parse_refuses(text: str, message: str | None) -> None:
    with pytest.raises(ValueError) as caught:  # noqa: PT011
        versions.parse(text)
    if message:
        assert str(caught.value) == message


@given(*[st.tuples(*[st.integers(0, 99)] * 3)] * 2)
def test_order_is_numeric(one: tuple[int, ...], other: tuple[int, ...]) -> None:
    texts = [".".join(map(str, numbers)) for numbers in (one, other)]
    assert versions.at_least(*texts) == (one >= other)


def test_order_examples() -> None:
    assert versions.at_least("0.10.0", "0.9.0")
    assert versions.at_least("1.1", "1.1.0")
    assert not versions.at_least("", "0.2.0")
    with pytest.raises(ValueError, match="version part"):
        versions.at_least("1.0.0", "x")


def test_known_versions_are_those_of_the_releases_in_order() -> None:
    assert versions.ALL == ("0.1.0", "0.2.0", "0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0")
    assert sorted(versions.ALL, key=versions.parse) == list(versions.ALL)
    assert versions.since("0.3.1") == ("0.3.1", "0.4.0", "1.0.0", "1.1.0")


def test_reply_is_what_the_reference_writes() -> None:
    assert jsontext.dumps(versions.version_reply(("0.4.0", "1.0.0"))) == (
        '{"cniVersion":"1.1.0","supportedVersions":["0.4.0","1.0.0"]}'
    )


@pytest.mark.parametrize(
    ("document", "supported"),
    [
        ({"cniVersion": "1.0.0", "supportedVersions": ["0.4.0", "1.0.0"]}, ("0.4.0", "1.0.0")),
        ({"CNIVersion": "x", "supportedversions": ["7"]}, ("7",)),
        ({"cniVersion": "0.2.0"}, ("0.1.0", "0.2.0")),
        ({"cniVersion": "0.2.0", "supportedVersions": []}, ("0.1.0", "0.2.0")),
    ],
)
def test_read_reply(document: Any, supported: tuple[str, ...]) -> None:
    assert versions.parse_version_reply(document) == supported


@pytest.mark.parametrize(
    ("document", "message"),
    [
        ({}, "decoding version info: missing field cniVersion"),
        ({"cniVersion": ""}, "decoding version info: missing field cniVersion"),
        ({"cniVersion": "0.3.0"}, "decoding version info: missing field supportedVersions"),
        ([], "decoding version info: not a JSON object"),
        ({"cniVersion": 1}, "decoding version info: cniVersion is not a string"),
        (
            {"cniVersion": "1.0.0", "supportedVersions": "1.0.0"},
            "decoding version info: supportedVersions is not a list of strings",
        ),
        (
            {"cniVersion": "1.0.0", "supportedVersions": [1]},
            "decoding version info: supportedVersions is not a list of strings",
        ),
    ],
)
def test_bad_reply(document: Any, message: str) -> None:
    with pytest.raises(CNIError) as caught:
        versions.parse_version_reply(document)
    assert (caught.value.code, caught.value.message) == (6, message)


def test_negotiation_is_by_text_not_by_number() -> None:
    versions.require("1.0.0", ("0.4.0", "1.0.0"))
    for version in ("1.1.0", "1.0", "01.0.0"):
        with pytest.raises(CNIError) as caught:
            versions.require(version, ("0.4.0", "1.0.0"))
        assert caught.value.to_json() == {
            "code": 1,
            "msg": "incompatible CNI versions",
            "details": f'config is "{version}", plugin supports ["0.4.0" "1.0.0"]',
        }


@pytest.mark.parametrize(
    ("text", "quoted"),
    [
        ("a b", '"a b"'),
        ('"\\', '"\\"\\\\"'),
        ("\a\b\f\n\r\t\v", '"\\a\\b\\f\\n\\r\\t\\v"'),
        ("\x01\x7f", '"\\x01\\x7f"'),
        ("é\u200b\ufeff", '"é\\u200b\\ufeff"'),
        ("\U000e0001", '"\\U000e0001"'),
        ("a\udcff", '"a\\xff"'),
    ],
)
def test_quoting_is_gos(text: str, quoted: str) -> None:
    assert versions.quote(text) == quoted
