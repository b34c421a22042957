"""Looks at every answered sample, hands what is worth it to the outbox, and says when that is on disk."""

import asyncio
import random
import time
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import replace
from secrets import token_hex

from edge_node.change_filter import ChangeFilter
from edge_node.keeping import Reason, reason_to_keep
from edge_node.model_slot import LoadedModel
from edge_node.outbox import Outbox
from edge_node.outcome import Answer, Outcome
from edge_node.policy import Privacy, Route, may_leave
from edge_node.preferences import Upload
from edge_node.request import Request
from edge_node.sample_store import Form, Sample
from inference_core.tensors import to_bytes

# Audits are drawn by lot and requests are the device's business: neither is filtered.
_FILTERED = frozenset({Reason.FALLBACK, Reason.LOW_CONFIDENCE})
_ANSWER_S = 0.003  # for the answer to be written, once its sample is on disk


class Keeper:
    """One node's choice of samples."""

    def __init__(
        self,
        outbox: Outbox,
        *,
        privacy: Privacy,
        audit_rate: float,
        draw: Callable[[], float] = random.random,
        clock: Callable[[], float] = time.time,
    ) -> None:
        """`audit_rate` is the share of the confident answers that are audited. `draw` gives random numbers
        from 0 to 1, `clock` seconds since 1970."""
        self._outbox = outbox
        self._privacy = privacy
        self._audit_rate = audit_rate
        self._draw = draw
        self._clock = clock
        self._changes = ChangeFilter()

    async def keep(self, request: Request, answer: Answer) -> Answer:
        """Keep the sample if it is worth it. A request that asked for that waits until it is on disk, as long
        as its deadline allows, and its outcome then has the key."""
        sample = self._sample(request, answer.outcome)
        if sample is None:
            return answer
        on_disk = self._outbox.put(sample)
        if not sample.promised:
            return answer
        began = time.perf_counter()
        is_kept = await _told(on_disk, request.deadline - time.monotonic() - _ANSWER_S)
        waited_ms = round((time.perf_counter() - began) * 1000, 3)
        times = answer.outcome.timings_ms
        times = times | {"keep": waited_ms, "total": round(times["total"] + waited_ms, 3)}
        outcome = replace(answer.outcome, kept=sample.key if is_kept else None, timings_ms=times)
        return replace(answer, outcome=outcome)

    def _sample(self, request: Request, outcome: Outcome) -> Sample | None:
        model, wants, edge = request.model, request.ask.wants, outcome.edge
        if model.defaults.upload is Upload.NEVER:
            return None
        reason = reason_to_keep(
            outcome.source,
            None if edge is None else edge.confidence,
            request.threshold,
            # A threshold of the request's own is not the one that a certificate speaks of.
            audited=wants.threshold is None and self._draw() < self._audit_rate,
            requested=wants.keep,
        )
        if reason is None or not self._could_go_up(model):
            return None
        if not self._has_changed(request, filtered=reason in _FILTERED and not wants.keep):
            return None
        data = request.ask.sample
        form, payload = (Form.IMAGE, data) if isinstance(data, bytes) else (Form.TENSOR, to_bytes(data))
        return Sample(
            token_hex(16), self._clock(), reason, wants.keep, model.name, model.manifest.version,
            model.digest, form, payload, edge, request.threshold,
        )  # fmt: skip

    def _could_go_up(self, model: LoadedModel) -> bool:
        """Whether there is anything of this model's samples that may ever leave the node."""
        return may_leave(self._privacy, Route.INPUT) or (
            may_leave(self._privacy, Route.FEATURES) and bool(model.cuts)
        )

    def _has_changed(self, request: Request, *, filtered: bool) -> bool:
        window, threshold = request.ask.sample, request.model.defaults.change_threshold
        if threshold is None or isinstance(window, bytes):
            return True
        name = request.model.name
        if filtered and not self._changes.passes(name, window, threshold):
            return False
        self._changes.kept(name, window)
        return True


async def _told(on_disk: Future[bool], timeout_s: float) -> bool:
    """What the future says within the time, no when it says nothing; it is never cancelled."""
    told = asyncio.wrap_future(on_disk)
    await asyncio.wait((told,), timeout=max(timeout_s, 0.0))
    return told.done() and told.result()
