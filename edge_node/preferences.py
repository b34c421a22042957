"""How samples are to be answered: said by a request, or by the settings for a model."""

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

from edge_node.policy import Mode

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
