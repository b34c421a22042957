"""Credentials that age, and are renewed."""

import asyncio
import logging
import time
from datetime import timedelta
from pathlib import Path

import pytest

from inference_core.certificate import Credentials, Validity
from inference_core.renewal import Ageing, Renewal
from tests.certificates import Site

HOUR = 3600.0


def test_it_says_once_that_the_end_is_near_and_once_that_it_has_come() -> None:
    ageing = Ageing(Validity(begins=0.0, ends=100 * HOUR))
    said = [ageing.look(hour * HOUR) for hour in (10, 79, 81, 90, 101, 102)]
    assert said == ["", "", "ends in 19.0 hours", "", "ended 1.0 hours ago", ""]


def test_without_a_certificate_there_is_nothing_to_say() -> None:
    assert Ageing(None).look(1e12) == ""


def _soon() -> float:
    """The time in 59 minutes and a half."""
    return time.time() + 3570


def test_it_warns_of_the_end_and_takes_the_renewed_one(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    site, used = Site(tmp_path), list[Credentials]()
    files = site.edge("edge-1", lifetime=timedelta(hours=1))

    async def run() -> None:
        renewal = Renewal("the certificate", files, used.append, clock=_soon, interval_s=0.01)
        renewal.start()
        site.edge("edge-1", lifetime=timedelta(days=3))
        async with asyncio.timeout(5):
            while len(used) < 2:  # noqa: ASYNC110
                await asyncio.sleep(0.01)
        await renewal.close()

    with caplog.at_level(logging.WARNING):
        asyncio.run(run())
    assert used[0].key != used[1].key
    assert len([r for r in caplog.records if "edge-1.pem ends in 0.0 hours" in r.message]) == 1


def test_what_cannot_be_used_at_first_is_an_error(tmp_path: Path) -> None:
    site = Site(tmp_path)
    files = site.edge("edge-1")
    site.ca.write_text("nothing")
    with pytest.raises(ValueError, match=r"ca\.pem"):
        Renewal("the certificate", files, lambda _: None)
