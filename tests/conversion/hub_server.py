"""A stand-in of the Hugging Face hub's API: repositories in memory, as far as pushing and loading go."""

import base64
import hashlib
import json
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import uvicorn
from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, Response


class HubServer:
    """`repositories`: name -> path -> content; `commits` counts them; `token` is what may write."""

    def __init__(self) -> None:
        self.repositories: dict[str, dict[str, bytes]] = {}
        self.blobs: dict[str, bytes] = {}
        self.cards: list[str] = []  # that were checked
        self.commits = 0
        self.token = "hf_right"
        self.address = ""

    def app(self) -> FastAPI:
        """The addresses that `huggingface_hub` asks."""
        app = FastAPI()

        def refused(request: Request) -> Response | None:
            right = request.headers.get("authorization") == f"Bearer {self.token}"
            return None if right else JSONResponse({"error": "Invalid token"}, 401)

        @app.post("/api/repos/create")
        async def create(request: Request) -> Response:
            asked = await request.json()
            name = f"{asked['organization']}/{asked['name']}" if asked.get("organization") else asked["name"]
            if no := refused(request):
                return no
            self.repositories.setdefault(name, {})
            return JSONResponse({"url": f"{self.address}/{name}", "id": name})

        @app.post("/api/validate-yaml")
        async def validate(request: Request) -> Response:
            self.cards.append((await request.json())["content"])
            return JSONResponse({"errors": [], "warnings": []})

        @app.post("/api/models/{owner}/{name}/preupload/{revision}")
        async def preupload(owner: str, name: str, revision: str, request: Request) -> Response:
            files = (await request.json())["files"]
            modes = [
                {
                    "path": one["path"],
                    "uploadMode": "lfs" if one["path"].endswith(".safetensors") else "regular",
                    "shouldIgnore": False,
                }
                for one in files
            ]
            return refused(request) or JSONResponse({"files": modes})

        @app.post("/{owner}/{name}.git/info/lfs/objects/batch")
        async def batch(owner: str, name: str, request: Request) -> Response:
            objects = [
                {**one, "actions": {"upload": {"href": f"{self.address}/blobs/{one['oid']}"}}}
                for one in (await request.json())["objects"]
            ]
            return refused(request) or JSONResponse({"transfer": "basic", "objects": objects})

        @app.put("/blobs/{oid}")
        async def blob(oid: str, request: Request) -> Response:
            content = await request.body()
            assert hashlib.sha256(content).hexdigest() == oid
            self.blobs[oid] = content
            return Response()

        @app.post("/api/models/{owner}/{name}/commit/{revision}")
        async def commit(owner: str, name: str, revision: str, request: Request) -> Response:
            if no := refused(request):
                return no
            files = self.repositories[f"{owner}/{name}"]
            for line in (await request.body()).splitlines():
                one = json.loads(line)
                if one["key"] == "file":
                    files[one["value"]["path"]] = base64.b64decode(one["value"]["content"])
                elif one["key"] == "lfsFile":
                    files[one["value"]["path"]] = self.blobs[one["value"]["oid"]]
            self.commits += 1
            oid = f"{self.commits:040d}"
            return JSONResponse(
                {"success": True, "commitOid": oid, "commitUrl": f"{self.address}/{owner}/{name}"}
            )

        @app.get("/api/models/{owner}/{name}/revision/{revision}")
        def about(owner: str, name: str, revision: str) -> Response:
            files = self.repositories.get(f"{owner}/{name}")
            if files is None:
                return JSONResponse({"error": "Repository not found"}, 404)
            siblings = [{"rfilename": path} for path in files]
            sha = f"{self.commits:040d}"
            return JSONResponse({"id": f"{owner}/{name}", "sha": sha, "siblings": siblings, "private": False})

        @app.get("/api/models/{owner}/{name}/tree/{revision}")
        def tree(owner: str, name: str, revision: str) -> Response:
            files = self.repositories[f"{owner}/{name}"]
            return JSONResponse(
                [
                    {
                        "type": "file",
                        "path": path,
                        "size": len(content),
                        "oid": hashlib.sha1(content).hexdigest(),
                    }
                    for path, content in files.items()
                ]
            )

        @app.api_route("/{owner}/{name}/resolve/{revision}/{path:path}", methods=["GET", "HEAD"])
        def resolve(owner: str, name: str, revision: str, path: str) -> Response:
            content = self.repositories[f"{owner}/{name}"].get(path)
            if content is None:
                return JSONResponse({"error": "Entry not found"}, 404, {"X-Error-Code": "EntryNotFound"})
            headers = {
                "ETag": f'"{hashlib.sha256(content).hexdigest()}"',
                "X-Repo-Commit": f"{self.commits:040d}",
            }
            return Response(content, headers=headers)

        return app


@contextmanager
def hub_server() -> Iterator[HubServer]:
    """A server in a thread."""
    hub = HubServer()
    with socket.create_server(("127.0.0.1", 0)) as listening:
        hub.address = f"http://127.0.0.1:{listening.getsockname()[1]}"
        server = uvicorn.Server(uvicorn.Config(hub.app(), log_level="error"))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
        thread.start()
        try:
            yield hub
        finally:
            server.should_exit = True
            thread.join()
