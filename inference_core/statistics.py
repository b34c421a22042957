"""What each model has served: the counters behind the statistics extension of the Open Inference Protocol.

https://github.com/triton-inference-server/server/blob/main/docs/protocol/extension_statistics.md says what
each of them means. Recording one request takes about a microsecond, so every request is recorded.
"""

import threading
import time
from collections.abc import Callable
from typing import Any

_NS = 1e9


class Statistics:
    """The counters of one version of one model. May be told and read from several threads."""

    __slots__ = (
        *("_executions", "_failed", "_failed_s", "_infer_s", "_input_s", "_last", "_lock", "_output_s"),
        *("_queue_s", "_runs", "_samples", "_succeeded", "_total_s", "_wall"),
    )

    def __init__(self, wall: Callable[[], float] = time.time) -> None:
        """`wall` tells the time in seconds since 1970."""
        self._wall = wall
        self._lock = threading.Lock()
        self._samples = self._executions = self._succeeded = self._failed = 0
        self._total_s = self._queue_s = self._input_s = self._infer_s = self._output_s = self._failed_s = 0.0
        self._last = 0.0
        self._runs: dict[int, _Runs] = {}

    def success(
        self, rows: int, total_s: float, queue_s: float, input_s: float, infer_s: float, output_s: float
    ) -> None:
        """Count one request of `rows` samples that was answered.

        `total_s` are the seconds from its arrival to its answer; of them it waited `queue_s`, was made
        ready for the model in `input_s`, was with the model for `infer_s`, and its outputs were made into
        an answer in `output_s`.
        """
        with self._lock:
            self._last = self._wall()
            self._samples += rows
            self._succeeded += 1
            self._total_s += total_s
            self._queue_s += queue_s
            self._input_s += input_s
            self._infer_s += infer_s
            self._output_s += output_s

    def fail(self, total_s: float) -> None:
        """Count one request that was refused or went wrong, `total_s` seconds after its arrival."""
        with self._lock:
            self._failed += 1
            self._failed_s += total_s

    def executed(self, rows: int, infer_s: float, input_s: float = 0.0, output_s: float = 0.0) -> None:
        """Count one run of the model on `rows` samples, of whatever requests.

        It took `infer_s` seconds, after `input_s` for joining its inputs and before `output_s` for dividing
        its outputs.
        """
        with self._lock:
            self._executions += 1
            runs = self._runs.get(rows)
            if runs is None:
                runs = self._runs[rows] = _Runs()
            runs.add(infer_s, input_s, output_s)

    def document(self) -> dict[str, Any]:
        """The counters as the protocol names them, without the model's name and version.

        Durations are nanoseconds, the time of the last answer milliseconds since 1970, 0 for never.
        """
        with self._lock:
            stages = {
                "success": (self._succeeded, self._total_s),
                "fail": (self._failed, self._failed_s),
                "queue": (self._succeeded, self._queue_s),
                "compute_input": (self._succeeded, self._input_s),
                "compute_infer": (self._succeeded, self._infer_s),
                "compute_output": (self._succeeded, self._output_s),
                # Answers are not cached, but Triton's tools end when these are not there.
                "cache_hit": (0, 0.0),
                "cache_miss": (0, 0.0),
            }
            return {
                "last_inference": int(self._last * 1000),
                "inference_count": self._samples,
                "execution_count": self._executions,
                "inference_stats": {name: _duration(*of) for name, of in stages.items()},
                "batch_stats": [{"batch_size": n} | self._runs[n].document() for n in sorted(self._runs)],
            }


class _Runs:
    """The runs of one batch size."""

    __slots__ = ("_count", "_infer_s", "_input_s", "_output_s")

    def __init__(self) -> None:
        self._count = 0
        self._infer_s = self._input_s = self._output_s = 0.0

    def add(self, infer_s: float, input_s: float, output_s: float) -> None:
        self._count += 1
        self._infer_s += infer_s
        self._input_s += input_s
        self._output_s += output_s

    def document(self) -> dict[str, Any]:
        return {
            "compute_input": _duration(self._count, self._input_s),
            "compute_infer": _duration(self._count, self._infer_s),
            "compute_output": _duration(self._count, self._output_s),
        }


def _duration(count: int, seconds: float) -> dict[str, int]:
    # A clock that was set back must not make a number that the protocol cannot carry.
    return {"count": count, "ns": max(0, round(seconds * _NS))}
