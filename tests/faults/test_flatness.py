"""What counts as flat: noise and a warm-up do, whatever goes on growing does not."""

from dataclasses import replace

import pytest

from tests.faults.flatness import Vital, leaks

FLAT = Vital(100 << 20, 30, 10, 20, 400)


def test_noise_and_a_warm_up_are_no_leaks() -> None:
    warm = [replace(FLAT, resident=FLAT.resident - (30 - n) * (1 << 20), series=380 + n) for n in range(20)]
    noise = [
        replace(FLAT, resident=FLAT.resident + n % 3 * (1 << 20), descriptors=30 + n % 12) for n in range(80)
    ]
    assert leaks("edge", [*warm, *noise]) == []


@pytest.mark.parametrize(
    ("what", "step"),
    [("resident", 1 << 18), ("descriptors", 1), ("threads", 1), ("tasks", 1), ("series", 1)],
)
def test_what_goes_on_growing_is_one(what: str, step: int) -> None:
    growing = [replace(FLAT, **{what: getattr(FLAT, what) + n * step}) for n in range(60)]
    (leak,) = leaks("edge", growing)
    assert leak.startswith(f"edge: {what} from ")


def test_a_few_looks_say_nothing() -> None:
    assert leaks("edge", [FLAT] * 3) != []
