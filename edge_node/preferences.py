"""How samples are to be answered: said by a request, or by the settings for a model."""

from enum import StrEnum
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

from edge_node.policy import Mode
from inference_core.priority import Priority

MAX_DEADLINE_MS = 60_000
Milliseconds = Annotated[int, Field(ge=1, le=MAX_DEADLINE_MS)]


class Preferences(BaseModel):
    """What one request, or one model's settings, have to say.

    None leaves it open: the request's word goes before the model's settings, those before the service's.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    mode: Annotated[Mode | None, Field(description="who may answer: edge, cloud, cascade, split or auto")] = (
        None
    )
    cut: Annotated[
        Annotated[str, Field(min_length=1)] | None,
        Field(description="where mode 'split' cuts; if not given, at the early exit, else at the first cut"),
    ] = None
    deadline_ms: Annotated[Milliseconds | None, Field(description="milliseconds until the answer is due")] = (
        None
    )
    threshold: Annotated[
        Annotated[float, Field(ge=0, le=1)] | None,
        Field(
            description="what `edge.confidence` must reach for the edge to be trusted: by the bundle's scorer"
        ),
    ] = None
    priority: Annotated[
        Priority | None,
        Field(description="who goes first where not all can: critical, normal (if not given) or background"),
    ] = None


class Wishes(Preferences):
    """What one request may ask for, besides how it is answered."""

    keep: Annotated[
        bool,
        Field(
            description="keep the sample for the cloud to learn from, and answer when it is on disk; "
            "`kept` is then its key"
        ),
    ] = False


class Upload(StrEnum):
    """Which samples of a model are kept in the outbox and forwarded."""

    LEARNING = "learning"
    NEVER = "never"


class ModelPreferences(Preferences):
    """What the settings have to say of one model, which no request can."""

    upload: Annotated[
        Upload, Field(description="which samples go to the outbox: learning (those worth it) or never")
    ] = Upload.LEARNING
    change_threshold: Annotated[
        Annotated[float, Field(ge=0)] | None,
        Field(
            description="how far any value of a tensor must be from the last kept one for it to be kept, too"
        ),
    ] = None
