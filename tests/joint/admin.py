"""What whoever operates a service does to it: by its management port, and by moving bundles."""

import http.client
import json
from pathlib import Path
from typing import Any

from tests.joint.services import Service


def operate(
    service: Service, method: str, path: str, body: object = None, headers: dict[str, str] | None = None
) -> tuple[int, Any]:
    """Status and document of one request to the management port."""
    connection = http.client.HTTPConnection("127.0.0.1", service.ports[2], timeout=30)
    try:
        content = None if body is None else json.dumps(body)
        connection.request(method, path, content, headers or {})
        response = connection.getresponse()
        return response.status, json.loads(response.read())
    finally:
        connection.close()


def reload(service: Service) -> tuple[int, Any]:
    """Ask for a reload and wait for what comes of it."""
    return operate(service, "POST", "/admin/reload")


def point(link: Path, folder: Path) -> Path:
    """Have the symbolic link `link` point to `folder`, without a moment in which it is not there."""
    new = link.with_name(f"{link.name}.new")
    new.symlink_to(folder)
    new.replace(link)
    return link
