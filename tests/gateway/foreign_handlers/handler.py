"""ExProto servers with the habits of published handlers, for devices that speak lines of text.

  login NAME   authenticates and subscribes to "dn/#"; answered "ok"
  crash        raises, as a handler with a bug does
  other lines  are sent back

What the client is published is sent to it, a line each. The habit is an argument:

  first-message   unary; reads only messages[0] of a call, as EMQX's own Python example does
  stream-first    the same, streaming
  stream-scope    streaming; the receive buffer is a variable of the callback, so it lives as long as the stream
  returns         ConnectionHandler; each callback reads one request and ends its stream
"""

import argparse
import sys
from concurrent import futures
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[3] / "examples/handlers/python"))

import exproto_pb2 as pb  # noqa: E402
import exproto_pb2_grpc as rpc  # noqa: E402
import grpc  # noqa: E402

adapter = None
buffers = {}


def line(conn, text):
    if text == b"crash":
        raise RuntimeError("a bug\nin two lines")
    if text.startswith(b"login "):
        client = pb.ClientInfo(proto_name="lines", proto_ver="1", clientid=text[6:].decode())
        answer = adapter.Authenticate(pb.AuthenticateRequest(conn=conn, clientinfo=client))
        assert answer.code == pb.SUCCESS, answer
        answer = adapter.Subscribe(pb.SubscribeRequest(conn=conn, topic="dn/#", qos=0))
        assert answer.code == pb.SUCCESS, answer
        text = b"ok"
    adapter.Send(pb.SendBytesRequest(conn=conn, bytes=text + b"\n"))


def take(conn, buffer):
    *lines, rest = buffer.split(b"\n")
    for text in lines:
        line(conn, text)
    return rest


def deliver_first(request):
    message = request.messages[0]
    adapter.Send(pb.SendBytesRequest(conn=request.conn, bytes=message.payload + b"\n"))


class FirstMessage(rpc.ConnectionUnaryHandlerServicer):
    def OnSocketCreated(self, request, context):
        buffers[request.conn] = b""
        return pb.EmptySuccess()

    def OnSocketClosed(self, request, context):
        buffers.pop(request.conn, None)
        return pb.EmptySuccess()

    def OnReceivedBytes(self, request, context):
        buffers[request.conn] = take(request.conn, buffers.get(request.conn, b"") + request.bytes)
        return pb.EmptySuccess()

    def OnTimerTimeout(self, request, context):
        return pb.EmptySuccess()

    def OnReceivedMessages(self, request, context):
        deliver_first(request)
        return pb.EmptySuccess()


class Streaming(rpc.ConnectionHandlerServicer):
    unary = FirstMessage()
    first_only = False

    def each(self, requests, handle):
        for request in requests:
            handle(request, None)
            if self.first_only:
                break
        return pb.EmptySuccess()

    def OnSocketCreated(self, requests, context):
        return self.each(requests, self.unary.OnSocketCreated)

    def OnSocketClosed(self, requests, context):
        return self.each(requests, self.unary.OnSocketClosed)

    def OnReceivedBytes(self, requests, context):
        return self.each(requests, self.unary.OnReceivedBytes)

    def OnTimerTimeout(self, requests, context):
        return self.each(requests, self.unary.OnTimerTimeout)

    def OnReceivedMessages(self, requests, context):
        return self.each(requests, self.unary.OnReceivedMessages)


class StreamScope(Streaming):
    def OnReceivedBytes(self, requests, context):
        buffer = b""
        for request in requests:
            buffer = take(request.conn, buffer + request.bytes)
        return pb.EmptySuccess()


class Returns(Streaming):
    first_only = True


def main():
    global adapter
    parser = argparse.ArgumentParser()
    parser.add_argument("habit")
    parser.add_argument("--adapter", required=True)
    args = parser.parse_args()
    adapter = rpc.ConnectionAdapterStub(grpc.insecure_channel(args.adapter))
    # A streaming method holds a thread for the life of its device.
    server = grpc.server(futures.ThreadPoolExecutor(max_workers=200))
    if args.habit == "first-message":
        rpc.add_ConnectionUnaryHandlerServicer_to_server(FirstMessage(), server)
    else:
        habits = {"stream-first": Streaming, "stream-scope": StreamScope, "returns": Returns}
        rpc.add_ConnectionHandlerServicer_to_server(habits[args.habit](), server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    print(port, flush=True)
    server.wait_for_termination()


main()
