"""The served models as the Open Inference Protocol describes them."""

from cloud_service.models import Models, Served
from cloud_service.settings import Settings
from inference_core.catalogue import Catalogue, Description

SERVER = "tandem-cloud"


def create_catalogue(models: Models, settings: Settings, version: str) -> Catalogue:
    """What the protocol tells of this service, whose own version is `version`, and of its models."""

    def describe(served: Served) -> Description:
        outputs = served.engine.outputs
        common = (served.name, served.version, served.inputs, outputs, served.statistics)
        if served.decoder is not None:  # images have one axis, which is the batch; packed is one sample
            return Description(*common, max_batch_size=0)
        window_us = round(settings.batch_window_ms * 1000)
        return Description(*common, min(settings.max_batch_size, settings.max_queue), window_us)

    return Catalogue(
        SERVER,
        version,
        find=lambda name, wanted: describe(models.get(name, wanted)),
        every=lambda: [describe(served) for served in models.all()],
        ready=lambda: models.ready,
    )
