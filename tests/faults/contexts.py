"""TLS as those have it who should not get in: too old, or without a look at what they are shown."""

import ssl
import warnings

from inference_core.certificate import Files

OLD = ssl.TLSVersion.TLSv1_1
_EVEN_WEAK = "ALL:@SECLEVEL=0"


def only(context: ssl.SSLContext, version: ssl.TLSVersion) -> ssl.SSLContext:
    """The same, which speaks nothing but this version, however old."""
    context.set_ciphers(_EVEN_WEAK)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        context.minimum_version = version
        context.maximum_version = version
    return context


def serving(files: Files) -> ssl.SSLContext:
    """A server's of HTTP/2 that shows the certificate of `files`, whatever it is good for."""
    assert files.certificate is not None
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(files.certificate, files.key)
    context.set_alpn_protocols(["h2"])
    return context


def careless() -> ssl.SSLContext:
    """A client's of HTTP/2, of any version, that believes whatever it is shown."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    context.set_alpn_protocols(["h2"])
    context.set_ciphers(_EVEN_WEAK)
    context.minimum_version = ssl.TLSVersion.MINIMUM_SUPPORTED
    return context
