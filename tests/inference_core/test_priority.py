"""The class of a request as its parameters say it."""

import pytest

from inference_core.errors import InvalidInput
from inference_core.priority import PRIORITY, Priority, asked_priority


@pytest.mark.parametrize("priority", Priority)
def test_it_is_what_the_parameter_says(priority: Priority) -> None:
    assert asked_priority({PRIORITY: priority.value}) is priority


def test_without_a_word_it_is_normal() -> None:
    assert asked_priority({"tandem_mode": "edge"}) is Priority.NORMAL


@pytest.mark.parametrize("value", ["", "urgent", "CRITICAL", 1, True, 0.5])
def test_what_is_no_class_is_refused(value: object) -> None:
    with pytest.raises(InvalidInput, match=r"tandem_priority.*critical, normal, background"):
        asked_priority({PRIORITY: value})
