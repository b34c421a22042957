"""The served models as the Open Inference Protocol describes them."""

from edge_node.model_slot import LoadedModel, ModelSlots
from inference_core.catalogue import Catalogue, Description
from inference_core.engine import TensorSpec

SERVER = "tandem-edge"


def create_catalogue(slots: ModelSlots, version: str, max_rows: int) -> Catalogue:
    """What the protocol tells of this node, whose own version is `version`, and of its models, of which one
    request may bring `max_rows` samples."""

    def describe(model: LoadedModel) -> Description:
        # An early exit has more outputs, which are nobody's business.
        output = model.manifest.output
        outputs = (TensorSpec(output.name, output.datatype, (-1, *output.shape)),)
        # Requests never wait for others: those that find themselves waiting are run together.
        return Description(
            model.name, model.manifest.version, (model.input,), outputs, model.statistics, max_rows, 0
        )

    return Catalogue(
        SERVER,
        version,
        find=lambda name, wanted: describe(slots.get(name, wanted)),
        every=lambda: [describe(model) for model in slots.all()],
        ready=lambda: slots.ready,
    )
