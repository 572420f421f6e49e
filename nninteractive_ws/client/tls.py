"""The client's TLS: the certificates that it trusts."""

from pathlib import Path
import ssl

from nninteractive_ws.client.address import Address
from nninteractive_ws.errors import BadAddress, Untrusted


def ssl_context(address: Address, ca: str | Path | None) -> ssl.SSLContext | None:
    """Return the TLS context that verifies a server's certificate; None for ``ws://``.

    ``ca``: a PEM file of certificates to trust instead of the system's. Raises Untrusted if it cannot be used, and
    BadAddress if it was given for an address without TLS.
    """
    if not address.secure:
        if ca is not None:
            raise BadAddress(
                f"A file of trusted certificates was given, but the address {address} is not encrypted. Use wss:// in "
                "the address, or leave out the file."
            )
        return None
    try:
        context = ssl.create_default_context(cafile=ca)
    except OSError as e:  # ssl.SSLError is one
        raise Untrusted(f"The file of trusted certificates {ca} cannot be read as PEM. Details: {e}.") from e
    if ca is not None:
        # The user chose this file, so the server's own or an intermediate certificate in it is enough.
        context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
    return context
