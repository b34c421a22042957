"""A simulated device: sends labelled images to a running edge node, and keeps what came back."""

import asyncio
import mimetypes
import ssl
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import httpx2

from inference_core.errors import InvalidInput
from toolchain.images import LabelledImage
from toolchain.tally import OK, Reply

ANSWER_S = 10.0
# Less than the 5 s after which the edge closes an idle connection, so that none closes under a request.
_IDLE_S = 2.0
_MAX_ERROR = 200  # characters of a refusal that are kept

Query = Mapping[str, str]
OnReply = Callable[[Reply], object]


class EdgeFailed(Exception):
    """The edge node cannot be reached, or does not answer as one."""


@dataclass(frozen=True)
class ServedModel:
    """What an edge node says of one of its models; the deadline is that of requests that name none."""

    name: str
    labels: frozenset[str]
    deadline_ms: int
    threshold: float


@dataclass(frozen=True)
class Access:
    """What an edge node asks of its devices: an API key, empty for none; and who may certify it: the
    authorities in a PEM file or, for None, those that this machine trusts."""

    key: str = ""
    authority: Path | None = None

    @property
    def headers(self) -> dict[str, str]:
        """What goes with each request."""
        return {"X-API-Key": self.key} if self.key else {}

    def context(self) -> ssl.SSLContext:
        """How HTTPS is spoken. Raises `InvalidInput` for a file that holds no certificates."""
        try:
            return ssl.create_default_context(cafile=self.authority)
        except OSError as error:  # ssl.SSLError is one
            raise InvalidInput(f"{self.authority}: holds no certificates of authorities: {error}") from error


OPEN = Access()


class Device:
    """Sends images to one model of the edge node at a URL, over connections that stay open.

    `async with` opens it and asks the node for the model. Raises `EdgeFailed` when there is no edge node,
    and `InvalidInput` when it does not serve the model, or several and none was named.
    """

    served: ServedModel

    def __init__(
        self,
        url: str,
        model: str | None = None,
        *,
        connections: int = 1,
        answer_s: float = ANSWER_S,
        access: Access = OPEN,
    ) -> None:
        """`connections` is how many requests can be open at a time, `answer_s` the seconds after which one
        counts as unanswered; `model` may be None for the only one."""
        self._url = url
        self._model = model
        self._answer_s = answer_s
        limits = httpx2.Limits(
            max_connections=connections, max_keepalive_connections=connections, keepalive_expiry=_IDLE_S
        )
        try:
            self._client = httpx2.AsyncClient(
                base_url=url,
                timeout=answer_s,
                trust_env=False,
                limits=limits,
                headers=access.headers,
                verify=access.context(),
            )
        except httpx2.InvalidURL as error:
            raise EdgeFailed(f"{url!r} is no address of an edge node: {error}") from error

    async def __aenter__(self) -> Self:
        try:
            self.served = await self._find_model()
        except BaseException:
            await self._client.aclose()
            raise
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._client.aclose()

    async def send(self, image: LabelledImage, query: Query, due_s: float | None = None) -> Reply:
        """Send one image. Never raises for what the edge or the network does: the reply says it.

        `query` are the parameters of the prediction; `due_s` is when it should have been sent, if not now.
        """
        sent_s = time.monotonic()
        content: Any = {}
        try:
            async with asyncio.timeout(self._answer_s):
                response = await self._client.post(
                    f"/v1/models/{self.served.name}/predict",
                    params=query,
                    content=image.data,
                    headers={"Content-Type": mimetypes.guess_type(image.name)[0] or ""},
                )
            status, content = response.status_code, response.json()
            error = "" if status == OK else f"{status}: {content['error']}"
        except (httpx2.TransportError, TimeoutError) as failure:
            status, error = 0, f"no answer: {type(failure).__name__}: {failure}".rstrip(": ")
        except (ValueError, LookupError, TypeError):
            status, error = 0, "the answer is not an edge node's"
        done_s = time.monotonic()
        times = (sent_s if due_s is None else due_s, sent_s, done_s)
        if error:
            return Reply(*times, len(image.data), status, error[:_MAX_ERROR])
        return self._parse(times, image, content)

    def _parse(self, times: tuple[float, float, float], image: LabelledImage, content: Any) -> Reply:
        try:
            edge = content["edge"]
            right = content["prediction"]["label"] == image.label
            return Reply(
                *times,
                len(image.data),
                OK,
                source=content["source"],
                reason=content["reason"],
                degraded=content["degraded"],
                right=right if image.label in self.served.labels else None,
                confidence=None if edge is None else float(edge["confidence"]),
                bytes_up=int(content["bytes_up"]),
            )
        except (ValueError, LookupError, TypeError):
            return Reply(*times, len(image.data), 0, "the answer is not an edge node's")

    async def _find_model(self) -> ServedModel:
        try:
            response = await self._client.get("/v1/models")
            models = {model["name"]: model for model in response.raise_for_status().json()["models"]}
            name = self._choose(list(models))
            return ServedModel(
                name,
                frozenset(models[name]["labels"]),
                int(models[name]["deadline_ms"]),
                float(models[name]["threshold"]),
            )
        except httpx2.HTTPError as error:
            raise EdgeFailed(f"no edge node at {self._url}: {error or type(error).__name__}") from error
        except (ValueError, LookupError, TypeError) as error:
            raise EdgeFailed(f"what answers at {self._url} is no edge node") from error

    def _choose(self, names: list[str]) -> str:
        if self._model in names:
            return self._model
        if self._model is None and len(names) == 1:
            return names[0]
        problem = "name the model" if self._model is None else f"model {self._model!r} is not served"
        raise InvalidInput(f"{problem}; the edge node at {self._url} serves {', '.join(names) or 'none'}")


async def play_all(
    device: Device, images: Iterable[LabelledImage], query: Query, connections: int, on_reply: OnReply
) -> None:
    """Send every image once, `connections` at a time, each as soon as the one before it is answered."""
    queue = iter(images)

    async def work(shared: Iterator[LabelledImage]) -> None:
        for image in shared:
            on_reply(await device.send(image, query))

    async with asyncio.TaskGroup() as group:
        for _ in range(connections):
            group.create_task(work(queue))


async def play_at_rate(
    device: Device,
    images: Iterable[LabelledImage],
    query: Query,
    rate: float,
    on_reply: OnReply,
    *,
    stop: asyncio.Event,
    max_open: int,
) -> None:
    """Send an image every `1 / rate` seconds by the clock, whether or not earlier ones were answered.

    At most `max_open` are open: beyond that an image waits, and the wait counts as part of its latency.
    Ends with the images or once `stop` is set; then those that are open are still waited for.
    """
    start_s = time.monotonic()
    free = asyncio.Semaphore(max_open)

    async def one(image: LabelledImage, due_s: float) -> None:
        try:
            on_reply(await device.send(image, query, due_s))
        finally:
            free.release()

    async with asyncio.TaskGroup() as group:
        for turn, image in enumerate(images):
            due_s = start_s + turn / rate
            await wait(stop, due_s - time.monotonic())
            await free.acquire()
            if stop.is_set():
                break
            group.create_task(one(image, due_s))


async def wait(stop: asyncio.Event, seconds: float) -> None:
    """Return after `seconds`, or as soon as `stop` is set."""
    try:
        async with asyncio.timeout(max(seconds, 0)):
            await stop.wait()
    except TimeoutError:
        pass
