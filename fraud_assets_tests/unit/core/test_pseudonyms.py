"""One value has one pseudonym in every notation; an unreadable body leaves no trace."""

from __future__ import annotations

import hashlib
import hmac
import json
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fraud_assets.core import pseudonyms
from fraud_assets.core.bodies import Rejected, parse_json_object
from fraud_assets.core.parsing import parse_transactions
from fraud_assets.core.pseudonyms import compute_hmac, pseudonymise
from fraud_assets.core.schema import HEADERS
from fraud_assets.errors import SettingError
from fraud_assets.settings import Settings, load_settings
from fraud_assets_tests.support.messages import REJECTED, raw_table
from fraud_assets_tests.support.messages import body as transaction

KEY = "0123456789abcdef" * 2
CARD = 4_111_111_111_111_111
PSEUDONYM = hmac.new(KEY.encode(), str(CARD).encode(), hashlib.sha256).hexdigest()


def settings(fields: str = "card", **more: Any) -> Settings:
    return load_settings(_env_file=None, pseudonymise=fields, pseudonym_key=KEY, **more)


def messages(bodies: list[bytes | None], keys: list[Any] | None = None, headers: list[Any] | None = None) -> pa.Table:
    count = len(bodies)
    return pa.table(
        {
            "key": pa.array(keys or [None] * count, pa.binary()),
            "value": pa.array(bodies, pa.binary()),
            "headers": pa.array(headers or [None] * count, HEADERS),
        }
    )


def treated(body: bytes, fields: str = "card", **more: Any) -> bytes:
    return pseudonymise(messages([body]), settings(fields, **more).pseudonym_policy)["value"][0].as_py()


@pytest.mark.parametrize(
    ("body", "fields", "expected"),
    [
        ('{"card": 4111111111111111}', "card", {"card": PSEUDONYM}),
        ('{"card": "4111111111111111"}', "card", {"card": PSEUDONYM}),
        ('{"card": "\\u0034111111111111111"}', "card", {"card": PSEUDONYM}),
        ('{"c\\u0061rd": "4111111111111111"}', "card", {"card": PSEUDONYM}),
        ('{"CARD": 4111111111111111, "Card": 4111111111111111}', "card", {"CARD": PSEUDONYM, "Card": PSEUDONYM}),
        ('{"card": {"number": 4111111111111111, "x": 1}}', "card.number", {"card": {"number": PSEUDONYM, "x": 1}}),
        ('{"card.number": 4111111111111111}', "card.number", {"card.number": PSEUDONYM}),
        ('{"a": [[{"b": 4111111111111111}], {"b": 1, "c": 2}, 3]}', "a.b", {"a": [[{"b": PSEUDONYM}], ..., 3]}),
        ('{"card": [4111111111111111, "4111111111111111"]}', "card", {"card": [PSEUDONYM, PSEUDONYM]}),
        ('{"card": 4111111111111111.0}', "card", {"card": {"number": PSEUDONYM}}),
        ('{"card": 4.111111111111111e15}', "card", {"card": {"number": PSEUDONYM}}),
        ('{"card": {"4111111111111111": true}}', "card", {"card": {"object": ...}}),
        ('{"card": null, "x": "é\\ud800", "n": NaN}', "card", ...),
        ('{"card": ""}', "card", {"card": ""}),
        ('{"card": 4111111111111111, "n": 123456789012345678901234567890}', "card", ...),
        ('{"card": 1, "card2": 4111111111111111}', "card2", {"card": 1, "card2": PSEUDONYM}),
    ],
)
def test_named_fields_become_pseudonyms(body: str, fields: str, expected: Any) -> None:
    result = treated(body.encode(), fields)
    assert str(CARD).encode() not in result
    assert_like(json.loads(result), json.loads(body) if expected is ... else expected, body)


def assert_like(found: Any, expected: Any, body: str) -> None:
    """Equal, but for what is `...`, and for a card where all of a body is meant to stay."""
    if expected is ...:
        return
    if isinstance(expected, dict):
        assert found.keys() == expected.keys()
        for name, value in expected.items():
            assert_like(found[name], value, body)
    elif isinstance(expected, list):
        assert len(found) == len(expected)
        for one, other in zip(found, expected, strict=True):
            assert_like(one, other, body)
    else:
        assert found == (PSEUDONYM if expected == CARD else expected) or found != found  # noqa: PLR0124 - NaN


def test_keys_and_headers_have_the_pseudonym_of_the_same_value() -> None:
    rows = messages(
        [b'{"card": 4111111111111111}', None, b""],
        [b"4111111111111111", b"", None],
        [[{"key": "card", "value": b"4111111111111111"}, {"key": "none", "value": None}], None, []],
    )
    found = pseudonymise(rows, settings().pseudonym_policy)
    assert found.schema == rows.schema
    assert found["key"].to_pylist() == [PSEUDONYM.encode(), b"", None]
    assert found["headers"].to_pylist() == [
        [{"key": "card", "value": PSEUDONYM.encode()}, {"key": "none", "value": None}],
        None,
        [],
    ]
    assert found["value"].to_pylist()[1:] == [None, b""]


def test_a_contract_field_may_be_named_by_either_name() -> None:
    by_contract = treated(b'{"cc_num": 4111111111111111}', "customer_id", field_mapping="customer_id=cc_num")
    assert json.loads(by_contract) == {"cc_num": PSEUDONYM}


def test_without_names_nothing_is_touched() -> None:
    rows = messages([b"anything \xff"], [b"k"])
    assert pseudonymise(rows, load_settings(_env_file=None).pseudonym_policy) is rows


@pytest.mark.parametrize(("body", "reason", "words"), REJECTED)
def test_the_parser_says_of_a_treated_body_what_it_says_of_the_body(
    body: bytes | None, reason: str, words: str
) -> None:
    """And of one that cannot be read neither the body nor the detail keeps anything."""
    chosen = settings("card")
    raw = raw_table([body])
    after = pseudonymise(raw, chosen.pseudonym_policy)
    _, rejected = parse_transactions(after, chosen.contract)
    # An integer that Python cannot convert cannot be written again either, whatever field it is in.
    reason = "wrong_type" if b"0" * 5000 in (body or b"") else reason
    assert rejected["reason"].to_pylist() == [reason]
    value, detail = after["value"][0].as_py(), rejected["detail"][0].as_py()
    try:
        parse_json_object(body, chosen.max_body_bytes)
    except Rejected:
        if body:
            assert json.loads(value.removeprefix(b"withheld ")) == {
                "reason": reason,
                "bytes": len(body),
                "hmac_sha256": compute_hmac(body, chosen.pseudonym_policy),
            }
            assert f"{len(body)} bytes were withheld" in detail


def test_a_marker_from_outside_is_not_believed() -> None:
    forged = b'withheld {"reason": "tombstone", "bytes": 4111111111111111, "hmac_sha256": "4111111111111111"}'
    result = treated(forged)
    assert str(CARD).encode() not in result
    assert json.loads(result.removeprefix(b"withheld "))["reason"] == "invalid_json"


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
        max_leaves=8,
    ),
    st.sampled_from(["card", "a.card", "a.b.card"]),
)
def test_the_fast_way_gives_what_the_careful_one_gives(value: Any, path: str) -> None:
    """And all that no path names stays as it was."""
    payload: dict[str, Any] = {"card": CARD, "a": {"card": CARD, "b": [{"card": CARD}]}, "other": value}
    body = json.dumps(payload).encode()
    fast = json.loads(treated(body, path))
    careful = json.loads(
        pseudonyms._replace_carefully(body, 10**6, pseudonyms._Pseudonyms.of(settings(path).pseudonym_policy))
    )
    assert fast == careful
    assert fast["other"] == json.loads(body)["other"]
    assert json.dumps(fast).count(PSEUDONYM) == 1


def test_pseudonyms_depend_on_the_key() -> None:
    other = load_settings(_env_file=None, pseudonymise="card", pseudonym_key="x" * 32)
    assert compute_hmac(b"1", other.pseudonym_policy) != compute_hmac(b"1", settings().pseudonym_policy)


@pytest.mark.parametrize("key", ["", "short-secret"])
def test_a_missing_or_short_key_is_refused_and_not_shown(key: str) -> None:
    with pytest.raises(SettingError, match=r"FRAUD_PSEUDONYM_KEY.*32") as failure:
        load_settings(_env_file=None, pseudonymise="card", pseudonym_key=key)
    assert "short-secret" not in str(failure.value)
    assert KEY not in repr(settings())


@pytest.mark.parametrize("field", ["tx_amount", "amt", "labelled_at"])
def test_what_the_features_need_cannot_be_named(field: str) -> None:
    with pytest.raises(SettingError, match="FRAUD_PSEUDONYMISE"):
        settings(field, field_mapping="tx_amount=amt")


def test_an_identifier_joins_by_its_pseudonym_and_a_bad_one_stays_bad() -> None:
    chosen = settings("customer_id")
    spellings: list[Any] = [CARD, str(CARD), "", None, 4.5, [1], True]
    raw = raw_table([transaction(transaction_id=number, customer_id=c) for number, c in enumerate(spellings)])
    valid, rejected = parse_transactions(pseudonymise(raw, chosen.pseudonym_policy), chosen.contract)
    assert valid["customer_id"].to_pylist() == [PSEUDONYM, PSEUDONYM]
    _, before = parse_transactions(raw, chosen.contract)
    assert rejected["reason"].to_pylist() == before["reason"].to_pylist()
