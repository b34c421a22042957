"""Who calls over gRPC: what the certificate of the connection says, never what a message says of itself."""

from typing import Any

import grpc

from cloud_service.nodes import Nodes

_URIS = "peer_uri"  # gRPC's name for the URIs among the subject alternative names of the peer's certificate
_CERTIFICATE = "x509_pem_cert"
_ANYONE = Nodes()
Context = grpc.aio.ServicerContext[Any, Any]


def is_certified(context: Context) -> bool:
    """Whether the caller has shown a certificate."""
    return bool(context.auth_context().get(_CERTIFICATE))


def caller_of(context: Context, nodes: Nodes = _ANYONE) -> str:
    """The id of the edge node that calls: from the URI `spiffe://tandem/edge/<id>` of its certificate.

    Without a certificate, which is without TLS, it is the peer's host, without the port. Raises `Forbidden`
    for a certificate of no node, or of none that `nodes` admits.
    """
    properties = context.auth_context()
    if not properties.get(_CERTIFICATE):
        return host_of(context.peer())
    return nodes.admit([_text(uri) for uri in properties.get(_URIS, ())])


def host_of(peer: str) -> str:
    """The host in gRPC's name of a peer: `ipv4:10.0.0.7:51234` is `10.0.0.7`."""
    kind, _, address = peer.partition(":")
    if kind not in ("ipv4", "ipv6"):
        return peer
    host = address.replace("%5B", "[").replace("%5D", "]").rpartition(":")[0]
    return host.strip("[]")


def _text(value: object) -> str:
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)
