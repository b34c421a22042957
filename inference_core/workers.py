"""Threads that run models, each of which can be given up: a run that heeds nothing keeps its thread."""

import threading
from collections.abc import Callable
from concurrent.futures import Executor, Future
from queue import Empty, SimpleQueue
from typing import Any, ParamSpec, TypeVar

from inference_core.errors import ModelError

_P = ParamSpec("_P")
_T = TypeVar("_T")
_LEAVE_S = 2.0  # how long a stop waits for a thread: what is asked of it has been answered by then
_Job = tuple[Future[Any], Callable[[], Any]]


class Workers(Executor):
    """A pool of a fixed number of threads. None of them keeps the process from ending."""

    def __init__(self, count: int, name: str) -> None:
        """`count` threads, started when there is something to do; `name` is what they are called."""
        self._count = count
        self._name = name
        self._jobs: SimpleQueue[_Job | None] = SimpleQueue()
        self._lock = threading.Lock()
        self._threads: dict[int, threading.Thread] = {}  # those that count, by identity
        self._busy: dict[int, Future[Any]] = {}
        self._closed = False

    def submit(self, work: Callable[_P, _T], /, *args: _P.args, **kwargs: _P.kwargs) -> Future[_T]:
        """Call `work` on one of the threads. Raises `RuntimeError` after `shutdown`."""
        future: Future[_T] = Future()
        with self._lock:
            if self._closed:
                raise RuntimeError("the workers have been shut down")
            self._jobs.put((future, lambda: work(*args, **kwargs)))
            if len(self._threads) < self._count:
                self._hire()
        return future

    def give_up(self, identity: int) -> None:
        """Do without the thread of that `identity`, if it is one of these and at work: its caller gets a
        `ModelError`, another thread takes its place, and should it ever come back it ends."""
        with self._lock:
            future = self._busy.pop(identity, None)
            if future is None or self._threads.pop(identity, None) is None:
                return
        # First of all its caller: a machine that has no threads left cannot start another.
        future.set_exception(ModelError("the run could not be ended, and is not waited for"))
        with self._lock:
            if not self._closed and len(self._threads) < self._count:
                self._hire()

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Take no more work, and end the threads: `wait` for each of them a moment, not for ever."""
        with self._lock:
            self._closed = True
            threads = list(self._threads.values())
        if cancel_futures:
            self._cancel()
        for _ in threads:
            self._jobs.put(None)
        for thread in threads if wait else ():
            thread.join(_LEAVE_S)

    def _cancel(self) -> None:
        while True:
            try:
                job = self._jobs.get_nowait()
            except Empty:
                return
            if job is not None:
                job[0].cancel()

    def _hire(self) -> None:
        thread = threading.Thread(target=self._work, name=self._name, daemon=True)
        thread.start()
        if thread.ident is None:
            raise RuntimeError("a thread that has started has an identity")
        self._threads[thread.ident] = thread

    def _work(self) -> None:
        identity = threading.get_ident()
        while (job := self._jobs.get()) is not None:
            future, work = job
            if not future.set_running_or_notify_cancel():
                continue
            with self._lock:
                self._busy[identity] = future
            try:
                result, error = work(), None
            except BaseException as raised:  # noqa: BLE001 - whatever it is, its caller gets it
                result, error = None, raised
            with self._lock:
                if self._busy.pop(identity, None) is None:  # given up: nobody waits any more
                    return
            if error is None:
                future.set_result(result)
            else:
                future.set_exception(error)
            del future, work, job, result, error
