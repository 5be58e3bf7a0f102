"""A stand-in of Google's Cloud Storage: one bucket in memory, as far as gcsfs asks its JSON API."""

import hashlib
import json
from base64 import b64encode
from typing import Any

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, Response

OBJECT = "/storage/v1/b/{bucket}/o/{key:path}"


class GoogleServer:
    """`objects`: key -> content."""

    def __init__(self) -> None:
        self.objects: dict[str, bytes] = {}
        self.address = ""

    def about(self, bucket: str, key: str) -> dict[str, Any]:
        """What is said of an object."""
        content = self.objects[key]
        digest = b64encode(hashlib.md5(content).digest()).decode()
        return {"bucket": bucket, "name": key, "size": str(len(content)), "md5Hash": digest}

    def app(self) -> FastAPI:
        """The addresses that gcsfs asks."""
        app = FastAPI()
        missing = {"error": {"code": 404, "message": "No such object"}}

        @app.get("/storage/v1/b/{bucket}/o")
        def listing(bucket: str, prefix: str = "", delimiter: str = "") -> Response:
            keys = sorted(key for key in self.objects if key.startswith(prefix))
            below = {key: key[len(prefix) :].partition(delimiter)[1] if delimiter else "" for key in keys}
            folders = {
                prefix + key[len(prefix) :].partition(delimiter)[0] + delimiter for key in keys if below[key]
            }
            items = [self.about(bucket, key) for key in keys if not below[key]]
            return JSONResponse({"items": items, "prefixes": sorted(folders)})

        @app.get(OBJECT)
        def describe(bucket: str, key: str) -> Response:
            return (
                JSONResponse(self.about(bucket, key)) if key in self.objects else JSONResponse(missing, 404)
            )

        @app.delete(OBJECT)
        def delete(bucket: str, key: str) -> Response:
            return JSONResponse(missing, 404) if self.objects.pop(key, None) is None else Response(None, 204)

        @app.get("/download" + OBJECT)
        def download(bucket: str, key: str, request: Request) -> Response:
            if key not in self.objects:
                return JSONResponse(missing, 404)
            content, asked = self.objects[key], request.headers.get("range")
            if asked is None:
                return Response(content)
            first, last = asked.removeprefix("bytes=").split("-")
            return Response(content[int(first) : int(last or len(content)) + 1], 206)

        @app.post("/upload/storage/v1/b/{bucket}/o")
        async def upload(bucket: str, request: Request) -> Response:
            assert request.query_params["uploadType"] == "multipart"
            mark = request.headers["content-type"].partition('boundary="')[2].rstrip('"').encode()
            _, about, content = (await request.body()).split(b"--" + mark, 2)
            key = json.loads(about.partition(b"\n\n")[2])["name"]
            self.objects[key] = content.partition(b"\n\n")[2].removesuffix(b"\n--" + mark + b"--")
            return JSONResponse(self.about(bucket, key))

        return app
