"""What it costs to read the largest request, by what is in it: time in which nobody else is answered.

python -m benchmarks.parsing [--mib 16]
"""

import argparse
import time
from collections.abc import Callable, Iterator

import numpy as np

from inference_core.errors import InvalidInput
from inference_core.rest import parse as parse_json
from inference_core.tensors import from_request, get_parameters, to_request
from inference_core.wire import parse as parse_message
from protos import open_inference_pb2 as oip

_ROUNDS = 3
Piece = tuple[str, bytes, Callable[[bytes], object]]


def requests(size: int) -> Iterator[Piece]:
    """Requests of about `size` bytes: what is in each, the bytes, and what reads them."""
    for name, datatype, value in (
        ("fractions", "FP32", "0.123456"),
        ("digits", "FP32", "1"),
        ("whole numbers", "INT64", "1"),
        ("booleans", "BOOL", "true"),
        ("lists of one", "FP32", "[1]"),
        ("lists of two", "FP32", "[1,1]"),
        ("lists of nothing", "BOOL", "[]"),
        ("an image's rows", "FP32", f"[{','.join(['0.123456'] * 224)}]"),
        ("strings", "BYTES", '""'),
    ):
        count = size // (len(value) + 1)
        shape = [count, value.count(",") + (value != "[]")] if "[" in value else [count]
        data = ",".join([value] * count)
        yield f"JSON: {name}", _json(f'{{{_tensor(datatype, shape)},"data":[{data}]}}'), _from_json
    deep = "[" * 15 + "1" + "]" * 15
    some = [f'{{{_tensor("FP32", [size // 240])},"data":[{",".join([deep] * (size // 240))}]}}'] * 8
    yield "JSON: deep lists in 8 tensors", _json(",".join(some)), _from_json
    names = [f'"p{number}":1' for number in range(size // 11)]
    yield "JSON: parameters", f'{{"parameters":{{{",".join(names)}}},"inputs":[]}}'.encode(), _from_json
    empty = f'{{{_tensor("FP32", [0])},"data":[]}}'
    yield "JSON: tensors", _json(",".join([empty] * (size // len(empty)))), _from_json

    array = np.zeros(size // 4, np.float32)
    yield "gRPC: raw numbers", _bytes(to_request("m", "", {"x": array}, {}, "")), _from_message
    message = oip.ModelInferRequest()
    message.inputs.add(name="x", datatype="FP32", shape=array.shape).contents.fp32_contents.extend(array)
    yield "gRPC: numbers", _bytes(message), _from_message
    message = oip.ModelInferRequest()
    message.inputs.add(name="x", datatype="BOOL", shape=(size,)).contents.bool_contents.extend([True] * size)
    yield "gRPC: booleans", _bytes(message), _from_message
    yield "gRPC: parameters", b"\x22\x00" * (size // 2), _from_message
    yield "gRPC: tensors", b"\x2a\x00" * (size // 2), _from_message
    yield "gRPC: a number without an end", b"\xff" * size, _from_message


def _tensor(datatype: str, shape: list[int]) -> str:
    return f'"name":"x","datatype":"{datatype}","shape":{shape}'


def _json(tensors: str) -> bytes:
    return f'{{"inputs":[{tensors}]}}'.encode()


def _bytes(message: oip.ModelInferRequest) -> bytes:
    return message.SerializeToString()


def _from_json(body: bytes) -> object:
    return parse_json(body, None)


def _from_message(data: bytes) -> object:
    message = parse_message(oip.ModelInferRequest, data)
    return from_request(message), get_parameters(message.parameters)


def measure(data: bytes, read: Callable[[bytes], object]) -> tuple[float, str]:
    """The shortest time of three to read `data`, in milliseconds of this process, and what came of it."""
    best, said = float("inf"), "read"
    for _ in range(_ROUNDS):
        began = time.process_time()
        try:
            read(data)
        except InvalidInput as error:
            said = f"refused: {error}"
        best = min(best, (time.process_time() - began) * 1000)
    return best, said


def main() -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--mib", type=float, default=16, help="size of each request")
    size = round(parser.parse_args().mib * (1 << 20))
    print(f"| {size >> 20} MiB of | ms | |\n|---|--:|---|", flush=True)
    for name, data, read in requests(size):
        took, said = measure(data, read)
        print(f"| {name} | {took:.1f} | {said} |", flush=True)


if __name__ == "__main__":
    main()
