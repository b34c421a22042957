"""Requests that are nearly right: a mutator over valid ones, at every level of what HTTP carries.

Every case comes from a seed and a number alone, so that one that fails can be made again.
"""

import gzip
import json
import random
import struct
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

from tests.faults import images

Headers = list[tuple[bytes, bytes]]
TENSOR = struct.pack("<192f", *[0.5] * 192)
LIMIT = 64 << 10  # the bytes of a body that the services under test take

NUMBERS = (
    "-0",
    "-1",
    "0",
    "1",
    "1.5",
    "1e400",
    "-1e400",
    "NaN",
    "Infinity",
    "-Infinity",
    "9223372036854775807",
    "9223372036854775808",
    "18446744073709551616",
    "-9223372036854775809",
    "1" + "0" * 400,
    "0x10",
    "01",
    "1e-400",
    "0.1e1",
    "4294967296",
    "2147483648",
    "1_000",
    "+1",
    ".5",
    "true",
    "null",
)
TEXTS = (
    '""',
    '"a"',
    '"\\u0000"',
    '"\\ud800"',
    '"\\ud83d\\ude00"',
    '"../../etc/passwd"',
    '"%s%n"',
    '"' + "a" * 3000 + '"',
    '"FP32"',
    '"BYTES"',
    '"FP16"',
    '"BF16"',
    '"input"',
    '"logits"',
    '"{{7*7}}"',
    '"\\n\\r"',
    '"\xff"',
    "'a'",
)
SHAPES = (
    "[]",
    "[0]",
    "[1]",
    "[-1]",
    "[1,3,8,8]",
    "[0,3,8,8]",
    "[1,3,8,8,1]",
    "[3037000500,3037000500]",
    "[1,192]",
    "[65536,65536,65536,65536]",
    "[9223372036854775807,2]",
    "[1.0,3,8,8]",
    '["1",3,8,8]',
    "[true,3,8,8]",
    "[[1],3,8,8]",
    "[" + ",".join(["1"] * 64) + "]",
    "[1,3,8,9223372036854775808]",
    "[0,9223372036854775807]",
    "null",
    "{}",
    "[281474976710656]",
    "[65,3,8,8]",
    "[1025,3,8,8]",
)
NESTS = (
    "[" * 30 + "]" * 30,
    "[" * 2000 + "]" * 2000,
    '{"a":' * 200 + "1" + "}" * 200,
    "[[],[[]]]",
    "{}",
    "[]",
)
VALUES = (*NUMBERS, *TEXTS, *NESTS)
MODES = (
    b"edge",
    b"cascade",
    b"cloud",
    b"split",
    b"auto",
    b"EDGE",
    b"",
    b"nonsense",
    b"%00",
    b"\xc3\xa4",
    b"e" * 2000,
)
IMAGE, OCTETS = b"image/png", b"application/octet-stream"


@dataclass(frozen=True)
class Case:
    """One request. `framed` says that its end is where HTTP says, so that an answer must come and the
    connection can go on; `kind` names the mutation."""

    kind: str
    data: bytes
    framed: bool


def request(method: bytes, target: bytes, headers: Headers, body: bytes | None) -> bytes:
    """A request as bytes, with the length of its body unless the headers say one."""
    lines = [b"%s %s HTTP/1.1" % (method, target), b"Host: a"]
    lines += [b"%s: %s" % pair for pair in headers]
    if body is not None and not any(
        name.lower() in (b"content-length", b"transfer-encoding") for name, _ in headers
    ):
        lines.append(b"Content-Length: %d" % len(body))
    return b"\r\n".join([*lines, b"", b""]) + (body or b"")


class HttpMutator:
    """Makes requests for one service; `predict` says that it has the devices' interface as well."""

    def __init__(self, seed: int, *, predict: bool, model: str = "colors") -> None:
        self._seed = seed
        self._model = model
        self._predict = b"/v1/models/%s/predict" % model.encode() if predict else b""
        self._infer = b"/v2/models/%s/infer" % model.encode()
        kinds: list[Callable[[random.Random], Case]] = [
            self._json,
            self._json,
            self._document,
            self._binary,
            self._packed,
            self._heads,
            self._target,
            self._framing,
            self._bytes,
        ]
        if predict:
            kinds += [self._image, self._image, self._query, self._form, self._raw]
        self._kinds = kinds

    def reseeded(self) -> "HttpMutator":
        """One that makes other cases of the same kind."""
        return HttpMutator(self._seed + 1, predict=bool(self._predict), model=self._model)

    def valid(self, number: int) -> Case:
        """A request that is in order."""
        rng = random.Random(f"{self._seed} valid {number}")
        if self._predict and rng.random() < 0.6:
            body = images.plain(rng, rng.choice(images.FORMS))
            return Case(
                "valid", request(b"POST", self._predict, [(b"Content-Type", IMAGE)], body), framed=True
            )
        return Case("valid", request(b"POST", self._infer, [], _message()), framed=True)

    def case(self, number: int) -> Case:
        """The mutated request of this number."""
        rng = random.Random(f"{self._seed} {number}")
        return rng.choice(self._kinds)(rng)

    def _json(self, rng: random.Random) -> Case:
        """One value of the message is another one."""
        field = rng.choice(
            ("id", "name", "shape", "datatype", "data", "parameters", "inputs", "outputs", "deep")
        )
        value = rng.choice(SHAPES if field == "shape" and rng.random() < 0.7 else VALUES)
        return self._post("json", _message(**{field: value}).replace(b"\xc3\xbf", b"\xff"))

    def _document(self, rng: random.Random) -> Case:
        """The document as a whole: too many of something, twice the same, cut off, not UTF-8, not JSON."""
        many = rng.choice((2, 100, 1000))
        one = _message()
        tensor = '{"name":"%s","datatype":"FP32","shape":[0],"data":[]}'
        body = rng.choice(
            (
                one[: rng.randrange(len(one))],
                one + b"}",
                b"\xef\xbb\xbf" + one,
                one.decode().encode("utf-16"),
                one.replace(b'"inputs"', b'"inputs":[],"inputs"'),
                one.replace(b"{", b"{" + b" " * 5000, 1),
                _message(inputs="[" + ",".join(tensor % n for n in range(many)) + "]"),
                _message(inputs="[" + ",".join([tensor % "input"] * many) + "]"),
                _message(outputs="[" + ",".join(f'{{"name":"o{n}"}}' for n in range(many)) + "]"),
                _message(outputs="[" + ",".join(['{"name":"logits"}'] * many) + "]"),
                _message(parameters="{" + ",".join(f'"p{n}":{n}' for n in range(many)) + "}"),
                one.replace(b"{", b"{" + b",".join(b'"%d":0' % n for n in range(many)) + b",", 1),
                _message(shape=f"[{many}]", datatype='"BYTES"', data="[" + ",".join(['""'] * many) + "]"),
                _message(shape="[20000]", datatype='"BYTES"', data="[" + ",".join(['""'] * 20_000) + "]"),
                _message(parameters=_one(f"tandem_{rng.choice(_WISHES)}", rng.choice(VALUES))),
                _message(parameters=_one(f"tandem_{rng.choice(_WISHES)}", rng.choice(VALUES))),
                _message(outputs=_output("classification", rng.choice(VALUES))),
                _message(outputs=_output("binary_data", rng.choice(VALUES))),
                b"",
                b"null",
                b"[]",
                b'"' + b"a" * 60_000,
                b"[" * 60_000,
                rng.randbytes(rng.randrange(1, 400)),
            )
        )
        return self._post("document", body)

    def _binary(self, rng: random.Random) -> Case:
        """Tensors behind the JSON, whose lengths lie."""
        datatype = rng.choice(("FP32", "FP32", "BYTES", "UINT8", "FP64", "BOOL", "INT64"))
        data = rng.choice(
            (TENSOR, b"", TENSOR[:-1], TENSOR * 2, struct.pack("<I", 1 << 31), b"\x00" * 4000, TENSOR)
        )
        size = rng.choice((str(len(data)), str(len(data)), rng.choice(VALUES)))
        shape = rng.choice(("[1,3,8,8]", rng.choice(SHAPES), "[1]"))
        own = '{"name":"input","datatype":"%s","shape":%s,"parameters":{"binary_data_size":%s}}'
        head = ('{"inputs":[%s]}' % (own % (datatype, shape, size))).encode("utf-8", "replace")
        said = rng.choice(
            (b"%d" % len(head),) * 3 + (b"0", b"-1", b"1", b"9" * 30, b"x", b"\xb2", b"", b"1, 2", b"+5")
        )
        return self._post("binary", head + data, [(b"Inference-Header-Content-Length", said)])

    def _packed(self, rng: random.Random) -> Case:
        """Compressed bodies: bombs, cut, with something behind, of another kind than they say."""
        one = _message()
        packed = rng.choice((gzip.compress, zlib.compress))(one)
        body = rng.choice(
            (
                _bomb(rng.choice((LIMIT, LIMIT + 1, 20_000_000))),
                zlib.compress(_bomb(1_000_000)),
                packed[: rng.randrange(len(packed))],
                packed + b"\x00",
                packed + packed,
                packed,
                one,
                _flip(rng, packed, 2),
                zlib.compress(one)[2:-4],
            )
        )
        name = rng.choice(
            (b"gzip", b"gzip", b"deflate", b"br", b"zstd", b"gzip, gzip", b"identity", b"GZIP ", b"x" * 900)
        )
        twice = rng.choice(([], [], [(b"Content-Encoding", b"gzip")]))
        return self._post("packed", body, [(b"Content-Encoding", name), *twice])

    def _image(self, rng: random.Random) -> Case:
        kind = rng.choice((IMAGE, IMAGE, b"image/jpeg", b"image/webp", b"", b"image/gif"))
        body = images.hostile(rng)
        return Case("image", request(b"POST", self._predict, [(b"Content-Type", kind)], body), framed=True)

    def _query(self, rng: random.Random) -> Case:
        name = rng.choice((*_WISHES, "top_k", "nonsense", "")).encode()
        value = rng.choice(
            (*MODES, *(text.encode() for text in NUMBERS), b"a" * 5000, b"%zz", b"%ff", b"a;b", b"+")
        )
        pairs = [b"%s=%s" % (name, value.replace(b" ", b"+"))] * rng.choice((1, 1, 1, 2, 300))
        target = self._predict + b"?" + b"&".join(pairs) + rng.choice((b"", b"&", b"&=&", b"?", b"#a"))
        body = images.plain(rng, "PNG")
        return Case("query", request(b"POST", target, [(b"Content-Type", IMAGE)], body), framed=True)

    def _form(self, rng: random.Random) -> Case:
        """Multipart bodies whose boundaries, headers or numbers of parts are wrong."""
        mark = rng.choice((b"x", b"x" * 70, b"x" * 5000, b"", b"a b", b'"', b"\xff"))
        said = rng.choice((mark, mark, mark, b"y", b""))
        what = rng.choice(
            (
                b'Content-Disposition: form-data; name="file"; filename="a.png"',
                b'Content-Disposition: form-data; name="file"',
                b'Content-Disposition: form-data; name="other"; filename="a"',
                b"Content-Disposition: form-data",
                b"Content-Disposition: " + b"a" * 9000,
                b"Content-Disposition form-data",
                b"Content-Disposition: form-data; name=\"file\"; filename*=utf-9''%ff%00",
                b'Content-Disposition: form-data; name="\xff\xfe"; filename="\x00"',
                b'Content-Disposition: form-data; name="file"; filename="../../x"\r\nContent-Type: \xff\r\n'
                * 200,
                b"",
            )
        )
        part = b"--%s\r\n%s\r\n\r\n%s\r\n" % (mark, what, images.plain(rng, "PNG"))
        body = part * rng.choice((1, 1, 1, 2, 50)) + rng.choice(
            (b"--%s--\r\n" % mark, b"", b"--%s" % mark, b"x" * 900)
        )
        if rng.random() < 0.3:
            body = _flip(rng, body, 3)
        charset = rng.choice((b"", b"", b"; charset=utf-16", b"; charset=nonsense", b"; charset=\xff"))
        kind = b"multipart/form-data; boundary=" + said + charset
        return Case("form", request(b"POST", self._predict, [(b"Content-Type", kind)], body), framed=True)

    def _raw(self, rng: random.Random) -> Case:
        body = rng.choice(
            (
                TENSOR,
                TENSOR[:-1],
                TENSOR + b"\x00",
                b"\xff" * 768,
                struct.pack("<192f", *[float("nan")] * 192),
            )
        )
        return Case("raw", request(b"POST", self._predict, [(b"Content-Type", OCTETS)], body), framed=True)

    def _heads(self, rng: random.Random) -> Case:
        """Headers: too long, too many, twice, with nonsense in them."""
        extra = rng.choice(
            (
                [(b"X-Request-Id", rng.choice((b"a b", b"\xff", b"a" * 129, b"", b"%00")))],
                [(b"X-Request-Id", b"a"), (b"X-Request-Id", b"b")],
                [(b"X-A", b"a" * rng.choice((8000, 17_000, 70_000)))],
                [(b"X-%d" % n, b"a") for n in range(rng.choice((100, 3000)))],
                [
                    (
                        b"Accept-Encoding",
                        rng.choice((b"gzip;q=nan", b"gzip, " * 500, b";;;", b"\xff", b"deflate")),
                    )
                ],
                [
                    (
                        b"Content-Type",
                        rng.choice((b"a" * 4000, b"\xff", b"application/json; charset=\xff", b";", b"/")),
                    )
                ],
                [(b"Content-Type", b"image/png"), (b"Content-Type", b"text/plain")],
                [(b"Expect", rng.choice((b"100-continue", b"200-ok")))],
                [(b"Connection", rng.choice((b"Upgrade, HTTP2-Settings", b"\xff", b"keep-alive, " * 50)))],
                [(b"Cookie", b"a=b; " * 900)],
                [(b"X-Api-Key", b"\xff" * 200), (b"Authorization", b"Bearer " + b"a" * 3000)],
                [(b"Tandem-Priority", b"\xff"), (b"X-Tandem-Priority", b"a" * 500), (b"Retry-After", b"-1")],
            )
        )
        return self._post("headers", _message(), list(extra))

    def _target(self, rng: random.Random) -> Case:
        method = rng.choice((b"GET", b"POST", b"PUT", b"DELETE", b"PATCH", b"OPTIONS", b"PROPFIND"))
        start = rng.choice(
            (b"/v1/models/", b"/v2/models/", b"/v2/repository/", b"/v1/", b"/", b"//", b"/v2/models//")
        )
        rest = rng.choice(
            (
                b"colors",
                b"index",
                b"stats",
                b"%00",
                b"%ff%fe",
                b"..%2f..%2fetc",
                b"a" * 3000,
                b"a" * 20_000,
                b"colors/ready",
                b"colors/versions/1/infer",
                b"colors/versions/" + b"9" * 500 + b"/infer",
                b"colors/config",
                b"%2e%2e/",
                b"{}",
                b"colors/versions/%F0%9F%98%80/stats",
                b"nobody/infer",
                b"docs",
                b"openapi.json",
                b"health/live",
                b"?" * 50,
            )
        )
        body = rng.choice((None, b"", b"{}", b'{"ready": 1}', b"x" * 5000, b'{"ready": true'))
        return Case("target", request(method, start + rest, [], body), framed=True)

    def _framing(self, rng: random.Random) -> Case:
        """Where a message ends is said twice, wrongly or never."""
        one = _message()
        size = b"%x" % len(one)
        chunked = [(b"Transfer-Encoding", b"chunked")]
        headers, body = rng.choice(
            (
                (chunked, b"%s\r\n%s\r\n0\r\n\r\n" % (size, one)),
                (chunked, b"%s;a=b\r\n%s\r\n0\r\nX-Trailer: 1\r\n\r\n" % (size, one)),
                (chunked, b"-1\r\n" + one),
                (chunked, b"fffffffffffffffff\r\n" + one),
                (chunked, b"zz\r\n"),
                (chunked, size + b"\n" + one + b"\n0\n\n"),
                (chunked, size + b"\r\n" + one[:10]),
                (chunked, b"1;" + b"a" * 30_000),
                ([*chunked, (b"Content-Length", b"3")], b"0\r\n\r\n"),
                ([(b"Transfer-Encoding", b"gzip, chunked")], b"0\r\n\r\n"),
                ([(b"Transfer-Encoding", b"\x0bchunked")], b"0\r\n\r\n"),
                ([(b"Content-Length", b"5"), (b"Content-Length", b"6")], one),
                (
                    [
                        (
                            b"Content-Length",
                            rng.choice((b"-1", b"+5", b"0x5", b"5 5", b"9" * 25, b"", b"\xb2", b"1e3")),
                        )
                    ],
                    one,
                ),
                ([(b"Content-Length", b"%d" % (len(one) + 50))], one),
                ([(b"Content-Length", b"%d" % (LIMIT + 1))], one),
                ([(b"Content-Length", b"99999999999")], one),
            )
        )
        return Case("framing", request(b"POST", self._infer, list(headers), body), framed=False)

    def _bytes(self, rng: random.Random) -> Case:
        """Any byte of the whole request may have changed, gone or come twice."""
        data = self.valid(rng.randrange(1000)).data
        for _ in range(rng.choice((1, 1, 2, 5))):
            at, size = rng.randrange(len(data)), rng.choice((1, 1, 4, 40))
            new = rng.choice(
                (b"", rng.randbytes(size), data[at : at + size] * 2, b"\r\n", b"\x00", b" ", b":", b"\n")
            )
            data = data[:at] + new + data[at + size :]
        return Case("bytes", data, framed=False)

    def _post(self, kind: str, body: bytes, headers: Headers | None = None) -> Case:
        return Case(kind, request(b"POST", self._infer, headers or [], body), framed=True)


_WISHES = ("mode", "cut", "deadline_ms", "threshold", "priority", "x" * 300)


def _message(**values: str) -> bytes:
    """A request for inference in JSON, in which the values of these fields are as given."""
    data = values.get("data", json.dumps([0.5] * 192))
    if "deep" in values:
        data = "[" + values["deep"] + "," * 3 + "]"
    fields = {
        "name": values.get("name", '"input"'),
        "shape": values.get("shape", "[1,3,8,8]"),
        "datatype": values.get("datatype", '"FP32"'),
        "data": data,
    }
    tensor = "{" + ",".join(f'"{name}":{value}' for name, value in fields.items()) + "}"
    parts = {"inputs": values.get("inputs", f"[{tensor}]")} | {k: v for k, v in values.items() if k in _OUTER}
    return ("{" + ",".join(f'"{name}":{value}' for name, value in parts.items()) + "}").encode(
        "utf-8", "replace"
    )


def _one(name: str, value: str) -> str:
    return "{" + f'"{name}":{value}' + "}"


def _output(name: str, value: str) -> str:
    return '[{"name":"logits","parameters":' + _one(name, value) + "}]"


_OUTER = ("id", "parameters", "outputs")


@cache
def _bomb(size: int) -> bytes:
    """So many zeros, compressed."""
    return gzip.compress(bytes(size))


def _flip(rng: random.Random, data: bytes, times: int) -> bytes:
    changed = bytearray(data)
    for _ in range(times):
        changed[rng.randrange(len(changed))] = rng.randrange(256)
    return bytes(changed)
