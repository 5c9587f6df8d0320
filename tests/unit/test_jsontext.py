"""JSON as Go's encoding/json reads and writes it, which is what the other side of CNI uses."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from pycni.spec import jsontext
from pycni.spec.jsontext import JSONError, dumps, loads, lookup, repeated_keys

# --- reading -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "value"),
    [
        (b' {"a": [1, -2.5, true, null, "x"]}\r\n\t', {"a": [1, -2.5, True, None, "x"]}),
        (b"null", None),
        (b"1e3", 1000.0),
        (b'{"a": 1, "a": {"b": 2}, "a": 3}', {"a": 3}),
        (b'"\\ud83d\\ude00"', "\N{GRINNING FACE}"),
        ('"grün"', "grün"),
    ],
)
def test_reads(text: bytes | str, value: Any) -> None:
    assert loads(text) == value


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b"", "unexpected end of JSON input"),
        (b" \n", "unexpected end of JSON input"),
        (b'{"a": 1} x', "unexpected 'x' after the end of the value at line 1, column 10"),
        (b"{}{}", "unexpected '{' after the end of the value at line 1, column 3"),
        (b"{}\xc2\xa0", "unexpected '\\xa0' after the end of the value at line 1, column 3"),
        (b"\n\nasdf", "expecting value at line 3, column 1"),
        (b'{"a":\n  nope}', "expecting value at line 2, column 3"),
        # Pythons differ in what they say of it, and where.
        (b'{"a": 1 ,\n\n}', "a comma with nothing behind it at line 1, column 9"),
        (b'{"a": [1,\t2,\n]}', "a comma with nothing behind it at line 1, column 12"),
        (b"[,]", "a comma with nothing behind it at line 1, column 2"),
        (b'"a\nb"', "invalid control character at line 1, column 3"),
        (b'"abc', "unterminated string starting at line 1, column 1"),
        (b"NaN", "NaN is not a JSON number"),
        (b"[-Infinity]", "-Infinity is not a JSON number"),
        (b"[1e400]", "the number 1e400 is out of range"),
        (b"1" * 310, "the number 11111111111111111... is out of range"),
        (b"-" + b"1" * 5000, "the number -1111111111111111... is out of range"),
        (b"[" * 100_000, "too deeply nested"),
    ],
)
def test_refuses_and_says_why_and_where(text: bytes, message: str) -> None:
    with pytest.raises(JSONError) as caught:
        loads(text)
    assert str(caught.value) == message


@pytest.mark.parametrize(
    "text", [b"\xef\xbb\xbf{}", b"[1,]", b'{"a":1,}', b"{'a':1}", b"01", b"+1", b".5", b"1.", b"#"]
)
def test_refuses_what_is_not_strict_json(text: bytes) -> None:
    with pytest.raises(JSONError):
        loads(text)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        (b'"a\xffb"', "a\N{REPLACEMENT CHARACTER}b"),
        (b'"a\\ud800b"', "a\N{REPLACEMENT CHARACTER}b"),
        (b'{"\\uDFFF": ["\\uD83D"]}', {"\ufffd": ["\ufffd"]}),
        (b'"\\\\ud800"', "\\ud800"),
    ],
)
def test_text_read_is_always_unicode(text: bytes, value: Any) -> None:
    assert loads(text) == value


def test_nesting_that_is_read_can_be_written() -> None:
    deepest = "[" * jsontext.MAX_DEPTH + "]" * jsontext.MAX_DEPTH
    assert dumps(loads(deepest)) == deepest
    with pytest.raises(JSONError, match="too deeply nested"):
        loads(f'{{"a": {deepest}}}')


def test_size_is_bounded() -> None:
    with pytest.raises(
        JSONError, match=r"^16777219 bytes are more than the 16777216 that are read$"
    ):
        loads(b'"' + b"a" * (jsontext.MAX_SIZE + 1) + b'"')


def test_an_integer_of_any_size_a_float64_holds_is_read_exactly() -> None:
    assert loads(b"9223372036854775808") == 1 << 63
    assert loads(b"1" + b"0" * 308) == 10**308


def test_lookup_ignores_letter_case_and_prefers_the_exact_key() -> None:
    assert lookup({"NAME": 1, "name": 2, "Name": 3}, "name") == 2
    assert lookup({"NAME": 1, "Name": 3}, "name") == 3
    assert lookup({"names": 1}, "name") is None
    assert lookup({"name": None, "NAME": 1}, "name") is None


# --- writing -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ("<a>&", '"\\u003ca\\u003e\\u0026"'),
        ("\u2028\u2029", '"\\u2028\\u2029"'),
        ("\b\f\n\r\t", '"\\b\\f\\n\\r\\t"'),
        ("\0\x1f\x7f", '"\\u0000\\u001f\x7f"'),
        ('/"\\', '"/\\"\\\\"'),
        ("grün \N{GRINNING FACE}", '"grün \N{GRINNING FACE}"'),
        ("net\udcff", '"net\\ufffd"'),  # a byte of the environment that is not UTF-8
        ({"<": None}, '{"\\u003c":null}'),
        ({}, "{}"),
        ([], "[]"),
        ((1, 2), "[1,2]"),
        ({"b": True, "a": [False, None]}, '{"b":true,"a":[false,null]}'),
    ],
)
def test_writes(value: Any, text: str) -> None:
    assert dumps(value) == text


def test_indented() -> None:
    document = {"b": {"d": [1, {}], "c": []}, "a": "x"}
    assert dumps(document, indent=4) == json.dumps(document, indent=4)
    assert dumps(document, indent=4, sort_keys=True) == json.dumps(
        document, indent=4, sort_keys=True
    )


def test_sorts_keys_by_their_bytes_at_every_level() -> None:
    assert dumps(
        {"b": 1, "B": 2, "é": 3, "\N{GRINNING FACE}": [{"z": 1, "a": 2}]}, sort_keys=True
    ) == ('{"B":2,"b":1,"é":3,"\N{GRINNING FACE}":[{"a":2,"z":1}]}')


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_what_json_has_no_number_for_is_refused(value: float) -> None:
    with pytest.raises(ValueError, match=f"{value} has no JSON form"):
        dumps([value])


@pytest.mark.parametrize("value", [b"bytes", {1, 2}, object()])
def test_what_json_has_no_form_for_is_refused(value: object) -> None:
    with pytest.raises(TypeError, match=f"{type(value).__name__} has no JSON form"):
        dumps(value)


@pytest.mark.parametrize(
    ("number", "text"),
    [  # what the reference printed for these
        ("9007199254740993", "9007199254740992"),
        ("12345678901234567890", "12345678901234567000"),
        ("1.0", "1"),
        ("-0.0", "-0"),
        ("1e21", "1e+21"),
        ("1e-7", "1e-7"),
        ("1e20", "100000000000000000000"),
        ("1e-6", "0.000001"),
    ],
)
def test_numbers_as_the_reference_prints_them(number: str, text: str) -> None:
    assert dumps(loads(number)) == text


def go_number(value: float) -> str:
    """Go's rule: the shortest digits that round trip; an exponent below 1e-6 and from 1e21 on."""
    if value == 0:
        return repr(value).removesuffix(".0")
    sign, digits, _ = Decimal(repr(value)).normalize().as_tuple()
    mantissa = "".join(map(str, digits))
    point = Decimal(repr(value)).adjusted() + 1  # digits before the decimal point
    if not 1e-6 <= abs(value) < 1e21:
        fraction = f".{mantissa[1:]}" if mantissa[1:] else ""
        text = f"{mantissa[0]}{fraction}e{point - 1:+d}"
    elif point <= 0:
        text = f"0.{'0' * -point}{mantissa}"
    elif len(mantissa) <= point:
        text = mantissa + "0" * (point - len(mantissa))
    else:
        text = f"{mantissa[:point]}.{mantissa[point:]}"
    return ("-" if sign else "") + text


@given(st.floats(allow_nan=False, allow_infinity=False))
@example(5e-324)
@example(1.7976931348623157e308)
@example(123456.789e10)
@example(9.999999e-7)
@example(999999999999999900000.0)
def test_any_float_is_written_by_gos_rule_and_read_back(value: float) -> None:
    text = dumps(value)
    assert text == go_number(value)
    assert float(loads(text)) == value


@given(st.integers(-(10**300), 10**300))
@example(2**53)
@example(2**53 + 1)
@example(-(2**63))
def test_any_integer_is_written_as_its_float64(value: int) -> None:
    assert dumps(value) == go_number(float(value))


JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**53), 2**53)
    | st.floats(-(2.0**53), 2.0**53)
    | st.text(),
    lambda children: st.lists(children) | st.dictionaries(st.text(), children),
    max_leaves=20,
)


@given(JSON, st.sampled_from([0, 2, 4]), st.booleans())
def test_what_is_written_reads_back_the_same(value: Any, indent: int, sort_keys: bool) -> None:
    text = dumps(value, indent=indent, sort_keys=sort_keys)
    assert loads(text) == value
    assert json.loads(text) == value


@given(st.binary() | st.text(alphabet='{}[]",:\\ud8 -.e09tfnaN\n').map(str.encode))
def test_any_input_is_read_or_refused_never_worse(data: bytes) -> None:
    try:
        value = loads(data)
    except JSONError:
        return
    # Integers beyond 2^53 are written as the float64 they would be; from then on nothing changes.
    text = dumps(value)
    assert dumps(loads(text)) == text


@pytest.mark.parametrize("text", ['"\\x"', '"\\u12"', '"a', "[1", "{", "nul", "NaN", "1e999", ""])
def test_refuses_where_the_json_package_is_not_loaded_yet(text: str) -> None:
    program = (
        "import sys; from pycni.spec.jsontext import loads, JSONError\n"
        "assert 'json' not in sys.modules\n"
        "try: loads(sys.argv[1])\n"
        "except JSONError as error: print(error)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, text], capture_output=True, text=True, check=False
    )
    with pytest.raises(JSONError) as caught:
        loads(text)
    assert (done.stdout, done.stderr) == (f"{caught.value}\n", "")


def test_reading_and_writing_need_not_import_the_json_package() -> None:
    program = (
        "import sys; from pycni.spec.jsontext import loads, dumps;"
        "assert dumps(loads('{\"a\": [1.5]}')) == '{\"a\":[1.5]}';"
        "sys.exit('json' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0


def test_keys_given_twice_are_reported() -> None:
    document = loads('{"a": {"x": 1, "y": 2, "x": 3}, "b": {"x": 1}}')
    assert document == {"a": {"x": 3, "y": 2}, "b": {"x": 1}}
    assert repeated_keys(document["a"]) == ("x",)
    assert repeated_keys(document["b"]) == repeated_keys(document) == ()
