"""The tree as it is drawn, and each transport's table over all of it."""

import re
from collections.abc import Iterator
from http import HTTPStatus

import grpc
import pytest

from inference_core import errors
from inference_core.errors import (
    GRPC_STATUS,
    HTTP_STATUS,
    MAX_WORDS,
    AllowanceSpent,
    BreakerOpen,
    BundleError,
    CloudRefused,
    CloudUnavailable,
    CloudUnreachable,
    DeadlineExceeded,
    Forbidden,
    InvalidInput,
    ModelError,
    ModelNotFound,
    NotReady,
    Overloaded,
    RateLimited,
    SwitchedOff,
    TandemError,
    Throttled,
    TooLarge,
    TooSlow,
    Unauthenticated,
    VersionMismatch,
    grpc_status,
    http_status,
    shortened,
)


def walk(cls: type[TandemError], depth: int = 0) -> Iterator[tuple[type[TandemError], int]]:
    """`cls` and everything below it, each with its depth, in the order of definition."""
    yield cls, depth
    for child in cls.__subclasses__():
        # Tests of other packages may define classes of their own.
        if child.__module__ == errors.__name__:
            yield from walk(child, depth + 1)


TREE = [cls for cls, _ in walk(TandemError)]


def make(cls: type[TandemError]) -> TandemError:
    return CloudRefused("a sentence", "overloaded") if cls is CloudRefused else cls("a sentence")


def drawing(text: str) -> list[tuple[str, int]]:
    """Names and depths of the tree that is drawn in a docstring."""
    lines = re.findall(r"^    ( *)([A-Z]\w+)(?:  +.*)?$", text, re.MULTILINE)
    return [(name, len(indent) // 2) for indent, name in lines]


def test_drawing_is_the_tree() -> None:
    assert drawing(errors.__doc__ or "") == [(cls.__name__, depth) for cls, depth in walk(TandemError)]


def test_every_drawn_error_is_explained() -> None:
    for cls in TREE:
        assert cls.__doc__
        assert cls is TandemError or re.search(rf"^ +{cls.__name__}  +\w", errors.__doc__ or "", re.MULTILINE)


def test_drawing_is_read_with_its_depths() -> None:
    text = "Title.\n\n    Top\n      Middle    words\n        Low     words\n      Other   words\n\nText.\n"
    assert drawing(text) == [("Top", 0), ("Middle", 1), ("Low", 2), ("Other", 1)]


@pytest.mark.parametrize("cls", TREE)
def test_message_is_what_str_gives(cls: type[TandemError]) -> None:
    error = make(cls)
    assert str(error) == "a sentence"
    assert isinstance(error, TandemError)


@pytest.mark.parametrize(
    ("cls", "status"),
    [
        (TandemError, 500),
        (InvalidInput, 400),
        (ModelNotFound, 404),
        (TooLarge, 413),
        (Unauthenticated, 401),
        (Forbidden, 403),
        (TooSlow, 408),
        (Overloaded, 503),
        (NotReady, 503),
        (RateLimited, 429),
        (ModelError, 500),
        (VersionMismatch, 404),
        (CloudUnavailable, 500),
        (CloudUnreachable, 500),
        (DeadlineExceeded, 504),
        (CloudRefused, 500),
        (BreakerOpen, 500),
        (Throttled, 500),
        (AllowanceSpent, 500),
        (SwitchedOff, 500),
        (BundleError, 500),
    ],
)
def test_http_status(cls: type[TandemError], status: int) -> None:
    assert http_status(make(cls)) == status


@pytest.mark.parametrize(
    ("cls", "status"),
    [
        (TandemError, "INTERNAL"),
        (InvalidInput, "INVALID_ARGUMENT"),
        (ModelNotFound, "NOT_FOUND"),
        (TooLarge, "RESOURCE_EXHAUSTED"),
        (Unauthenticated, "UNAUTHENTICATED"),
        (Forbidden, "PERMISSION_DENIED"),
        (TooSlow, "DEADLINE_EXCEEDED"),
        (Overloaded, "RESOURCE_EXHAUSTED"),
        (NotReady, "UNAVAILABLE"),
        (RateLimited, "RESOURCE_EXHAUSTED"),
        (ModelError, "INTERNAL"),
        (VersionMismatch, "FAILED_PRECONDITION"),
        (CloudUnavailable, "INTERNAL"),
        (CloudUnreachable, "INTERNAL"),
        (DeadlineExceeded, "DEADLINE_EXCEEDED"),
        (CloudRefused, "INTERNAL"),
        (BreakerOpen, "INTERNAL"),
        (Throttled, "INTERNAL"),
        (AllowanceSpent, "INTERNAL"),
        (SwitchedOff, "INTERNAL"),
        (BundleError, "INTERNAL"),
    ],
)
def test_grpc_status(cls: type[TandemError], status: str) -> None:
    assert grpc_status(make(cls)) == status


@pytest.mark.parametrize("cls", TREE)
def test_every_error_has_a_real_status_in_both_tables(cls: type[TandemError]) -> None:
    assert HTTPStatus(http_status(make(cls))).value >= 400
    assert grpc.StatusCode[grpc_status(make(cls))] is not grpc.StatusCode.OK


def test_tables_speak_of_this_tree_only() -> None:
    assert set(HTTP_STATUS) <= set(TREE)
    assert set(GRPC_STATUS) <= set(TREE)


def test_a_class_below_the_tree_takes_its_parents_status() -> None:
    class TooManyPixels(TooLarge):
        pass

    assert http_status(TooManyPixels("x")) == 413
    assert grpc_status(TooManyPixels("x")) == "RESOURCE_EXHAUSTED"


def test_overloaded_says_when_to_come_back() -> None:
    assert Overloaded("full").retry_after_s == 1.0
    assert Overloaded("full", retry_after_s=0.25).retry_after_s == 0.25


def test_reasons_of_a_silent_cloud_are_told_apart() -> None:
    made = [make(cls) for cls, _ in walk(CloudUnavailable)]
    reasons = [error.reason for error in made if isinstance(error, CloudUnavailable)]
    assert reasons == [
        *("cloud_unreachable", "cloud_unreachable", "deadline", "overloaded", "breaker_open"),
        *("throttled", "escalation_budget", "switched_off", "link_lost", "link_slow"),
    ]


@pytest.mark.parametrize("reason", sorted(CloudRefused.REASONS))
def test_refusal_keeps_its_reason(reason: str) -> None:
    assert CloudRefused("no", reason).reason == reason


@pytest.mark.parametrize("reason", ["", "Overloaded", "because"])
def test_refusal_without_a_known_reason_is_a_mistake_of_the_program(reason: str) -> None:
    with pytest.raises(RuntimeError, match="unknown reason"):
        CloudRefused("no", reason)


def test_reason_of_one_refusal_is_not_that_of_the_next() -> None:
    first = CloudRefused("no", "overloaded")
    CloudRefused("no", "cloud_error")
    assert first.reason == "overloaded"
    assert CloudUnavailable("gone").reason == "cloud_unreachable"


def test_long_words_keep_the_field_and_the_limit() -> None:
    assert shortened("a" * MAX_WORDS) == "a" * MAX_WORDS
    words = shortened(f"input {'a' * 5000!r}: the limit is 64")
    assert len(words) <= MAX_WORDS
    assert words.startswith("input 'aaa")
    assert words.endswith("aaa': the limit is 64")
    assert " [...] " in words
