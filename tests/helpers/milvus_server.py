"""A server of Milvus's protocol on this machine: that of Milvus Lite, with a key and scripted faults."""

import base64
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc
from milvus_lite.adapter.grpc.servicer import MilvusServicer
from milvus_lite.db import MilvusLite
from pymilvus.grpc_gen import milvus_pb2_grpc


class MilvusServer(grpc.ServerInterceptor):
    """A server at `url`, inside a `with` block.

    `faults[method]` are the statuses of its first, second, ... call; None is an answer. `calls` has the method of each.
    """

    def __init__(self, folder: Path, *, key: str = "", faults=None, port: int = 0) -> None:
        self.folder, self.key, self.faults, self.port = folder, key, faults or {}, port
        self.calls: list[str] = []

    def __enter__(self):
        self.database = MilvusLite(str(self.folder))
        self.server = grpc.server(ThreadPoolExecutor(4), interceptors=[self], options=[("grpc.so_reuseport", 0)])
        milvus_pb2_grpc.add_MilvusServiceServicer_to_server(MilvusServicer(self.database), self.server)
        self.port = self.server.add_insecure_port(f"127.0.0.1:{self.port}")
        self.server.start()
        self.url = f"http://127.0.0.1:{self.port}"
        return self

    def __exit__(self, *_) -> None:
        self.server.stop(grace=0).wait()
        self.database.close()

    def intercept_service(self, continuation, details):
        method = details.method.rpartition("/")[2]
        self.calls.append(method)
        headers = dict(details.invocation_metadata)
        status = next(iter(self.faults.get(method, [])), None)
        self.faults[method] = self.faults.get(method, [])[1:]
        if self.key and headers.get("authorization") != base64.b64encode(self.key.encode()).decode():
            status = grpc.StatusCode.UNAUTHENTICATED
        if status is None:
            return continuation(details)
        message = f"{status.name.lower()} {base64.b64decode(headers.get('authorization', '')).decode()}"
        return grpc.unary_unary_rpc_method_handler(lambda request, context: context.abort(status, message))
