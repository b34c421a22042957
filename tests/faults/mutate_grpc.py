"""Messages that are nearly right: a mutator of protobuf, by fields and by bytes, and of HTTP/2 frames.

As in `mutate_http`, a case comes from a seed and a number alone.
"""

import random
import struct
import zlib
from collections.abc import Callable
from dataclasses import dataclass

from benchmarks.http2 import (
    ENABLE_PUSH,
    END_HEADERS,
    END_STREAM,
    HEADER_TABLE_SIZE,
    INITIAL_WINDOW_SIZE,
    PREFACE,
    frame,
    settings,
)
from protos import open_inference_pb2 as oip
from tests.faults import images
from tests.faults.mutate_http import TENSOR

SERVICE = "inference.GRPCInferenceService"
HEALTH = "grpc.health.v1.Health"
_INFER = "ModelInfer"
_PATH = f"/{SERVICE}/{_INFER}".encode()
_OTHERS = (
    f"{SERVICE}/ServerLive", f"{SERVICE}/ServerReady", f"{SERVICE}/ModelReady", f"{SERVICE}/ServerMetadata",
    f"{SERVICE}/ModelMetadata", f"{SERVICE}/ModelConfig", f"{SERVICE}/ModelStatistics", f"{HEALTH}/Check",
    f"{SERVICE}/RepositoryIndex", f"{SERVICE}/RepositoryModelLoad", f"{SERVICE}/Nonsense", f"{HEALTH}/List",
)  # fmt: skip
_NAMES = (
    "",
    "input",
    "logits",
    "colors",
    "colors.image",
    "colors.tail.means",
    "image",
    "a" * 3000,
    "\x00",
    "é" * 50,
)
_SIZES = (-1, 0, 1, 2, 3, 8, 64, 65, 192, 1 << 16, 1 << 31, (1 << 63) - 1, -(1 << 63), 3037000500)
_DATATYPES = (
    "FP32",
    "BYTES",
    "INT8",
    "UINT8",
    "BOOL",
    "FP16",
    "FP64",
    "INT64",
    "BF16",
    "fp32",
    "",
    "X" * 3000,
)
_WISHES = ("mode", "cut", "deadline_ms", "threshold", "priority", "bundle", "top_k", "x" * 500)
_NUMBERS = (0, 1, -1, 1 << 62, -(1 << 63))
_FLOATS = (0.0, -0.0, 0.5, 1e308, float("inf"), float("-inf"), float("nan"), 5e-324)


@dataclass(frozen=True)
class GrpcCase:
    """One message for one method; on a stream where `streamed` says so. A `timed` one asks for a deadline."""

    kind: str
    method: str
    data: bytes
    streamed: bool = False

    @property
    def timed(self) -> bool:
        """Whether its sender may have set it a deadline that nobody can keep."""
        return b"tandem_deadline_ms" in self.data


def plain(model: str = "colors") -> oip.ModelInferRequest:
    """A request that is in order."""
    message = oip.ModelInferRequest(model_name=model, id="a")
    message.inputs.add(name="input", datatype="FP32", shape=(1, 3, 8, 8))
    message.raw_input_contents.append(TENSOR)
    return message


def _inputs(message: oip.ModelInferRequest, many: int) -> None:
    for number in range(many):
        message.inputs.add(name=f"i{number}", datatype="FP32", shape=(0,))


def _outputs(message: oip.ModelInferRequest, many: int) -> None:
    for _ in range(many):
        message.outputs.add(name="logits")


def _parameters(message: oip.ModelInferRequest, many: int) -> None:
    for number in range(many):
        message.parameters[f"tandem_{number}"].int64_param = number
        message.inputs[0].parameters[f"p{number}"].bool_param = True


_MANY: tuple[Callable[[oip.ModelInferRequest, int], None], ...] = (
    _inputs,
    _outputs,
    _parameters,
    lambda message, many: message.raw_input_contents.extend([b""] * many),
    lambda message, many: message.inputs[0].shape.extend([1] * many),
    lambda message, many: message.inputs[0].contents.bytes_contents.extend([b""] * many * 20),
)


class GrpcMutator:
    """Makes messages for one service; `images_too` says that it has a model which takes images."""

    def __init__(self, seed: int, *, images_too: bool) -> None:
        self._seed = seed
        self._images_too = images_too
        self._kinds = [
            self._fields,
            self._fields,
            self._bytes,
            self._wire,
            self._many,
            self._other,
            self._typed,
        ]
        if images_too:
            self._kinds += [self._image, self._image]

    def reseeded(self) -> "GrpcMutator":
        """One that makes other cases of the same kind."""
        return GrpcMutator(self._seed + 1, images_too=self._images_too)

    def valid(self, number: int) -> GrpcCase:
        """A request that is in order."""
        streamed = bool(number % 2)
        method = "ModelStreamInfer" if streamed else _INFER
        return GrpcCase("valid", f"{SERVICE}/{method}", plain().SerializeToString(), streamed)

    def case(self, number: int) -> GrpcCase:
        """The mutated message of this number."""
        rng = random.Random(f"{self._seed} grpc {number}")
        return rng.choice(self._kinds)(rng)

    def frames(self, number: int) -> bytes:
        """What a client may send over a connection of its own: HTTP/2 that is nearly right."""
        return _frames(random.Random(f"{self._seed} frames {number}"))

    def _infer(self, kind: str, rng: random.Random, data: bytes) -> GrpcCase:
        streamed = rng.random() < 0.3
        method = "ModelStreamInfer" if streamed else _INFER
        return GrpcCase(kind, f"{SERVICE}/{method}", data, streamed)

    def _fields(self, rng: random.Random) -> GrpcCase:
        """One or two fields have another value."""
        message = plain()
        for _ in range(rng.choice((1, 1, 2))):
            _change(rng, message)
        return self._infer("fields", rng, message.SerializeToString())

    def _typed(self, rng: random.Random) -> GrpcCase:
        """Tensors as typed contents, which may be of another type or number than they say."""
        message = plain()
        if rng.random() < 0.8:
            del message.raw_input_contents[:]
        contents = message.inputs[0].contents
        count = rng.choice((0, 1, 191, 192, 192, 193))
        for field, value in rng.sample(_CONTENTS, rng.choice((1, 1, 2))):
            getattr(contents, field).extend([value] * count)
        message.inputs[0].datatype = rng.choice(_DATATYPES)
        return self._infer("typed", rng, message.SerializeToString())

    def _many(self, rng: random.Random) -> GrpcCase:
        """Too many of something."""
        message, many = plain(), rng.choice((2, 100, 1000))
        rng.choice(_MANY)(message, many)
        entries = rng.choice((b"", b"", b"\x22\x00" * many * 25))  # of a map, with nothing in them
        return self._infer("many", rng, message.SerializeToString() + entries)

    def _bytes(self, rng: random.Random) -> GrpcCase:
        """The message with bytes that have changed, gone or come twice."""
        data = bytearray(plain().SerializeToString())
        for _ in range(rng.choice((1, 1, 3, 20))):
            at = rng.randrange(len(data))
            data[at : at + rng.choice((0, 1, 1, 5))] = rng.choice((b"", rng.randbytes(1), rng.randbytes(6)))
        return self._infer(
            "bytes", rng, bytes(data[: rng.choice((len(data), len(data), rng.randrange(len(data))))])
        )

    def _wire(self, rng: random.Random) -> GrpcCase:
        """Fields that nobody knows, of the wrong wire type, in groups, whose lengths lie, or not UTF-8."""
        field = rng.choice((1, 2, 3, 4, 5, 6, 7, 99, 100_000, (1 << 29) - 1))
        kind = rng.choice((0, 1, 2, 3, 4, 5, 6, 7))
        body = rng.choice(
            (
                b"",
                b"\xff" * 11,
                b"\x7f" + b"a",
                b"\xff\xff\xff\xff\x0f",
                b"\x02\xff\xfe",
                rng.randbytes(9),
                b"\x00" * 9,
            )
        )
        extra = _varint(field << 3 | kind) + body
        data = plain().SerializeToString()
        nested = rng.choice((b"", b"\x0b" * 200, b"\x5a\x80\x80\x80\x80\x08", _deep(300)))
        return self._infer(
            "wire", rng, rng.choice((extra + data, data + extra, extra, nested + data, nested))
        )

    def _other(self, rng: random.Random) -> GrpcCase:
        data = rng.choice(
            (
                b"",
                rng.randbytes(rng.randrange(1, 60)),
                b"\x0a\x06colors",
                b"\x0a\x02\xff\xfe",
                b"\x0a\x7f",
                b"\x08\x01",
            )
        )
        return GrpcCase("other", rng.choice(_OTHERS), data)

    def _image(self, rng: random.Random) -> GrpcCase:
        """An image for the model that takes images, which may lie about its length."""
        message = oip.ModelInferRequest(model_name="colors.image", id="a")
        message.inputs.add(name="image", datatype="BYTES", shape=(rng.choice((1, 1, 1, 0, 2, 100)),))
        image = images.hostile(rng)
        size = rng.choice((len(image),) * 6 + (0, len(image) + 1, 0xFFFFFFFF))
        message.raw_input_contents.append(struct.pack("<I", size) + image)
        return self._infer("image", rng, message.SerializeToString())


_CONTENTS: tuple[tuple[str, object], ...] = (
    ("fp32_contents", 0.5), ("fp64_contents", 1e300), ("int_contents", -5),
    ("uint_contents", 70_000), ("bool_contents", True),
    ("int64_contents", 1 << 62), ("uint64_contents", 1 << 63), ("bytes_contents", b"a"),
    ("fp32_contents", float("nan")),
)  # fmt: skip


def _change(rng: random.Random, message: oip.ModelInferRequest) -> None:
    tensor = message.inputs[0]
    match rng.randrange(9):
        case 0:
            message.model_name = rng.choice(_NAMES)
        case 1:
            message.model_version = rng.choice(("1", "2", "latest", "a" * 3000, "\x00"))
        case 2:
            message.id = rng.choice(("", "a" * 5000, "é", "\n"))
        case 3:
            tensor.name = rng.choice(_NAMES)
        case 4:
            tensor.datatype = rng.choice(_DATATYPES)
        case 5:
            del tensor.shape[:]
            tensor.shape.extend(rng.choice(_SIZES) for _ in range(rng.choice((0, 1, 4, 4, 17))))
        case 6:
            raw = rng.choice(
                (b"", TENSOR[:-1], TENSOR + b"\x00", b"\xff" * 768, struct.pack("<I", 1 << 31), TENSOR * 3)
            )
            message.raw_input_contents[0] = raw
        case 7:
            holder = rng.choice((message.parameters, tensor.parameters))
            _set(rng, holder[rng.choice(("shared_memory_region", f"tandem_{rng.choice(_WISHES)}"))])
        case _:
            output = message.outputs.add(name=rng.choice(_NAMES))
            _set(
                rng, output.parameters[rng.choice(("classification", "binary_data", "shared_memory_region"))]
            )


def _set(rng: random.Random, parameter: oip.InferParameter) -> None:
    match rng.randrange(6):
        case 0:
            parameter.bool_param = True
        case 1:
            parameter.int64_param = rng.choice(_NUMBERS)
        case 2:
            parameter.double_param = rng.choice(_FLOATS)
        case 3:
            parameter.uint64_param = rng.choice((0, 1, 1 << 63))
        case 4:
            parameter.string_param = rng.choice(("", "edge", "nonsense", "a" * 4000, "\x00", "cascade"))
        case _:
            parameter.ClearField("parameter_choice")


def _varint(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes((*out, value))


def _deep(depth: int) -> bytes:
    """A group within a group, and so on."""
    return b"\x5b" * depth + b"\x5c" * depth


def _block(headers: dict[bytes, bytes]) -> bytes:
    """Headers without an index, as RFC 7541 has them (6.2.2)."""
    return b"".join(b"\x00" + _counted(name) + _counted(value) for name, value in headers.items())


def _counted(text: bytes) -> bytes:
    """A text behind its length: an integer that begins with seven bits (5.1)."""
    if len(text) < 127:
        return bytes([len(text)]) + text
    return b"\x7f" + _varint(len(text) - 127) + text


def _frames(rng: random.Random) -> bytes:
    headers = {
        b":method": rng.choice((b"POST",) * 8 + (b"GET", b"")),
        b":scheme": b"http",
        b":path": rng.choice((_PATH,) * 12 + (b"/", b"", b"/" + b"a" * 3000, b"/\xff\xe5")),
        b":authority": b"a",
        b"te": b"trailers",
        b"content-type": rng.choice((b"application/grpc",) * 6 + (b"text/plain", b"")),
        **rng.choice(
            (
                {}, {}, {b"grpc-encoding": rng.choice((b"gzip", b"nonsense"))}, {b"a" * 100: b"b" * 9000},
                {b"grpc-timeout": rng.choice((b"0n", b"1H", b"99999999999S", b"-1S", b"x"))},
                {b"tandem-bin": b"!!!"}, {b"x-a": b"\xff\x00"}, {b"content-length": b"3"},
            )
        ),
    }  # fmt: skip
    content = plain().SerializeToString()
    flag = rng.choice((0, 0, 0, 1, 2, 255))
    if flag == 1 and b"grpc-encoding" in headers:
        content = rng.choice((zlib.compress(content), content, zlib.compress(bytes(5_000_000))))
    said = rng.choice((len(content),) * 5 + (0, len(content) - 1, len(content) + 5, 0xFFFFFFFF))
    data = struct.pack(">BI", flag, said) + content
    stream = rng.choice((1, 1, 1, 1, 2, 0, 0x7FFFFFFF))
    parts = [
        settings(
            {HEADER_TABLE_SIZE: 0, ENABLE_PUSH: 0, INITIAL_WINDOW_SIZE: rng.choice((1 << 30, 0, 0xFFFFFFFF))}
        ),
        frame(1, rng.choice((END_HEADERS,) * 5 + (0, END_HEADERS | END_STREAM)), stream, _block(headers)),
        frame(0, rng.choice((END_STREAM,) * 5 + (0, 8)), stream, data),
    ]
    for _ in range(rng.choice((0, 0, 1, 3, 50))):
        kind = rng.choice((2, 3, 4, 5, 6, 7, 8, 9, 10, 200))
        body = rng.choice((b"", bytes(4), bytes(8), b"\xff\xff\xff\xff", rng.randbytes(rng.randrange(30))))
        parts.insert(
            rng.randrange(len(parts) + 1), frame(kind, rng.choice((0, 1, 4)), rng.choice((0, 1, 3)), body)
        )
    out = bytearray(rng.choice((PREFACE,) * 9 + (b"GET / HTTP/1.1\r\n\r\n",)) + b"".join(parts))
    for _ in range(rng.choice((0, 0, 1, 4))):
        out[rng.randrange(24, len(out))] = rng.randrange(256)
    return bytes(out)
