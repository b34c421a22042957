"""Where a service listens: by IPv4 or IPv6, whichever its host is an address of.

`0.0.0.0` is every IPv4 address of the machine, `::` every address of either kind.
"""

import socket

import grpc

_EVERY = "::"


def family_of(host: str) -> socket.AddressFamily:
    """The family of a host that is an address; IPv4 for a name."""
    return socket.AF_INET6 if ":" in host else socket.AF_INET


def http_socket(host: str, port: int) -> socket.socket:
    """A listening socket; port 0 picks a free one. Raises `OSError` for a taken port."""
    family, both = family_of(host), host == _EVERY and socket.has_dualstack_ipv6()
    return socket.create_server((host, port), family=family, dualstack_ipv6=both)


def add_grpc_port(
    server: grpc.aio.Server, host: str, port: int, credentials: grpc.ServerCredentials | None
) -> int:
    """Have `server` listen there, in the clear without `credentials`; the port, which 0 leaves to be picked.

    Raises `RuntimeError` for a taken port.
    """
    address = f"[{host}]:{port}" if family_of(host) is socket.AF_INET6 else f"{host}:{port}"
    if credentials is None:
        return server.add_insecure_port(address)
    return server.add_secure_port(address, credentials)
