"""What a call may carry as its metadata: whatever a header of AMQP can hold, and nothing else."""

from __future__ import annotations

from typing import Any

import pytest

from aiorpcq.protocol.metadata import check_metadata


def nest(depth: int) -> dict[str, Any]:
    metadata: dict[str, Any] = {}
    for _ in range(depth):
        metadata = {"inner": metadata}
    return metadata


@pytest.mark.parametrize(
    "value",
    [
        None,
        True,
        0,
        -(2**63),
        2**63 - 1,
        1.5,
        "text",
        b"bytes",
        [],
        [1, "a"],
        (1, 2),
        {},
        {"a": {"b": [None]}},
        nest(15),
    ],
    ids=str,
)
def test_what_a_header_can_hold_is_metadata(value: Any) -> None:
    check_metadata({"key": value})


@pytest.mark.parametrize(
    "metadata",
    [
        {"key": 2**63},
        {"key": -(2**63) - 1},
        {"key": float("nan")},
        {"key": float("inf")},
        {"key": "\ud800"},
        {"key": {1, 2}},
        {"key": object()},
        {"key": 1j},
        {"key": [{"inner": {3}}]},
        {5: "value"},
        {"a" * 129: 1},
        {"a" * 1_000: 1},
        {"\ud800": 1},
        nest(18),
        nest(5_000),
    ],
    ids=lambda metadata: str(type(next(iter(metadata.values())))),
)
def test_metadata_that_no_header_can_hold_are_refused(metadata: dict[Any, Any]) -> None:
    with pytest.raises(ValueError, match=r"^metadata: "):
        check_metadata(metadata)
