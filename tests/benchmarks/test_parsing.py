"""The costs of large requests: each is what it says, and is read or refused."""

from benchmarks.parsing import measure, requests

SIZE = 1 << 19
REFUSED = {
    "JSON: lists of one": "lists, the limit is 65536",
    "JSON: lists of two": "lists, the limit is 65536",
    "JSON: lists of nothing": "lists, the limit is 65536",
    "JSON: deep lists in 8 tensors": "lists, the limit is 8192",
    "JSON: strings": "strings, the limit is 4096",
    "JSON: parameters": "of them, the limit is 64",
    "JSON: tensors": "tensors, the limit is 256",
    "gRPC: parameters": "more than 5120 fields",
    "gRPC: tensors": "more than 5120 fields",
    "gRPC: a number without an end": "no ModelInferRequest",
}


def test_every_request_is_as_large_as_it_says_and_is_read_or_refused_for_what_it_holds() -> None:
    found = {name: (len(data), *measure(data, read)) for name, data, read in requests(SIZE)}
    for name, (size, took_ms, said) in found.items():
        assert SIZE * 0.8 < size < SIZE * 1.2, name
        assert took_ms >= 0
        assert REFUSED[name] in said if name in REFUSED else said == "read", (name, said)
    assert found.keys() > REFUSED.keys()
