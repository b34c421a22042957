"""Which samples are worth keeping for the cloud to learn from, and which go when room is short. Pure."""

from enum import StrEnum

from edge_node.policy import Source


class Reason(StrEnum):
    """Why a sample is kept."""

    FALLBACK = "fallback"
    LOW_CONFIDENCE = "low_confidence"
    AUDIT = "audit"
    REQUESTED = "requested"


# What goes first when there is no room: what the cloud would not take, what the edge was unsure of, what it
# had to answer alone, what says whether a certificate still holds; and never what somebody was told is kept.
SET_ASIDE = 0
WORTH = {Reason.LOW_CONFIDENCE: 1, Reason.FALLBACK: 2, Reason.AUDIT: 3, Reason.REQUESTED: 4}
PROMISED = 4


def reason_to_keep(
    source: Source,
    confidence: float | None,
    threshold: float,
    *,
    audited: bool,
    requested: bool,
) -> Reason | None:
    """Why a sample is to be kept, None when it is not.

    `source` says whose answer the device got, `confidence` is the edge answer's, None where its model has not
    run. `audited` says that the lot has fallen on this sample, should the edge have been trusted with it;
    `requested` that the device wants it to be kept. What the cloud has answered, it has seen.
    """
    if source is Source.EDGE_FALLBACK:
        return Reason.FALLBACK
    if source is Source.EDGE and confidence is not None:
        if confidence < threshold:
            return Reason.LOW_CONFIDENCE
        if audited:
            return Reason.AUDIT
    return Reason.REQUESTED if requested else None
