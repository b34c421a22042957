"""The photo that is sent, and what the shipped model makes of it."""

from benchmarks.jpegs import decoding_ms, photo, serve
from inference_core.bundle import load_bundle


def test_a_generated_photo_is_a_jpeg_that_the_shipped_model_takes() -> None:
    content = photo(None)
    assert content[:3] == b"\xff\xd8\xff"
    served, label = serve(content)
    assert served.sample.shape == (1, 3, 32, 32)
    assert label in load_bundle(served.bundle).manifest.labels
    assert 0 < decoding_ms(content) < 100
