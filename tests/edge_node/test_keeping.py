"""What is worth keeping, and the order of worth."""

import itertools

from edge_node.keeping import PROMISED, SET_ASIDE, WORTH, Reason, reason_to_keep
from edge_node.policy import Source


def why(
    source: Source, confidence: float | None, *, audited: bool = False, requested: bool = False
) -> Reason | None:
    return reason_to_keep(source, confidence, 0.8, audited=audited, requested=requested)


def test_what_the_cloud_should_have_answered_is_kept() -> None:
    for confidence in (None, 0.1, 0.9):
        assert why(Source.EDGE_FALLBACK, confidence, audited=True, requested=True) is Reason.FALLBACK


def test_what_the_edge_answered_unsure_is_kept() -> None:
    assert why(Source.EDGE, 0.79, audited=True, requested=True) is Reason.LOW_CONFIDENCE


def test_of_the_confident_the_audited_are_kept() -> None:
    assert why(Source.EDGE, 0.8, audited=True, requested=True) is Reason.AUDIT
    assert why(Source.EDGE, 0.8) is None


def test_what_the_cloud_has_seen_is_not_kept_unless_somebody_asks() -> None:
    for confidence, audited in itertools.product((None, 0.1, 0.9), (True, False)):
        assert why(Source.CLOUD, confidence, audited=audited) is None
        assert why(Source.CLOUD, confidence, audited=audited, requested=True) is Reason.REQUESTED


def test_audits_go_last_but_for_what_was_promised() -> None:
    kinds = (Reason.LOW_CONFIDENCE, Reason.FALLBACK, Reason.AUDIT, Reason.REQUESTED)
    order = [SET_ASIDE, *(WORTH[reason] for reason in kinds)]
    assert order == sorted(set(order))
    assert order[-1] == PROMISED
