"""`unimask serve`."""

import os
import secrets
import socket
from pathlib import Path
from typing import TYPE_CHECKING

from unimask.cli import options
from unimask.cli import output as show
from unimask.errors import ConfigError, DataError, WeightsError, needs_extra

if TYPE_CHECKING:
    from unimask.inference.segmenter import Segmenter

LOOPBACK = ("127.0.0.1", "localhost", "::1")
TOKEN_VARIABLE = "UNIMASK_TOKEN"


def serve(
    weights: options.ServedWeights = None,
    host: options.Host = "127.0.0.1",
    port: options.Port = 8000,
    device: options.Device = "auto",
    precision: options.Precision = options.PrecisionName.full,
    examples: options.Examples = None,
    allow_host: options.AllowedHosts = None,
    allow_origin: options.AllowedOrigins = None,
    batch_size: options.ServedBatch = 0,
    megabytes: options.Megabytes = 32,
    megapixels: options.Megapixels = 16.0,
    waiting: options.Waiting = 32,
    seconds: options.Seconds = 60.0,
) -> None:
    """Show a page to look at results in the browser, and answer requests over HTTP.

    Only this machine can reach it, unless --host says otherwise; then a token is needed: that of the
    environment variable UNIMASK_TOKEN, or one that is made up and shown. Ctrl+C ends it.

    Examples:
      unimask serve
      unimask serve --weights runs/first/best --examples my_pictures --port 9000
      curl -F picture=@photo.jpg -F task=instance http://127.0.0.1:8000/v1/segment
    """
    with needs_extra("serve", "unimask serve"):
        import python_multipart  # noqa: F401  # forms, for FastAPI
        import uvicorn
        from uvicorn.protocols.http.auto import AutoHTTPProtocol

        from unimask.serve.app import create_app
    from unimask.serve.connections import Connections
    from unimask.serve.gate import LOOPBACK_NAMES, Access
    from unimask.serve.limits import Limits

    limits = Limits(bytes=megabytes * 2**20, pixels=int(megapixels * 1e6), waiting=waiting, seconds=seconds)
    local = host in LOOPBACK
    token = os.environ.get(TOKEN_VARIABLE, "") or ("" if local else secrets.token_urlsafe(16))
    with _listen(host, port) as listening:
        models = _load_all(weights or ["nuclei"], device, precision.value)
        app = create_app(
            models,
            limits,
            Access(
                token=token,
                names=LOOPBACK_NAMES.union(map(str.lower, allow_host or []))
                if local or allow_host
                else frozenset(),
                origins=frozenset(origin.rstrip("/") for origin in allow_origin or []),
            ),
            batch_size=batch_size,
            examples=_examples(examples),
        )
        address = f"http://{'[' + host + ']' if ':' in host else host}:{listening.getsockname()[1]}/"
        show.show_line(f"unimask serves {', '.join(models)} on {address}{'#token=' + token if token else ''}")
        config = uvicorn.Config(
            app,
            http=Connections(limits).protocol(AutoHTTPProtocol),
            log_level="warning",
            access_log=False,
            server_header=False,
            lifespan="on",
        )
        uvicorn.Server(config).run(sockets=[listening])


def _listen(host: str, port: int) -> socket.socket:
    """Return a socket at the address, before any model is loaded; port 0 is any free one."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        listening = socket.socket(family, kind, protocol)
        try:
            listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listening.bind(address)
        except BaseException:
            listening.close()
            raise
    except (OSError, OverflowError) as error:
        reason = (error.strerror if isinstance(error, OSError) else None) or error
        raise ConfigError("port", f"{host}:{port} cannot be used ({reason}); try another --port") from None
    return listening


def _load_all(weights: list[str], device: str, precision: str) -> dict[str, "Segmenter"]:
    from unimask.inference.segmenter import load

    models: dict[str, Segmenter] = {}
    for one in weights:
        name = Path(one).name or one
        if name in models:  # runs/first/best and runs/second/best
            name = "_".join(Path(one).parts[-2:])
        if name in models or weights.count(one) > 1:
            raise WeightsError(one, "is given twice; serve each model once")
        models[name] = load(one, device=device, precision=precision)
    return models


def _examples(folder: Path | None) -> tuple[Path, ...]:
    """Return the images that the page offers: of the folder, or those that come with the package."""
    from unimask.serve.examples import examples_in, shipped_examples

    if folder is None:
        return shipped_examples()
    if not folder.is_dir():
        raise DataError(folder, "is no folder; name one with images after --examples")
    return examples_in(folder)
