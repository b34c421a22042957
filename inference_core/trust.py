"""The rules that a bundle's files must pass before anything loads them. Pure: bytes in, or a refusal.

What a rule cannot see (a graph that eats all memory when it runs) is not checked here.
"""

import hashlib
import re
from collections.abc import Iterable, Iterator
from pathlib import PurePosixPath

from google.protobuf.message import DecodeError

from inference_core.errors import BundleError
from protos import model_file_pb2 as pb

NAME = re.compile(r"^[a-z0-9][a-z0-9._-]{0,63}$")
DOMAINS = frozenset({"", "ai.onnx", "ai.onnx.ml", "com.microsoft"})
_EXTERNAL = 1  # TensorProto.DataLocation.EXTERNAL


def sha256(data: bytes) -> str:
    """The lower-case hexadecimal SHA-256 of `data`."""
    return hashlib.sha256(data).hexdigest()


def check_name(what: str, name: str) -> str:
    """`name`, when it is fit for a path, a URL and a label; else `BundleError`."""
    if not NAME.fullmatch(name):
        raise BundleError(f"{what} {name!r} does not match {NAME.pattern}")
    return name


def check_file_name(name: str) -> str:
    """`name`, when it is a plain file name inside the bundle; else `BundleError`."""
    if PurePosixPath(name).name != name or not NAME.fullmatch(name):
        raise BundleError(f"file {name!r} is not a plain name that matches {NAME.pattern}")
    return name


def check_digest(file: str, data: bytes, expected: str) -> None:
    """Raise `BundleError` unless the SHA-256 of `data` is `expected`."""
    actual = sha256(data)
    if actual != expected:
        raise BundleError(f"{file}: SHA-256 is {actual}, the manifest says {expected}")


def check_model_file(file: str, data: bytes) -> None:
    """Raise `BundleError` for an ONNX file with external data or operators from elsewhere.

    External data would let a model read files of the host; see CVE-2026-34446 and its ancestors.
    """
    try:
        model = pb.ModelFile.FromString(data)
    except DecodeError as error:
        raise BundleError(f"{file}: not an ONNX file") from error
    if not model.HasField("graph"):
        raise BundleError(f"{file}: not an ONNX file, it has no graph")
    for opset in model.opset_import:
        if opset.domain not in DOMAINS:
            raise BundleError(f"{file}: operators of domain {opset.domain!r} are not allowed")
    for tensor in _tensors(file, model):
        if tensor.data_location == _EXTERNAL or tensor.external_data:
            raise BundleError(f"{file}: tensor {tensor.name!r} keeps its data outside the file")


def _tensors(file: str, model: pb.ModelFile) -> Iterator[pb.Tensor]:
    yield from _graph_tensors(file, model.graph)
    for training in model.training_info:
        yield from _graph_tensors(file, training.initialization)
        yield from _graph_tensors(file, training.algorithm)
    for function in model.functions:
        yield from _attribute_tensors(file, function.attribute_proto)
        yield from _node_tensors(file, function.node)


def _graph_tensors(file: str, graph: pb.Graph) -> Iterator[pb.Tensor]:
    yield from graph.initializer
    yield from _sparse_tensors(graph.sparse_initializer)
    yield from _node_tensors(file, graph.node)


def _node_tensors(file: str, nodes: Iterable[pb.Node]) -> Iterator[pb.Tensor]:
    for node in nodes:
        if node.domain not in DOMAINS:
            raise BundleError(f"{file}: operator {node.domain}::{node.op_type} is not allowed")
        yield from _attribute_tensors(file, node.attribute)


def _attribute_tensors(file: str, attributes: Iterable[pb.Attribute]) -> Iterator[pb.Tensor]:
    """Every tensor inside the attributes, those of nested graphs included."""
    for attribute in attributes:
        yield attribute.t
        yield from attribute.tensors
        yield from _sparse_tensors((attribute.sparse_tensor, *attribute.sparse_tensors))
        for graph in (attribute.g, *attribute.graphs):
            yield from _graph_tensors(file, graph)


def _sparse_tensors(tensors: Iterable[pb.SparseTensor]) -> Iterator[pb.Tensor]:
    for sparse in tensors:
        yield sparse.values
        yield sparse.indices
