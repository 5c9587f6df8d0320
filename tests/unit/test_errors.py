"""The error object: SPEC 1.1.0 section 5, "Error", in the form that the reference writes it in."""

from __future__ import annotations

import pickle

import pytest

from pycni.spec import jsontext
from pycni.spec.errors import CNIError, join_errors


@pytest.mark.parametrize(
    ("details", "text"),
    [("some details", "some message; some details"), ("", "some message")],
)
def test_text(details: str, text: str) -> None:
    assert str(CNIError(1234, "some message", details)) == text


def test_json() -> None:
    error = CNIError(1, "incompatible CNI versions", 'config is "9.9.9"')
    assert jsontext.dumps(error.to_json("1.0.0"), indent=4) == (
        "{\n"
        '    "cniVersion": "1.0.0",\n'
        '    "code": 1,\n'
        '    "msg": "incompatible CNI versions",\n'
        '    "details": "config is \\"9.9.9\\""\n'
        "}"
    )
    assert list(CNIError(7, "m").to_json()) == ["code", "msg"]


def test_with_context_adds_to_the_message_and_keeps_the_rest() -> None:
    outer = CNIError(7, "inner", "way out").with_context("outer")
    assert (outer.code, outer.message, outer.details) == (7, "outer: inner", "way out")


def test_survives_pickling() -> None:
    error = pickle.loads(pickle.dumps(CNIError(7, "message", "details")))
    assert (error.code, error.message, error.details) == (7, "message", "details")


def test_joined_errors_say_all_and_keep_the_first_code() -> None:
    alone = CNIError(5, "one")
    assert join_errors([alone]) is alone
    joined = join_errors([alone, CNIError(7, "two", "d2"), CNIError(6, "three", "d3")])
    assert (joined.code, joined.message, joined.details) == (5, "one; two; three", "d2; d3")
