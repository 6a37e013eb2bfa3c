"""The handler of handler.py as a ConnectionHandler, the older service whose methods take a stream of requests.

Handlers written for EMQX before 5.1 serve this one. The gateway finds out which service a server has, and calls it with
one request a stream, which keeps the order that long streams lose. Write a new handler like handler.py.
"""

import asyncio
import contextlib

import exproto_pb2 as pb
import exproto_pb2_grpc as rpc
from handler import Lines, serve


class StreamingLines(rpc.ConnectionHandlerServicer):
    """Hands each request of each stream to the unary handler."""

    def __init__(self, adapter):
        self.lines = Lines(adapter)

    async def OnSocketCreated(self, requests, context):
        return await each(requests, self.lines.OnSocketCreated, context)

    async def OnReceivedBytes(self, requests, context):
        return await each(requests, self.lines.OnReceivedBytes, context)

    async def OnReceivedMessages(self, requests, context):
        return await each(requests, self.lines.OnReceivedMessages, context)

    async def OnTimerTimeout(self, requests, context):
        return await each(requests, self.lines.OnTimerTimeout, context)

    async def OnSocketClosed(self, requests, context):
        return await each(requests, self.lines.OnSocketClosed, context)


async def each(requests, handle, context):
    async for request in requests:
        await handle(request, context)
    return pb.EmptySuccess()


def register(adapter, server):
    rpc.add_ConnectionHandlerServicer_to_server(StreamingLines(adapter), server)


if __name__ == "__main__":
    with contextlib.suppress(KeyboardInterrupt):
        asyncio.run(serve(register))
