"""What a service's `/metrics` page says."""

import math

from prometheus_client.parser import text_string_to_metric_families


class Samples:
    """Every sample of one scrape."""

    def __init__(self, page: str) -> None:
        self._samples = [s for family in text_string_to_metric_families(page) for s in family.samples]

    def total(self, name: str, **labels: str) -> float:
        """The sum of the samples called `name` that have these labels; 0 when there are none."""
        return sum(
            sample.value
            for sample in self._samples
            if sample.name == name and labels.items() <= sample.labels.items()
        )

    def by(self, name: str, *labels: str) -> dict[tuple[str, ...], int]:
        """The samples called `name` that are numbers other than zero, summed by the values of `labels`."""
        sums: dict[tuple[str, ...], int] = {}
        for sample in self._samples:
            if sample.name == name and sample.value and not math.isnan(sample.value):
                key = tuple(sample.labels[label] for label in labels)
                sums[key] = sums.get(key, 0) + int(sample.value)
        return sums
