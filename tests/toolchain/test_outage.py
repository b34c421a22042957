"""What replies tell of an outage. `test_demo` plays a real one."""

from dataclasses import replace

import pytest

from toolchain.outage import Moments, Phase, forced_threshold, tell
from toolchain.tally import Reply

DEADLINE_MS = 200
CASCADE = Reply(0, 0, 0, 100, 200, source="edge", reason="confident", confidence=0.99)
ESCALATED = replace(CASCADE, source="cloud", reason="low_confidence", confidence=0.5)
FALLBACK = replace(ESCALATED, source="edge_fallback", reason="cloud_unreachable", degraded=True)
MOMENTS = Moments(killed_s=2.0, started_s=5.0, ready_s=6.0)


def at(done_s: float, reply: Reply, took_s: float = 0.01) -> Reply:
    """`reply`, sent `took_s` seconds before `done_s`, when it came."""
    return replace(reply, due_s=done_s - took_s, sent_s=done_s - took_s, done_s=done_s)


def test_replies_belong_to_the_phase_in_which_they_came() -> None:
    replies = [at(1.9, ESCALATED), at(2.01, FALLBACK, 0.1), at(5.9, CASCADE), at(6.2, ESCALATED)]
    outage = tell(replies, MOMENTS, DEADLINE_MS)
    assert {phase: tally.sent for phase, tally in outage.phases.items()} == {
        Phase.BEFORE: 1,
        Phase.AWAY: 2,
        Phase.BACK: 1,
    }
    assert outage.total.answered == 4
    assert outage.away_s == 4.0


@pytest.mark.parametrize(
    ("done_s", "resumed_s"),
    [(6.5, 0.5), (5.9, 0.0), (2.001, None)],
    ids=["after readiness", "before readiness was seen", "the last one of the killed cloud"],
)
def test_escalations_resume_with_the_first_answer_of_the_cloud_after_its_start(
    done_s: float, resumed_s: float | None
) -> None:
    outage = tell([at(1.0, ESCALATED), at(3.0, FALLBACK), at(done_s, ESCALATED)], MOMENTS, DEADLINE_MS)
    assert outage.resumed_s == (None if resumed_s is None else pytest.approx(resumed_s))


@pytest.mark.parametrize(
    ("took_s", "in_time", "said"),
    [
        (0.15, True, "50 ms before its deadline"),
        (0.24, True, "40 ms after its deadline"),
        (0.26, False, "60 ms after its deadline: TOO LATE, over 50 ms"),
    ],
)
def test_lateness_is_said(took_s: float, in_time: bool, said: str) -> None:
    outage = tell([at(3.0, FALLBACK, took_s)], MOMENTS, DEADLINE_MS)
    assert outage.in_time is in_time
    assert f"the slowest came {said}" in "\n".join(line.strip() for line in outage.lines())


def test_the_summary_names_every_phase_and_every_failure() -> None:
    silent = Reply(3.0, 3.0, 3.1, 100, 0, "no answer: ReadError")
    text = "\n".join(tell([at(1.0, ESCALATED), at(3.0, FALLBACK), silent], MOMENTS, DEADLINE_MS).lines())
    assert "3 requests, 2 answered with 200, 0 refused, 1 not answered" in text
    assert "before  cloud (low_confidence) 1" in text
    assert "away    edge_fallback (cloud_unreachable) 1" in text
    assert "NO ESCALATION SUCCEEDED" in text
    assert "1 x no answer: ReadError" in text


def test_a_threshold_is_forced_only_where_few_images_are_escalated() -> None:
    sure = [replace(CASCADE, confidence=0.9 + at / 1000) for at in range(100)]
    unsure = [replace(ESCALATED, confidence=at / 1000) for at in range(10)]
    assert forced_threshold([*sure[:90], *unsure]) is None
    threshold = forced_threshold(sure)
    assert threshold is not None
    # below the threshold an image is escalated
    assert sum(reply.confidence is not None and reply.confidence < threshold for reply in sure) == 21


def test_no_threshold_is_forced_above_the_highest_confidence_there_is() -> None:
    assert forced_threshold([replace(CASCADE, confidence=1.0)] * 10) == 1.0
    assert forced_threshold([]) is None
