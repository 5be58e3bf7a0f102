"""`unimask serve`: an address, models, and a server that answers until it is stopped."""

import secrets
import socket
from collections.abc import Callable, Sequence
from pathlib import Path
from urllib.parse import urlsplit

import python_multipart  # noqa: F401  # forms, for FastAPI
import uvicorn
from uvicorn.protocols.http.auto import AutoHTTPProtocol

from unimask.checkpoints.images import resolve_weights
from unimask.errors import ConfigError, DataError, WeightsError
from unimask.inference.loading import load
from unimask.inference.segmenter import Segmenter
from unimask.serve.app import create_app
from unimask.serve.connections import Connections
from unimask.serve.examples import examples_in, shipped_examples
from unimask.serve.label_studio import LabelStudio
from unimask.serve.limits import Limits
from unimask.serve.middleware import LOOPBACK_NAMES, Access

LOOPBACK = ("127.0.0.1", "localhost", "::1")
REPORT_NAME = "report.html"  # of a run folder
BACKLOG = 2048  # connections that wait to be taken


def serve(
    weights: Sequence[str],
    *,
    host: str = "127.0.0.1",
    port: int = 8000,
    device: str = "auto",
    precision: str = "32-true",
    token: str = "",
    names: Sequence[str] = (),
    origins: Sequence[str] = (),
    examples: Path | None = None,
    label_studio: str = "",
    label_studio_token: str = "",
    batch_size: int = 0,
    limits: Limits,
    ready: Callable[[str], object] = lambda sentence: None,
) -> None:
    """Answer requests until the process is told to end; `ready` is called with a sentence with the address.

    An address beyond this machine needs a `token`; without one a random one is made. `names` are the host
    names of the server beside localhost; `origins` are pages of other sites that may ask. `examples` is
    a folder of images that the page offers, by default those of the package. `label_studio` is the address of
    one that this is a backend of, and `label_studio_token` an access token of it.

    Raises:
        ConfigError: an address cannot be used, or the device or precision does not exist.
        WeightsError: a model cannot be loaded, or is given twice.
        DataError: `examples` is no folder.
    """
    local = host in LOOPBACK
    token = token or ("" if local else secrets.token_urlsafe(16))
    known = LOOPBACK_NAMES.union(map(str.lower, names)) if local or names else frozenset[str]()
    with _listen(host, port) as listening:
        models = _load_all(weights, device, precision)
        app = create_app(
            models,
            limits,
            Access(token=token, names=known, origins=frozenset(origin.rstrip("/") for origin in origins)),
            batch_size=batch_size,
            examples=_examples(examples),
            reports=reports_of(dict(zip(models, weights, strict=True))),
            label_studio=_label_studio(label_studio, label_studio_token),
        )
        address = f"http://{'[' + host + ']' if ':' in host else host}:{listening.getsockname()[1]}/"
        ready(f"unimask serves {', '.join(models)} on {address}{'#token=' + token if token else ''}")
        config = uvicorn.Config(
            app,
            http=Connections(limits).protocol(AutoHTTPProtocol),
            log_level="warning",
            access_log=False,
            server_header=False,
            lifespan="on",
        )
        uvicorn.Server(config).run(sockets=[listening])


def reports_of(weights: dict[str, str]) -> dict[str, Path]:
    """Return where the report of each model's run lies, or would lie: beside `best/` and `model/`."""
    folders = {name: resolve_weights(one) for name, one in weights.items() if Path(one).is_dir()}
    return {name: folder.parent / REPORT_NAME for name, folder in folders.items()}


def _listen(host: str, port: int) -> socket.socket:
    """Return a socket at the address, before any model is loaded; port 0 is any free one."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        listening = socket.socket(family, kind, protocol)
        try:
            listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listening.bind(address)
            listening.listen(BACKLOG)  # from here on no other server gets the address
        except BaseException:
            listening.close()
            raise
    except (OSError, OverflowError, ValueError) as error:  # also a name that can be no host's
        reason = (error.strerror if isinstance(error, OSError) else None) or error
        raise ConfigError("port", f"{host}:{port} cannot be used ({reason}); try another --port") from None
    return listening


def _load_all(weights: Sequence[str], device: str, precision: str) -> dict[str, Segmenter]:
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
    if folder is None:
        return shipped_examples()
    if not folder.is_dir():
        raise DataError(folder, "is no folder; name one with images after --examples")
    return examples_in(folder)


def _label_studio(address: str, token: str) -> LabelStudio | None:
    if not address:
        return None
    try:
        parts = urlsplit(address)
        known = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0
    except ValueError:
        known = False
    if not known:
        raise ConfigError(
            "--label-studio", f"must be an address such as http://localhost:8080; got {address!r}"
        )
    return LabelStudio(address=address, token=token)
