from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class PutSampleRequest(_message.Message):
    __slots__ = ("key", "node", "model", "version", "bundle", "reason", "kept_at", "edge", "image", "tensor", "features")
    KEY_FIELD_NUMBER: _ClassVar[int]
    NODE_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    BUNDLE_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    KEPT_AT_FIELD_NUMBER: _ClassVar[int]
    EDGE_FIELD_NUMBER: _ClassVar[int]
    IMAGE_FIELD_NUMBER: _ClassVar[int]
    TENSOR_FIELD_NUMBER: _ClassVar[int]
    FEATURES_FIELD_NUMBER: _ClassVar[int]
    key: str
    node: str
    model: str
    version: str
    bundle: str
    reason: str
    kept_at: float
    edge: EdgeAnswer
    image: bytes
    tensor: Tensor
    features: Features
    def __init__(self, key: _Optional[str] = ..., node: _Optional[str] = ..., model: _Optional[str] = ..., version: _Optional[str] = ..., bundle: _Optional[str] = ..., reason: _Optional[str] = ..., kept_at: _Optional[float] = ..., edge: _Optional[_Union[EdgeAnswer, _Mapping]] = ..., image: _Optional[bytes] = ..., tensor: _Optional[_Union[Tensor, _Mapping]] = ..., features: _Optional[_Union[Features, _Mapping]] = ...) -> None: ...

class EdgeAnswer(_message.Message):
    __slots__ = ("index", "label", "confidence", "threshold")
    INDEX_FIELD_NUMBER: _ClassVar[int]
    LABEL_FIELD_NUMBER: _ClassVar[int]
    CONFIDENCE_FIELD_NUMBER: _ClassVar[int]
    THRESHOLD_FIELD_NUMBER: _ClassVar[int]
    index: int
    label: str
    confidence: float
    threshold: float
    def __init__(self, index: _Optional[int] = ..., label: _Optional[str] = ..., confidence: _Optional[float] = ..., threshold: _Optional[float] = ...) -> None: ...

class Tensor(_message.Message):
    __slots__ = ("name", "datatype", "shape", "data")
    NAME_FIELD_NUMBER: _ClassVar[int]
    DATATYPE_FIELD_NUMBER: _ClassVar[int]
    SHAPE_FIELD_NUMBER: _ClassVar[int]
    DATA_FIELD_NUMBER: _ClassVar[int]
    name: str
    datatype: str
    shape: _containers.RepeatedScalarFieldContainer[int]
    data: bytes
    def __init__(self, name: _Optional[str] = ..., datatype: _Optional[str] = ..., shape: _Optional[_Iterable[int]] = ..., data: _Optional[bytes] = ...) -> None: ...

class Features(_message.Message):
    __slots__ = ("cut", "tensors")
    CUT_FIELD_NUMBER: _ClassVar[int]
    TENSORS_FIELD_NUMBER: _ClassVar[int]
    cut: str
    tensors: _containers.RepeatedCompositeFieldContainer[Tensor]
    def __init__(self, cut: _Optional[str] = ..., tensors: _Optional[_Iterable[_Union[Tensor, _Mapping]]] = ...) -> None: ...

class PutSampleResponse(_message.Message):
    __slots__ = ("index", "label", "known")
    INDEX_FIELD_NUMBER: _ClassVar[int]
    LABEL_FIELD_NUMBER: _ClassVar[int]
    KNOWN_FIELD_NUMBER: _ClassVar[int]
    index: int
    label: str
    known: bool
    def __init__(self, index: _Optional[int] = ..., label: _Optional[str] = ..., known: _Optional[bool] = ...) -> None: ...
