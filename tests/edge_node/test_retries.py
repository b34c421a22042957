"""The count of tokens that keeps retries few."""

from hypothesis import given
from hypothesis import strategies as st

from edge_node.retries import MAX_TOKENS, TOKEN_RATIO, Retries


def test_a_few_losses_are_asked_again() -> None:
    retries = Retries()
    allowed = 0
    for _ in range(20):
        retries.failure()
        allowed += retries.allowed
    assert allowed == 4


def test_answers_give_the_right_back() -> None:
    retries = Retries()
    for _ in range(20):
        retries.failure()
    answers = 0
    while not retries.allowed:
        retries.success()
        answers += 1
    assert answers == 51


@given(st.lists(st.booleans(), max_size=400))
def test_there_is_never_more_than_a_tenth_beside_what_is_asked(answered: list[bool]) -> None:
    retries, again = Retries(), 0
    for each in answered:
        if each:
            retries.success()
        else:
            retries.failure()
            again += retries.allowed
    assert again <= MAX_TOKENS / 2 + TOKEN_RATIO * len(answered)
