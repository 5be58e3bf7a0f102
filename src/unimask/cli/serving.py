"""`unimask serve`."""

import math
import os

from unimask.cli import output as show
from unimask.cli.options import serving, shared
from unimask.errors import ConfigError, needs_extra

TOKEN_VARIABLE = "UNIMASK_TOKEN"
LABEL_STUDIO_VARIABLE = "LABEL_STUDIO_TOKEN"


def serve(
    weights: serving.ServedWeights = None,
    host: serving.Host = "127.0.0.1",
    port: serving.Port = 8000,
    device: shared.Device = "auto",
    precision: shared.Precision = shared.PrecisionName.full,
    examples: serving.Examples = None,
    allow_host: serving.AllowedHosts = None,
    allow_origin: serving.AllowedOrigins = None,
    label_studio: serving.LabelStudioAddress = "",
    batch_size: serving.ServedBatch = 0,
    megabytes: serving.Megabytes = 32,
    megapixels: serving.Megapixels = 16.0,
    waiting: serving.Waiting = 32,
    seconds: serving.Seconds = 60.0,
) -> None:
    """Serve a web page that shows results, and an HTTP interface.

    Only this machine can connect, unless --host admits others; then a token is required: that in the
    environment variable UNIMASK_TOKEN, or a generated one, which is shown. Ctrl+C stops the server.

    Examples:
      unimask serve
      unimask serve --weights runs/first/best --examples my_pictures --port 9000
      unimask serve --weights runs/first/best --label-studio http://localhost:8080
      curl -F image=@photo.jpg -F task=instance http://127.0.0.1:8000/v1/segment
    """
    with needs_extra("serve", "unimask serve"):
        from unimask.serve.limits import Limits
        from unimask.serve.run import serve as run

    for name, value in {"megapixels": megapixels, "seconds": seconds}.items():
        if not math.isfinite(value):
            raise ConfigError(name, f"must be a number that is finite; got {value:g}")
    run(
        weights or ["nuclei"],
        host=host,
        port=port,
        device=device,
        precision=precision.value,
        token=os.environ.get(TOKEN_VARIABLE, ""),
        names=allow_host or (),
        origins=allow_origin or (),
        examples=examples,
        label_studio=label_studio,
        label_studio_token=os.environ.get(LABEL_STUDIO_VARIABLE, ""),
        batch_size=batch_size,
        limits=Limits(
            bytes=megabytes * 2**20, pixels=int(megapixels * 1e6), waiting=waiting, seconds=seconds
        ),
        ready=show.show_line,
    )
