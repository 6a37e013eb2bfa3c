"""A gRPC handler in Python: devices that speak lines of text.

../README.md shows the protocol and the gateway's configuration. The modules exproto_pb2 and exproto_pb2_grpc are
generated from proto/exproto.proto, here by ../setup.
"""

import argparse
import asyncio
import contextlib
from dataclasses import dataclass
from urllib.parse import urlsplit

import exproto_pb2 as pb
import exproto_pb2_grpc as rpc
import grpc

# In bytes: without a bound, a device that never ends its line would fill our memory.
LINE_MAX = 1024

# In seconds; the gateway ends a device that is silent for 1.5 times as long.
KEEPALIVE_S = 60


class Refused(Exception):
    """The gateway, or this handler, does not do what the device asked for."""


@dataclass
class Connection:
    """What has to be remembered of a device from one call to the next."""

    unfinished: bytes = b""
    id: str | None = None

    def take_lines(self, received):
        """Adds bytes, cut anywhere, and takes out the lines they complete; also one that is already too long."""
        *lines, self.unfinished = (self.unfinished + received).split(b"\n")
        if len(self.unfinished) > LINE_MAX:
            lines.append(self.unfinished)
            self.unfinished = b""
        return lines


class Lines(rpc.ConnectionUnaryHandlerServicer):
    """The gateway waits for each answer before it calls for a connection again, so nothing here can overtake."""

    def __init__(self, adapter):
        self.adapter = adapter
        self.connections = {}

    async def OnSocketCreated(self, request, context):
        self.connections[request.conn] = Connection()
        return pb.EmptySuccess()

    async def OnReceivedBytes(self, request, context):
        connection = self.connections.get(request.conn)
        if connection is None:
            # This process is younger than the connection: login and half a line are forgotten.
            # Let the device start over.
            await self.adapter.Close(pb.CloseSocketRequest(conn=request.conn))
            return pb.EmptySuccess()
        for line in connection.take_lines(request.bytes):
            if len(line) > LINE_MAX:
                await self.send(request.conn, f"refused: a line has at most {LINE_MAX} bytes\n".encode())
                await self.adapter.Close(pb.CloseSocketRequest(conn=request.conn))
                break
            try:
                await self.on_line(request.conn, connection, line.removesuffix(b"\r"))
                await self.send(request.conn, b"ok\n")
            except Refused as refused:
                await self.send(request.conn, f"refused: {refused}\n".encode())
        return pb.EmptySuccess()

    async def OnReceivedMessages(self, request, context):
        for message in request.messages:
            await self.send(request.conn, message.payload + b"\n")
        return pb.EmptySuccess()

    async def OnTimerTimeout(self, request, context):
        return pb.EmptySuccess()

    async def OnSocketClosed(self, request, context):
        self.connections.pop(request.conn, None)
        return pb.EmptySuccess()

    async def on_line(self, conn, connection, line):
        match line.decode(errors="replace").split():
            case ["login", *words]:
                await self.login(conn, connection, *(words + ["", ""])[:2])
            case _ if connection.id:
                topic = f"{connection.id}/up"
                await done(self.adapter.Publish(pb.PublishRequest(conn=conn, topic=topic, qos=1, payload=line)))
            case _:
                raise Refused("expected login <id> [<password>]")

    async def login(self, conn, connection, id, password):
        client = pb.ClientInfo(proto_name="lines", proto_ver="1", clientid=id, username=id)
        await done(self.adapter.Authenticate(pb.AuthenticateRequest(conn=conn, clientinfo=client, password=password)))
        connection.id = id
        await done(self.adapter.StartTimer(pb.TimerRequest(conn=conn, type=pb.KEEPALIVE, interval=KEEPALIVE_S)))
        await done(self.adapter.Subscribe(pb.SubscribeRequest(conn=conn, topic=f"{id}/down", qos=1)))

    async def send(self, conn, data):
        # The code is ignored: if the device has disconnected, OnSocketClosed will follow.
        await self.adapter.Send(pb.SendBytesRequest(conn=conn, bytes=data))


async def done(call):
    """Awaits a call of the adapter; what a refusal says is a sentence for people."""
    reply = await call
    if reply.code != pb.SUCCESS:
        raise Refused(reply.message)


def address(url):
    """The address in a URL; grpcio wants it without the scheme."""
    parts = urlsplit(url)
    if parts.scheme != "http" or not parts.port:
        raise argparse.ArgumentTypeError(f"expected http://HOST:PORT, found {url!r}")
    return parts.netloc


async def serve(register):
    """Serves what register(adapter, server) adds to the server, until the process is ended."""
    arguments = argparse.ArgumentParser()
    arguments.add_argument(
        "--listen", default="127.0.0.1:9001", help="where the gateway calls us; port 0 takes a free one"
    )
    arguments.add_argument(
        "--adapter", default="http://127.0.0.1:9100", type=address, help="where we call the gateway"
    )
    arguments = arguments.parse_args()

    # Two processes on one port would each get some of a connection's calls: let the second fail instead.
    server = grpc.aio.server(options=[("grpc.so_reuseport", 0)])
    # Connects at the first call: handler and gateway may start in any order, and either may be restarted.
    async with grpc.aio.insecure_channel(arguments.adapter) as channel:
        register(rpc.ConnectionAdapterStub(channel), server)
        port = server.add_insecure_port(arguments.listen)
        await server.start()
        print(f"listening on {arguments.listen.rpartition(':')[0]}:{port}", flush=True)
        try:
            await server.wait_for_termination()
        finally:
            await server.stop(grace=None)


def register(adapter, server):
    rpc.add_ConnectionUnaryHandlerServicer_to_server(Lines(adapter), server)


if __name__ == "__main__":
    with contextlib.suppress(KeyboardInterrupt):
        asyncio.run(serve(register))
