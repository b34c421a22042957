"""Every mode with every state of confidence, budget and cloud."""

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_node.policy import (
    LEAST_CLOUD_S,
    Budget,
    Decision,
    Mode,
    Payload,
    Privacy,
    Route,
    check_mode,
    decide,
    edge_first,
    may_leave,
    send_original,
)
from inference_core.errors import InvalidInput

SERVED = (Mode.EDGE, Mode.CLOUD, Mode.CASCADE, Mode.SPLIT)
AMPLE, SPENT = Budget(0.2, 0.01), Budget(0.01, 0.01)


@pytest.mark.parametrize(
    ("mode", "confidence", "budget", "has_cloud", "expected"),
    [
        (Mode.EDGE, 0.1, AMPLE, True, Decision(Route.EDGE, "mode")),
        (Mode.EDGE, 0.1, SPENT, False, Decision(Route.EDGE, "mode")),
        (Mode.CASCADE, 0.9, AMPLE, True, Decision(Route.EDGE, "confident")),
        (Mode.CASCADE, 0.9, SPENT, False, Decision(Route.EDGE, "confident")),
        (Mode.CASCADE, 0.1, AMPLE, True, Decision(Route.INPUT, "low_confidence")),
        (Mode.CASCADE, 0.1, SPENT, True, Decision(Route.EDGE, "budget", degraded=True)),
        (Mode.CASCADE, 0.1, AMPLE, False, Decision(Route.EDGE, "no_cloud", degraded=True)),
        (Mode.CASCADE, 0.1, SPENT, False, Decision(Route.EDGE, "no_cloud", degraded=True)),
        (Mode.CLOUD, None, AMPLE, True, Decision(Route.INPUT, "mode")),
        (Mode.CLOUD, 0.9, AMPLE, True, Decision(Route.INPUT, "mode")),
        (Mode.CLOUD, None, SPENT, True, Decision(Route.EDGE, "budget", degraded=True)),
        (Mode.CLOUD, None, AMPLE, False, Decision(Route.EDGE, "no_cloud", degraded=True)),
        (Mode.SPLIT, None, AMPLE, True, Decision(Route.FEATURES, "mode")),
        (Mode.SPLIT, None, SPENT, True, Decision(Route.EDGE, "budget", degraded=True)),
        (Mode.SPLIT, None, AMPLE, False, Decision(Route.EDGE, "no_cloud", degraded=True)),
        (Mode.SPLIT, 0.9, AMPLE, True, Decision(Route.EDGE, "confident")),
        (Mode.SPLIT, 0.9, SPENT, False, Decision(Route.EDGE, "confident")),
        (Mode.SPLIT, 0.1, AMPLE, True, Decision(Route.FEATURES, "low_confidence")),
        (Mode.SPLIT, 0.1, SPENT, True, Decision(Route.EDGE, "budget", degraded=True)),
        (Mode.SPLIT, 0.1, AMPLE, False, Decision(Route.EDGE, "no_cloud", degraded=True)),
    ],
)
def test_decision(
    mode: Mode, confidence: float | None, budget: Budget, has_cloud: bool, expected: Decision
) -> None:
    assert decide(mode, confidence, 0.8, budget, has_cloud=has_cloud) == expected


@pytest.mark.parametrize(
    ("privacy", "mode", "expected"),
    [
        (Privacy.FEATURES, Mode.CASCADE, "privacy"),
        (Privacy.FEATURES, Mode.CLOUD, "privacy"),
        (Privacy.FEATURES, Mode.SPLIT, "low_confidence"),
        (Privacy.FEATURES, Mode.AUTO, "low_confidence"),
        (Privacy.NOTHING, Mode.AUTO, "privacy"),
        (Privacy.NOTHING, Mode.SPLIT, "privacy"),
        (Privacy.NOTHING, Mode.EDGE, "mode"),
        (Privacy.ANY, Mode.CLOUD, "mode"),
    ],
)
def test_privacy_goes_before_the_mode(privacy: Privacy, mode: Mode, expected: str) -> None:
    decision = decide(mode, 0.1, 0.8, AMPLE, has_cloud=True, privacy=privacy)
    assert decision.reason == expected
    assert decision.degraded == (expected == "privacy")


@pytest.mark.parametrize("mode", [Mode.CASCADE, Mode.SPLIT])
@pytest.mark.parametrize(("confidence", "trusted"), [(0.799999, False), (0.8, True), (0.800001, True)])
def test_the_threshold_itself_is_trusted(mode: Mode, confidence: float, trusted: bool) -> None:
    decision = decide(mode, confidence, 0.8, AMPLE, has_cloud=True)
    assert (decision.route is Route.EDGE) == trusted


@pytest.mark.parametrize("mode", [Mode.CASCADE, Mode.SPLIT])
@pytest.mark.parametrize(("threshold", "trusted"), [(0.0, True), (1.0, False)])
def test_thresholds_at_the_ends(mode: Mode, threshold: float, trusted: bool) -> None:
    decision = decide(mode, 0.99, threshold, AMPLE, has_cloud=True)
    assert (decision.route is Route.EDGE) == trusted


def test_the_cloud_gets_what_the_edge_would_not_need() -> None:
    assert Budget(0.2, 0.05).cloud_s == pytest.approx(0.15)


@pytest.mark.parametrize(
    ("left", "route"),
    [(LEAST_CLOUD_S, Route.INPUT), (LEAST_CLOUD_S - 1e-6, Route.EDGE), (0.0, Route.EDGE), (-3.0, Route.EDGE)],
)
def test_no_call_is_made_that_cannot_be_answered_in_time(left: float, route: Route) -> None:
    assert decide(Mode.CLOUD, None, 0.8, Budget(left, 0.0), has_cloud=True).route is route


@given(
    mode=st.sampled_from(SERVED),
    confidence=st.none() | st.floats(0, 1),
    threshold=st.floats(0, 1),
    left=st.floats(-1, 10),
    reserve=st.floats(0, 1),
    has_cloud=st.booleans(),
)
def test_decisions_hold_together(
    mode: Mode, confidence: float | None, threshold: float, left: float, reserve: float, has_cloud: bool
) -> None:
    decision = decide(mode, confidence, threshold, Budget(left, reserve), has_cloud=has_cloud)
    up = decision.route is not Route.EDGE
    assert not up or (has_cloud and left - reserve >= LEAST_CLOUD_S)
    assert not (up and decision.degraded)
    assert decision.degraded == (decision.reason in {"no_cloud", "budget"})
    assert not up or (decision.route is Route.FEATURES) == (mode is Mode.SPLIT)
    sure = confidence is not None and confidence >= threshold
    assert (decision.reason == "confident") == (sure and mode in (Mode.CASCADE, Mode.SPLIT))
    assert (decision.reason == "low_confidence") <= (confidence is not None and not sure)


def test_every_served_mode_is_accepted_without_a_cut() -> None:
    assert [check_mode(mode, None, ("a", "b")) for mode in SERVED] == [None, None, None, "a"]


@pytest.mark.parametrize("cut", ["a", "b"])
def test_split_takes_the_cut_that_was_asked_for(cut: str) -> None:
    assert check_mode(Mode.SPLIT, cut, ("a", "b")) == cut


@pytest.mark.parametrize(
    ("mode", "cut", "cuts", "message"),
    [
        (Mode.AUTO, "a", ("a",), "only mode 'split' takes a cut, the mode is 'auto'"),
        (Mode.SPLIT, None, (), "'split' needs a cut, and this model's bundle has none"),
        (Mode.SPLIT, "a", (), "'split' needs a cut, and this model's bundle has none"),
        (Mode.SPLIT, "c", ("a", "b"), "cut: 'c' is not one of a, b"),
        (Mode.SPLIT, "", ("a", "b"), "cut: '' is not one of a, b"),
        *[
            (mode, "a", ("a",), f"cut: only mode 'split' takes a cut, the mode is '{mode.value}'")
            for mode in (Mode.EDGE, Mode.CLOUD, Mode.CASCADE)
        ],
    ],
)
def test_pairs_that_cannot_be_served(
    mode: Mode, cut: str | None, cuts: tuple[str, ...], message: str
) -> None:
    with pytest.raises(InvalidInput) as caught:
        check_mode(mode, cut, cuts)
    assert message in str(caught.value)


@pytest.mark.parametrize("exit_cut", [None, "a"])
def test_the_edge_looks_first_where_its_answer_decides(exit_cut: str | None) -> None:
    assert [mode for mode in Mode if edge_first(mode, None, exit_cut)] == [Mode.EDGE, Mode.CASCADE]


@pytest.mark.parametrize(
    ("cut", "exit_cut", "first"), [("a", "a", True), ("b", "a", False), ("a", None, False)]
)
def test_before_a_split_the_edge_looks_where_it_exits_at_that_cut(
    cut: str, exit_cut: str | None, first: bool
) -> None:
    assert edge_first(Mode.SPLIT, cut, exit_cut) == first


def test_what_goes_up() -> None:
    for payload, original in itertools.product(Payload, (None, 99, 100, 101)):
        small = original is not None and original <= 100
        assert send_original(payload, original, 100) == (payload is Payload.SMALLEST and small)


@pytest.mark.parametrize(
    ("privacy", "allowed"),
    [
        (Privacy.ANY, {Route.EDGE, Route.INPUT, Route.FEATURES}),
        (Privacy.FEATURES, {Route.EDGE, Route.FEATURES}),
        (Privacy.NOTHING, {Route.EDGE}),
    ],
)
def test_privacy_says_what_may_leave(privacy: Privacy, allowed: set[Route]) -> None:
    assert {route for route in Route if may_leave(privacy, route)} == allowed
