"""The yardstick: `session.run` in a bare Python process, one thread, the same input again and again.

`python -m benchmarks.raw_loop MODEL.onnx SAMPLE.npy INPUT` runs for as many seconds as each line of its
input says, and answers each with a line of JSON: runs per second, and microseconds of a run (p50, p99).
"""

import json
import sys
import time
from pathlib import Path

import numpy as np
import onnxruntime as ort


def measure(session: ort.InferenceSession, inputs: dict[str, np.ndarray], seconds: float) -> dict[str, float]:
    """Runs per second and the percentiles of their times, in microseconds."""
    times: list[int] = []
    clock = time.perf_counter_ns
    start = now = clock()
    end = start + int(seconds * 1e9)
    while now < end:
        session.run(None, inputs)
        after = clock()
        times.append(after - now)
        now = after
    p50, p99 = np.percentile(times, (50, 99)) / 1000
    return {"per_s": len(times) * 1e9 / (now - start), "p50_us": float(p50), "p99_us": float(p99)}


def main(model: Path, sample: Path, name: str) -> None:
    """Load, warm up, and answer every line of the input."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    session = ort.InferenceSession(model.read_bytes(), options, providers=["CPUExecutionProvider"])
    inputs = {name: np.load(sample, allow_pickle=False)}
    measure(session, inputs, 0.2)
    print("ready", flush=True)
    for line in sys.stdin:
        print(json.dumps(measure(session, inputs, float(line))), flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3])
