"""A stand-in of the Hugging Face hub's API: repositories in memory, as far as models and stores need it."""

import asyncio
import base64
import hashlib
import json

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, Response


class HubServer:
    """`repositories`: name -> path -> content; `commits` counts them; `token` is what may write.

    Names of data sets begin with `datasets/`, as in their addresses.
    """

    def __init__(self) -> None:
        self.repositories: dict[str, dict[str, bytes]] = {}
        self.blobs: dict[str, bytes] = {}
        self.cards: list[str] = []  # that were checked
        self.commits = 0
        self.committing: set[str] = set()  # repositories
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

        @app.post("/api/{kind}/{owner}/{name}/preupload/{revision}")
        async def preupload(kind: str, owner: str, name: str, revision: str, request: Request) -> Response:
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

        def apply(files: dict[str, bytes], key: str, value: dict[str, str]) -> None:
            if key == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif key == "lfsFile":
                files[value["path"]] = self.blobs[value["oid"]]
            elif key == "deletedFile":
                del files[value["path"]]

        @app.put("/blobs/{oid}")
        async def blob(oid: str, request: Request) -> Response:
            content = await request.body()
            assert hashlib.sha256(content).hexdigest() == oid
            self.blobs[oid] = content
            return Response()

        @app.post("/api/{kind}/{owner}/{name}/commit/{revision}")
        async def commit(kind: str, owner: str, name: str, revision: str, request: Request) -> Response:
            if no := refused(request):
                return no
            repository = named(kind, owner, name)
            lines = (await request.body()).splitlines()
            if repository in self.committing:
                return JSONResponse(
                    {"error": "A commit has happened since. Please refresh and try again."}, 412
                )
            self.committing.add(repository)
            await asyncio.sleep(0.005)  # in which others may come
            self.committing.remove(repository)
            for one in map(json.loads, lines):
                apply(self.repositories[repository], one["key"], one["value"])
            self.commits += 1
            oid = f"{self.commits:040d}"
            return JSONResponse(
                {"success": True, "commitOid": oid, "commitUrl": f"{self.address}/{owner}/{name}"}
            )

        @app.get("/api/{kind}/{owner}/{name}")
        @app.get("/api/{kind}/{owner}/{name}/revision/{revision}")
        def about(kind: str, owner: str, name: str, revision: str = "main") -> Response:
            files = self.repositories.get(named(kind, owner, name))
            if files is None:
                return JSONResponse({"error": "Repository not found"}, 404)
            siblings = [{"rfilename": path} for path in files]
            sha = f"{self.commits:040d}"
            return JSONResponse({"id": f"{owner}/{name}", "sha": sha, "siblings": siblings, "private": False})

        @app.get("/api/{kind}/{owner}/{name}/tree/{revision}")
        @app.get("/api/{kind}/{owner}/{name}/tree/{revision}/{folder:path}")
        def tree(
            kind: str, owner: str, name: str, revision: str, folder: str = "", recursive: bool = False
        ) -> Response:
            files, start = self.repositories[named(kind, owner, name)], f"{folder}/" if folder else ""
            below = [path for path in files if path.startswith(start)]
            if folder and not below:
                return JSONResponse({"error": "Entry not found"}, 404, {"X-Error-Code": "EntryNotFound"})
            if not recursive:
                below = sorted({start + path[len(start) :].partition("/")[0] for path in below})
            return JSONResponse([entry(files, path) for path in below])

        @app.api_route("/{owner}/{name}/resolve/{revision}/{path:path}", methods=["GET", "HEAD"])
        @app.api_route("/{kind}/{owner}/{name}/resolve/{revision}/{path:path}", methods=["GET", "HEAD"])
        def resolve(
            owner: str, name: str, revision: str, path: str, request: Request, kind: str = "models"
        ) -> Response:
            content = self.repositories[named(kind, owner, name)].get(path)
            if content is None:
                return JSONResponse({"error": "Entry not found"}, 404, {"X-Error-Code": "EntryNotFound"})
            headers = {
                "ETag": f'"{hashlib.sha256(content).hexdigest()}"',
                "X-Repo-Commit": f"{self.commits:040d}",
            }
            if asked := request.headers.get("range"):
                first, last = asked.removeprefix("bytes=").split("-")
                return Response(content[int(first) : int(last) + 1], 206, headers)
            return Response(content, headers=headers)

        return app


def named(kind: str, owner: str, name: str) -> str:
    """The key of a repository."""
    return f"{owner}/{name}" if kind == "models" else f"{kind}/{owner}/{name}"


def entry(files: dict[str, bytes], path: str) -> dict[str, object]:
    """What is listed of a file or a folder."""
    content = files.get(path)
    if content is None:
        return {"type": "directory", "path": path, "oid": "0" * 40, "size": 0}
    return {"type": "file", "path": path, "size": len(content), "oid": hashlib.sha1(content).hexdigest()}
