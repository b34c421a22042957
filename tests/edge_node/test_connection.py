"""What a connection does in the moment in which its own timer has run out."""

import asyncio

import pytest

from edge_node.connection import Connection

pytestmark = pytest.mark.anyio


async def test_wanting_another_is_no_error_at_the_moment_at_which_the_wait_ends() -> None:
    connection = Connection(
        "127.0.0.1:1",
        connect_timeout_s=1.0,
        max_message_bytes=1 << 20,
        on_connection=id,
        on_change=lambda: None,
    )
    loop, raised = asyncio.get_running_loop(), list[Exception]()

    def renew() -> None:
        try:
            connection.renew()
        except Exception as error:  # noqa: BLE001 - what the test is about
            raised.append(error)

    async def wait() -> None:
        async with asyncio.timeout(None) as connection._waiting:
            connection._waiting.reschedule(loop.time())  # by `call_soon`
            loop.call_soon(renew)
            await asyncio.sleep(1)

    with pytest.raises(TimeoutError):
        await wait()
    await connection.close()
    assert raised == []
