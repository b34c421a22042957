"""One sample to the cloud, by one call of the fleet's protocol, and what became of it."""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum, auto
from typing import Protocol

import grpc
from google.protobuf.message import DecodeError

from edge_node.connection import unless_cancelled
from edge_node.disclosure import Disclosed
from edge_node.sample_store import Sample
from inference_core.tensors import datatype_of, to_bytes
from protos import fleet_pb2 as pb

PUT_SAMPLE = "/tandem.fleet.v1.Fleet/PutSample"
# The slowest link on which a sample arrives, in bytes a second, and what the cloud may take.
_SLOWEST, _CLOUD_S = 8192, 10.0


class Trouble(Enum):
    """Why the cloud has not taken a sample, by what there is to do about it."""

    REFUSED = auto()  # it never will
    ELSEWHERE = auto()  # it has not that model from that bundle, now
    BUSY = auto()  # no room
    LATE = auto()  # no answer in time: the cloud or the link is slow, or the sample large
    GONE = auto()  # the connection
    UNSUPPORTED = auto()  # it takes no samples
    FORBIDDEN = auto()  # not from this node
    FAILED = auto()  # its own error


_TROUBLE = {
    grpc.StatusCode.INVALID_ARGUMENT: Trouble.REFUSED,
    grpc.StatusCode.OUT_OF_RANGE: Trouble.REFUSED,
    grpc.StatusCode.FAILED_PRECONDITION: Trouble.ELSEWHERE,
    grpc.StatusCode.NOT_FOUND: Trouble.ELSEWHERE,
    grpc.StatusCode.RESOURCE_EXHAUSTED: Trouble.BUSY,
    grpc.StatusCode.DEADLINE_EXCEEDED: Trouble.LATE,
    grpc.StatusCode.UNAVAILABLE: Trouble.GONE,
    grpc.StatusCode.CANCELLED: Trouble.GONE,
    grpc.StatusCode.UNIMPLEMENTED: Trouble.UNSUPPORTED,
    grpc.StatusCode.UNAUTHENTICATED: Trouble.FORBIDDEN,
    grpc.StatusCode.PERMISSION_DENIED: Trouble.FORBIDDEN,
}


class NotTaken(Exception):
    """The cloud has not taken a sample; `trouble` says what there is to do."""

    def __init__(self, trouble: Trouble, text: str) -> None:
        super().__init__(text)
        self.trouble = trouble


@dataclass(frozen=True, slots=True)
class Receipt:
    """The cloud has the sample, and its full model names this class."""

    index: int
    label: str


class Line(Protocol):
    """A connection to a cloud."""

    channel: grpc.aio.Channel


class Uplink(Protocol):
    """The connections to the cloud, for what is no escalation."""

    def reachable(self) -> bool:
        """Whether there is a connection to a cloud that is not being left alone; costs nothing."""

    def uplink(self, nbytes: int) -> Line:
        """A connection for a message of so many bytes, which count as sent. Raises `CloudUnavailable`."""


class FleetClient:
    """Calls the fleet's protocol on connections that are there anyway."""

    def __init__(self, clouds: Uplink, node_id: str, max_message_bytes: int) -> None:
        """`node_id` is what this node calls itself; where it shows a certificate, that must say the same."""
        self.reachable = clouds.reachable
        self._clouds = clouds
        self._node_id = node_id
        self._max_bytes = max_message_bytes

    def message(self, sample: Sample, disclosed: Disclosed) -> bytes:
        """A sample as it is sent. Raises `NotTaken` for one that is larger than any message may be."""
        data = _request(self._node_id, sample, disclosed).SerializeToString()
        if len(data) > self._max_bytes:
            words = f"the message is {len(data)} bytes, the limit is {self._max_bytes}"
            raise NotTaken(Trouble.REFUSED, words)
        return data

    async def put(self, message: bytes, on_send: Callable[[int], object]) -> Receipt:
        """Send what `message` made; `on_send` is told of its bytes when they go. Raises `NotTaken`, and
        `CloudUnavailable` where nothing was sent."""
        channel = self._clouds.uplink(len(message)).channel
        # As bytes: gRPC gives nothing at all for what is no message.
        call: grpc.aio.UnaryUnaryMultiCallable[bytes, bytes] = channel.unary_unary(PUT_SAMPLE)
        on_send(len(message))
        try:
            data = await call(message, timeout=_CLOUD_S + len(message) / _SLOWEST)
            answer = pb.PutSampleResponse.FromString(data)
        except grpc.aio.AioRpcError as error:
            raise _not_taken(error.code(), error.details() or "") from error
        except asyncio.CancelledError:
            unless_cancelled()
            raise NotTaken(Trouble.GONE, "the connection was closed during the call") from None
        except DecodeError as error:
            raise NotTaken(Trouble.FAILED, f"the answer is no message of the protocol: {error}") from error
        return Receipt(answer.index, answer.label)


def _not_taken(code: grpc.StatusCode, text: str) -> NotTaken:
    trouble = _TROUBLE.get(code, Trouble.FAILED)
    # gRPC's own words where a message is over the other side's limit: the status is that of a full queue.
    if trouble is Trouble.BUSY and "larger than max" in text:
        trouble = Trouble.REFUSED
    return NotTaken(trouble, f"{code.name}: {text}")


def _request(node_id: str, sample: Sample, disclosed: Disclosed) -> pb.PutSampleRequest:
    request = pb.PutSampleRequest(
        key=sample.key, node=node_id, model=sample.model, version=sample.version, bundle=sample.digest,
        reason=sample.reason, kept_at=sample.kept_at,
    )  # fmt: skip
    if sample.edge is not None:
        request.edge.index = sample.edge.index
        request.edge.label = sample.edge.label
        request.edge.confidence = sample.edge.confidence
        request.edge.threshold = sample.threshold
    if disclosed.image is not None:
        request.image = disclosed.image
        return request
    tensors = [
        pb.Tensor(name=name, datatype=datatype_of(array), shape=array.shape, data=to_bytes(array))
        for name, array in (disclosed.tensors or {}).items()
    ]
    if disclosed.cut is None:
        request.tensor.CopyFrom(tensors[0])
    else:
        request.features.cut = disclosed.cut
        request.features.tensors.extend(tensors)
    return request
