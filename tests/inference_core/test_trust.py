"""Every place in an ONNX file where data or code from outside could hide, and every bad name."""

import contextlib
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper

from inference_core.errors import BundleError
from inference_core.trust import (
    DOMAINS,
    check_digest,
    check_file_name,
    check_model_file,
    check_name,
    sha256,
)
from protos import model_file_pb2
from tests.bundles import model_bytes, pool_and_classify, write_bundle

VALID = model_bytes(pool_and_classify())


def outside(name: str = "stolen") -> TensorProto:
    """A tensor that keeps its data in a file of the host."""
    tensor = TensorProto(name=name, data_type=TensorProto.UINT8, dims=[16])
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="../../etc/passwd")
    return tensor


def inside(name: str = "own") -> TensorProto:
    return helper.make_tensor(name, TensorProto.INT64, [1], [1])


def constant(tensor: TensorProto) -> onnx.NodeProto:
    return helper.make_node("Constant", [], ["c"], value=tensor)


def graph(
    nodes: list[onnx.NodeProto] | None = None, initializers: list[TensorProto] | None = None
) -> onnx.GraphProto:
    return helper.make_graph(nodes or [], "g", [], [], initializer=initializers or [])


def sparse(values: TensorProto, indices: TensorProto) -> onnx.SparseTensorProto:
    made = onnx.SparseTensorProto(dims=[4])
    made.values.CopyFrom(values)
    made.indices.CopyFrom(indices)
    return made


def with_attribute(**fields: Any) -> onnx.NodeProto:
    """A node whose one attribute has these fields set, whether that makes sense or not."""
    node = helper.make_node("Any", [], ["c"])
    node.attribute.append(onnx.AttributeProto(name="a", **fields))
    return node


def branch(then: onnx.GraphProto) -> onnx.NodeProto:
    return helper.make_node("If", ["yes"], ["c"], then_branch=then, else_branch=graph())


def loop(body: onnx.GraphProto) -> onnx.NodeProto:
    return helper.make_node("Loop", ["n", "yes"], ["c"], body=body)


def model(main: onnx.GraphProto, **fields: Any) -> onnx.ModelProto:
    made = helper.make_model(main, opset_imports=[helper.make_opsetid("", 17)])
    for name, value in fields.items():
        getattr(made, name).extend(value)
    return made


def function(**fields: Any) -> onnx.FunctionProto:
    return onnx.FunctionProto(name="f", domain="", **fields)


def with_sparse(values: TensorProto, indices: TensorProto) -> onnx.ModelProto:
    made = model(graph())
    made.graph.sparse_initializer.append(sparse(values, indices))
    return made


# Each takes the tensor to hide.
PLACES: dict[str, Callable[[TensorProto], onnx.ModelProto]] = {
    "initializer": lambda t: model(graph(initializers=[inside(), t])),
    "attribute": lambda t: model(graph([constant(inside()), constant(t)])),
    "list attribute": lambda t: model(graph([with_attribute(tensors=[inside(), t])])),
    "sparse initializer, values": lambda t: with_sparse(t, inside()),
    "sparse initializer, indices": lambda t: with_sparse(inside(), t),
    "sparse attribute": lambda t: model(graph([with_attribute(sparse_tensor=sparse(t, inside()))])),
    "sparse list attribute": lambda t: model(graph([with_attribute(sparse_tensors=[sparse(inside(), t)])])),
    "If, initializer": lambda t: model(graph([branch(graph(initializers=[t]))])),
    "If, attribute": lambda t: model(graph([branch(graph([constant(t)]))])),
    "Loop, initializer": lambda t: model(graph([loop(graph(initializers=[t]))])),
    "Loop in If in Loop": lambda t: model(
        graph([loop(graph([branch(graph([loop(graph([constant(t)]))]))]))])
    ),
    "list of graphs": lambda t: model(graph([with_attribute(graphs=[graph(), graph([constant(t)])])])),
    "function": lambda t: model(graph(), functions=[function(node=[constant(t)])]),
    "If in function": lambda t: model(
        graph(), functions=[function(), function(node=[branch(graph(initializers=[t]))])]
    ),
    "default attribute of function": lambda t: model(
        graph(),
        functions=[
            function(attribute_proto=[onnx.AttributeProto(name="a", type=onnx.AttributeProto.TENSOR, t=t)])
        ],
    ),
    "training, initialization": lambda t: model(
        graph(), training_info=[onnx.TrainingInfoProto(initialization=graph(initializers=[t]))]
    ),
    "training, algorithm": lambda t: model(
        graph(), training_info=[onnx.TrainingInfoProto(algorithm=graph([constant(t)]))]
    ),
}


@pytest.mark.parametrize("place", PLACES)
def test_external_data_is_found(place: str) -> None:
    data = PLACES[place](outside()).SerializeToString()
    with pytest.raises(BundleError, match=r"^m\.onnx: tensor 'stolen' keeps its data outside the file$"):
        check_model_file("m.onnx", data)


@pytest.mark.parametrize("place", PLACES)
def test_the_same_place_may_hold_data_of_the_file(place: str) -> None:
    check_model_file("m.onnx", PLACES[place](inside()).SerializeToString())


def test_external_data_is_found_by_either_of_its_marks() -> None:
    flagged, listed = outside(), outside()
    flagged.ClearField("external_data")
    listed.ClearField("data_location")
    for tensor in (flagged, listed):
        with pytest.raises(BundleError, match="outside the file"):
            check_model_file("m.onnx", model(graph(initializers=[tensor])).SerializeToString())


def test_external_data_that_onnx_itself_writes_is_found(tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    onnx.save_model(
        onnx.load_model_from_string(VALID),
        path,
        save_as_external_data=True,
        location="w.bin",
        size_threshold=0,
    )
    with pytest.raises(BundleError, match="outside the file"):
        check_model_file("m.onnx", path.read_bytes())


# ---- operators


FOREIGN = helper.make_node("Evil", [], ["c"], domain="com.evil")
HIDING = {
    "graph": lambda node: model(graph([node])),
    "If": lambda node: model(graph([branch(graph([node]))])),
    "Loop in If": lambda node: model(graph([branch(graph([loop(graph([node]))]))])),
    "function": lambda node: model(graph(), functions=[function(node=[node])]),
    "training": lambda node: model(graph(), training_info=[onnx.TrainingInfoProto(algorithm=graph([node]))]),
}


@pytest.mark.parametrize("place", HIDING)
def test_operators_from_elsewhere_are_found(place: str) -> None:
    with pytest.raises(BundleError, match=r"^m\.onnx: operator com\.evil::Evil is not allowed$"):
        check_model_file("m.onnx", HIDING[place](FOREIGN).SerializeToString())


@pytest.mark.parametrize(
    "domain", ["com.evil", "ai.onnx.training", "COM.MICROSOFT", " ", "com.microsoft.nchwc"]
)
def test_operator_sets_from_elsewhere_are_refused(domain: str) -> None:
    data = model(graph(), opset_import=[helper.make_opsetid(domain, 1)]).SerializeToString()
    with pytest.raises(BundleError, match=re.escape(f"domain {domain!r} are not allowed")):
        check_model_file("m.onnx", data)


@pytest.mark.parametrize("domain", sorted(DOMAINS))
def test_known_operator_sets_pass(domain: str) -> None:
    node = helper.make_node("Any", [], ["c"], domain=domain)
    made = model(graph([node]), opset_import=[helper.make_opsetid(domain, 1)])
    check_model_file("m.onnx", made.SerializeToString())


# ---- the file as a whole


def test_a_plain_model_passes() -> None:
    check_model_file("m.onnx", VALID)


def test_every_file_of_a_bundle_passes(tmp_path: Path) -> None:
    files = list(write_bundle(tmp_path, full_work=1).glob("*.onnx"))
    assert len(files) == 7
    for path in files:
        check_model_file(path.name, path.read_bytes())


@pytest.mark.parametrize(
    "data",
    [b"", b"\0", b"not a model", b"\xff\xd8\xff\xe0JFIF", b"\x89PNG\r\n\x1a\n", b"{}", b"\x3a\xff\xff"],
)
def test_junk_is_not_an_onnx_file(data: bytes) -> None:
    with pytest.raises(BundleError, match=r"^m\.onnx: not an ONNX file"):
        check_model_file("m.onnx", data)


def refused_or_passed(data: bytes) -> None:
    with contextlib.suppress(BundleError):
        check_model_file("m.onnx", data)


@given(st.binary(max_size=300))
def test_any_bytes_pass_or_are_refused(data: bytes) -> None:
    refused_or_passed(data)


@settings(max_examples=200)
@given(st.integers(0, len(VALID) - 1), st.binary(min_size=1, max_size=4), st.booleans())
def test_damaged_models_pass_or_are_refused(at: int, junk: bytes, cut: bool) -> None:
    refused_or_passed(VALID[:at] + junk + (b"" if cut else VALID[at + len(junk) :]))


def test_graphs_nested_without_end_are_refused() -> None:
    body = b""
    for _ in range(10_000):
        # graph { node { attribute { g: body } } }, from the inside out
        for tag in (0x32, 0x2A, 0x0A):
            body = bytes([tag]) + length(body) + body
    with pytest.raises(BundleError, match="not an ONNX file"):
        check_model_file("m.onnx", bytes([0x3A]) + length(body) + body)


def length(data: bytes) -> bytes:
    """The length of `data` as protobuf writes it."""
    left, out = len(data), bytearray()
    while left > 127:
        out.append(left & 127 | 128)
        left >>= 7
    return bytes([*out, left])


# ---- our excerpt of ONNX's format


EXCERPT = {
    "ModelFile": "ModelProto",
    "TrainingInfo": "TrainingInfoProto",
    "OperatorSet": "OperatorSetIdProto",
    "Graph": "GraphProto",
    "Node": "NodeProto",
    "Attribute": "AttributeProto",
    "Tensor": "TensorProto",
    "SparseTensor": "SparseTensorProto",
    "Entry": "StringStringEntryProto",
    "Function": "FunctionProto",
}


def theirs(name: str) -> Any:
    return getattr(onnx, EXCERPT[name]).DESCRIPTOR


def children(message: Any) -> Iterator[Any]:
    """The fields of a message's descriptor that are messages themselves."""
    return (field for field in message.fields if field.message_type is not None)


def holds_data(message: Any, seen: frozenset[str] = frozenset()) -> bool:
    """Whether a tensor or an operator can be anywhere inside `message`."""
    if message.name in ("TensorProto", "NodeProto"):
        return True
    if message.full_name in seen:
        return False
    return any(holds_data(field.message_type, seen | {message.full_name}) for field in children(message))


def test_every_message_of_the_excerpt_is_compared() -> None:
    assert set(model_file_pb2.DESCRIPTOR.message_types_by_name) == set(EXCERPT)


@pytest.mark.parametrize("name", EXCERPT)
def test_excerpt_has_onnx_field_numbers(name: str) -> None:
    for field in model_file_pb2.DESCRIPTOR.message_types_by_name[name].fields:
        original = theirs(name).fields_by_number[field.number]
        assert original.name == field.name
        assert original.is_repeated == field.is_repeated
        if field.message_type is not None:
            assert original.message_type.name == EXCERPT[field.message_type.name]


@pytest.mark.parametrize("name", EXCERPT)
def test_excerpt_leaves_out_no_place_for_data_or_operators(name: str) -> None:
    ours = model_file_pb2.DESCRIPTOR.message_types_by_name[name].fields_by_name
    needed = {field.name for field in children(theirs(name)) if holds_data(field.message_type)}
    assert needed <= set(ours)


def test_places_for_data_are_recognised() -> None:
    assert holds_data(onnx.ModelProto.DESCRIPTOR)
    assert holds_data(onnx.SparseTensorProto.DESCRIPTOR)
    assert not holds_data(onnx.ValueInfoProto.DESCRIPTOR)


# ---- names and digests


GOOD_NAMES = ["a", "0", "digits", "resnet-18_v1.5", "a..b", "a" * 64, "model.onnx"]
BAD_NAMES = [
    "",
    ".",
    "..",
    "../a",
    "a/b",
    "/etc/passwd",
    "a/",
    "a\\b",
    "c:x",
    ".hidden",
    "-flag",
    "_a",
    "A",
    "aB",
    "a b",
    " a",
    "a\n",
    "a\0",
    "ä",
    "a%2fb",
    "a" * 65,
]


@pytest.mark.parametrize("name", GOOD_NAMES)
def test_good_names(name: str) -> None:
    assert check_name("model", name) == name
    assert check_file_name(name) == name


@pytest.mark.parametrize("name", BAD_NAMES)
def test_bad_names(name: str) -> None:
    with pytest.raises(BundleError, match=re.escape(f"model {name!r} does not match")):
        check_name("model", name)
    with pytest.raises(BundleError, match=re.escape(f"file {name!r} is not a plain name")):
        check_file_name(name)


@given(st.text(max_size=70))
def test_a_name_that_passes_is_safe_in_a_path_and_a_url(name: str) -> None:
    try:
        check_file_name(name)
    except BundleError:
        return
    assert Path("/bundle", name).resolve().parent == Path("/bundle")
    assert re.fullmatch(r"[a-z0-9._-]{1,64}", name)


def test_digest() -> None:
    empty = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
    assert sha256(b"") == empty
    check_digest("f", b"", empty)
    for wrong in (empty.upper(), empty[:-1], "", sha256(b"x")):
        with pytest.raises(BundleError, match=f"^f: SHA-256 is {empty}, the manifest says {wrong}$"):
            check_digest("f", b"", wrong)
