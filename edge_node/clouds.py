"""The way up: the clouds that there are, asked in turn, each by its own client.

What was never answered because its connection was lost is sent once more, to another cloud where there is
one. A cloud that has failed is tried out in the background: no device waits for that.
"""

import time
from collections.abc import Coroutine, Sequence
from functools import partial
from typing import Any

from edge_node.allowance import Allowance
from edge_node.cloud import Attempt, CloudAnswer, Query, can_be_asked
from edge_node.cloud_client import CloudClient
from edge_node.connection import Connection
from edge_node.hedging import Hedging, first_of
from edge_node.retries import Retries
from inference_core.errors import BreakerOpen, CloudUnavailable, CloudUnreachable, Throttled


class Clouds:
    """Asks one of several clouds, which serve the same."""

    def __init__(
        self, clients: Sequence[CloudClient], allowance: Allowance, hedging: Hedging | None = None
    ) -> None:
        """`clients`: one or more; `hedging`: None for never a second copy."""
        self._clients = tuple(clients)
        self._turns = tuple(self._clients[at:] + self._clients[:at] for at in range(len(clients)))
        self._turn = 0
        self._allowance = allowance
        self._hedging = hedging
        self._retries = Retries()

    def start(self) -> None:
        """Connect to each, and stay connected, from now on."""
        for client in self._clients:
            client.start()

    async def close(self) -> None:
        """End every connection; calls in flight are cancelled."""
        for client in self._clients:
            await client.close()

    def check(self, timeout_s: float) -> None:
        """Raise `CloudUnavailable` where no cloud may be asked now by a request with so much time; a trial
        that is due is reason enough to ask."""
        self._allowance.check(time.monotonic())
        failed: CloudUnavailable | None = None
        for client in self._clients:
            try:
                client.check(timeout_s)
            except BreakerOpen as error:
                if client.due(timeout_s):
                    return
                failed = error  # rather than that another one is not connected
            except CloudUnavailable as error:
                failed = failed or error
            else:
                return
        if failed is not None:
            raise failed

    async def infer(self, query: Query, timeout_s: float) -> CloudAnswer:
        """The answer of one of the clouds within `timeout_s` seconds, else `CloudUnavailable`."""
        deadline = time.monotonic() + timeout_s
        self._try_out(query, timeout_s)
        turn = self._next_turn()
        hedging = self._hedging
        if hedging is None:
            return await self._in_turn(query, deadline, turn)
        hedging.request()
        first = self._in_turn(query, deadline, turn)
        if hedging.delay_s is None:
            answer = await first
        else:
            second = partial(self._second, hedging, query, deadline, turn)
            answer = await first_of(first, hedging.delay_s, second)
        hedging.answered(answer.seconds)
        return answer

    async def probe(self, padding: int, timeout_s: float) -> int:
        """A sign of life of the next cloud; see `CloudClient.probe`."""
        self._allowance.check(time.monotonic())
        failed: CloudUnavailable | None = None
        for client in self._next_turn():
            try:
                return await client.probe(padding, timeout_s)
            except (BreakerOpen, CloudUnreachable) as error:
                failed = error
        raise failed or CloudUnreachable("there is no cloud")

    def reachable(self) -> bool:
        """Whether there is a connection to a cloud that is not being left alone; costs nothing."""
        return any(client.reachable for client in self._clients)

    def uplink(self, nbytes: int) -> Connection:
        """A connection for a message of so many bytes that is no escalation, though they count as sent.
        Raises `CloudUnavailable`."""
        for client in self._next_turn():
            if client.reachable:
                return client.uplink(nbytes)
        raise CloudUnreachable("no cloud is connected")

    def _next_turn(self) -> tuple[CloudClient, ...]:
        """The clients, beginning with the next."""
        self._turn = (self._turn + 1) % len(self._turns)
        return self._turns[self._turn]

    async def _in_turn(self, query: Query, deadline: float, turn: tuple[CloudClient, ...]) -> CloudAnswer:
        """Ask the first that may be asked; and once more when the connection is lost over it."""
        kind, sent, alone = Attempt.FIRST, 0, len(turn) == 1
        failed: CloudUnavailable | None = None
        # The only one is asked again itself: a connection that has gone may come back within a blink.
        for client in turn * 2 if alone else turn:
            try:
                answer = await client.infer(query, deadline - time.monotonic(), kind)
            except (CloudUnreachable, BreakerOpen, Throttled) as error:
                sent += error.bytes_up
                if failed is None or error.bytes_up:
                    failed = error
                if error.bytes_up:
                    self._retries.failure()
                    if kind is Attempt.RETRY or not self._retries.allowed or (alone and error.stated):
                        break
                    kind = Attempt.RETRY
                elif alone:
                    break
            except CloudUnavailable as error:
                error.bytes_up += sent
                raise
            else:
                self._retries.success()
                return answer
        failed = failed or CloudUnreachable("there is no cloud")
        failed.bytes_up = sent
        raise failed

    def _second(
        self, hedging: Hedging, query: Query, deadline: float, turn: tuple[CloudClient, ...]
    ) -> Coroutine[Any, Any, CloudAnswer] | None:
        """A second copy, to another cloud where there is one, if the budgets allow it."""
        left = deadline - time.monotonic()
        open_ones = [client for client in turn if can_be_asked(client, left)]
        if not open_ones or not self._retries.allowed or not hedging.spend():
            return None
        self._retries.failure()
        return open_ones[min(1, len(open_ones) - 1)].infer(query, left, Attempt.HEDGE)

    def _try_out(self, query: Query, timeout_s: float) -> None:
        """Have a cloud that is due for it be tried with this query, which it is not asked otherwise. Beside
        another cloud that is one message more than there are requests, and counts as such."""
        for client in self._clients:
            if client.due(timeout_s):
                if any(can_be_asked(other, timeout_s) for other in self._clients):
                    if not self._retries.allowed:
                        return
                    self._retries.failure()
                client.find_out(query)
                return
