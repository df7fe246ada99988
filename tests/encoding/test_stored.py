"""What is read from disk is of the kind it should be, or not believed."""

from typing import Any, Literal

import pytest
from comfyui_tlbvfi.encoding.stored import MOST, is_of_type, stored_fraction


@pytest.mark.parametrize(
    ("hint", "fitting", "others"),
    [
        (Any, [None, 5, [object()]], []),
        (int, [0, MOST, -MOST], [True, 1.0, "1", None, MOST + 1, -MOST - 1]),
        (float, [1.5, 2], [True, "1", None]),
        (bool, [True], [1, "yes"]),
        (str | None, ["", None], [5, ["a"]]),
        (Literal["a"], ["a", "b"], [1, None]),
        (tuple[int, str], [(1, "a")], [[1, "a"], (1,), (1, "a", "b"), ("a", "a"), (1, 1), "1a"]),
        (tuple[int, ...], [(), (1, 2)], [[1], (1, "a"), ("a", 1), 1]),
        (list[str], [[], ["a", "b"]], [("a",), ["a", 1], [1, "a"], "a", None]),
        (dict[str, int], [{}, {"a": 1}], [{"a": "1"}, {1: 1}, {"a": 1, "b": None}, [("a", 1)], 5]),
        (set[int], [set(), {1}], [[1], None]),
        (type[int], [int], [5]),
    ],
)
def test_only_what_an_annotation_allows_is_of_its_type(hint, fitting, others):
    assert [value for value in fitting if not is_of_type(value, hint)] == []
    assert [value for value in others if is_of_type(value, hint)] == []


@pytest.mark.parametrize(
    "text", ["1/0", "1e9", "0.5", " 1", "1/2/3", "\uff11", "", "9" * 1001, 5, None]
)
def test_only_a_ratio_of_plain_digits_is_a_stored_number(text):
    assert stored_fraction("-1001/48000").as_integer_ratio() == (-1001, 48000)
    with pytest.raises(ValueError, match="is not a fraction"):
        stored_fraction(text)
