// ExProto servers with the habits of published handlers on grpc-go, for devices that speak lines of text as those of
// handler.py do. The habit is an argument:
//
//	first-message   unary; reads only Messages[0] of a call
//	iterates        unary; reads every message of a call
//	stream-first    streaming; reads only Messages[0] of a request
//	stream-scope    streaming; the receive buffer is a variable of the method, so it lives as long as the stream
//	returns         streaming; each method reads one request and returns nil, so it answers with no message
//	answers         streaming; each method reads one request and answers it
//
// A line "crash" is an error of the handler, which ends its stream.
package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log"
	"net"
	"os"
	"sync"

	"exproto"

	"google.golang.org/grpc"
)

var adapter exproto.ConnectionAdapterClient

func check(answer *exproto.CodeResponse, err error) error {
	if err == nil && answer.Code != exproto.ResultCode_SUCCESS {
		err = errors.New(answer.String())
	}
	return err
}

func send(conn string, line []byte) error {
	bytes := append(append([]byte{}, line...), '\n')
	return check(adapter.Send(context.Background(), &exproto.SendBytesRequest{Conn: conn, Bytes: bytes}))
}

func line(conn string, text []byte) error {
	if string(text) == "crash" {
		return errors.New("a bug\nin two lines")
	}
	if name := bytes.TrimPrefix(text, []byte("login ")); len(name) < len(text) {
		client := &exproto.ClientInfo{ProtoName: "lines", ProtoVer: "1", Clientid: string(name)}
		login := &exproto.AuthenticateRequest{Conn: conn, Clientinfo: client}
		if err := check(adapter.Authenticate(context.Background(), login)); err != nil {
			return err
		}
		subscribe := &exproto.SubscribeRequest{Conn: conn, Topic: "dn/#"}
		if err := check(adapter.Subscribe(context.Background(), subscribe)); err != nil {
			return err
		}
		text = []byte("ok")
	}
	return send(conn, text)
}

// Takes the whole lines off a buffer; returns the rest.
func take(conn string, buffer []byte) ([]byte, error) {
	for {
		text, rest, found := bytes.Cut(buffer, []byte("\n"))
		if !found {
			return buffer, nil
		}
		if err := line(conn, text); err != nil {
			return nil, err
		}
		buffer = rest
	}
}

func deliver(conn string, messages []*exproto.Message) error {
	for _, message := range messages {
		if err := send(conn, message.Payload); err != nil {
			return err
		}
	}
	return nil
}

// The receive buffers of handlers that keep them by connection.
var buffers = struct {
	sync.Mutex
	of map[string][]byte
}{of: map[string][]byte{}}

func received(request *exproto.ReceivedBytesRequest) error {
	buffers.Lock()
	buffer := append(buffers.of[request.Conn], request.Bytes...)
	buffers.Unlock()
	// The events of one connection come one at a time.
	rest, err := take(request.Conn, buffer)
	buffers.Lock()
	buffers.of[request.Conn] = rest
	buffers.Unlock()
	return err
}

func closed(conn string) {
	buffers.Lock()
	delete(buffers.of, conn)
	buffers.Unlock()
}

type unary struct{ iterates bool }

func (unary) OnSocketCreated(context.Context, *exproto.SocketCreatedRequest) (*exproto.EmptySuccess, error) {
	return &exproto.EmptySuccess{}, nil
}

func (unary) OnSocketClosed(_ context.Context, request *exproto.SocketClosedRequest) (*exproto.EmptySuccess, error) {
	closed(request.Conn)
	return &exproto.EmptySuccess{}, nil
}

func (unary) OnReceivedBytes(_ context.Context, request *exproto.ReceivedBytesRequest) (*exproto.EmptySuccess, error) {
	return &exproto.EmptySuccess{}, received(request)
}

func (unary) OnTimerTimeout(context.Context, *exproto.TimerTimeoutRequest) (*exproto.EmptySuccess, error) {
	return &exproto.EmptySuccess{}, nil
}

func (u unary) OnReceivedMessages(_ context.Context, request *exproto.ReceivedMessagesRequest) (*exproto.EmptySuccess, error) {
	messages := request.Messages
	if !u.iterates {
		messages = messages[:1]
	}
	return &exproto.EmptySuccess{}, deliver(request.Conn, messages)
}

type streaming struct{ streamScope, once, answers bool }

// Handles the requests of a stream: all of them, or the first.
func (s streaming) each(stream grpc.ServerStream, next func() error) error {
	for {
		err := next()
		if errors.Is(err, io.EOF) {
			return stream.SendMsg(&exproto.EmptySuccess{})
		}
		if err != nil {
			return err
		}
		if s.answers {
			return stream.SendMsg(&exproto.EmptySuccess{})
		}
		if s.once {
			return nil
		}
	}
}

func (s streaming) OnSocketCreated(stream exproto.ConnectionHandler_OnSocketCreatedServer) error {
	return s.each(stream, func() error {
		_, err := stream.Recv()
		return err
	})
}

func (s streaming) OnSocketClosed(stream exproto.ConnectionHandler_OnSocketClosedServer) error {
	return s.each(stream, func() error {
		request, err := stream.Recv()
		if err == nil {
			closed(request.Conn)
		}
		return err
	})
}

func (s streaming) OnReceivedBytes(stream exproto.ConnectionHandler_OnReceivedBytesServer) error {
	var buffer []byte
	return s.each(stream, func() error {
		request, err := stream.Recv()
		if err != nil {
			return err
		}
		if !s.streamScope {
			return received(request)
		}
		buffer, err = take(request.Conn, append(buffer, request.Bytes...))
		return err
	})
}

func (s streaming) OnTimerTimeout(stream exproto.ConnectionHandler_OnTimerTimeoutServer) error {
	return s.each(stream, func() error {
		_, err := stream.Recv()
		return err
	})
}

func (s streaming) OnReceivedMessages(stream exproto.ConnectionHandler_OnReceivedMessagesServer) error {
	return s.each(stream, func() error {
		request, err := stream.Recv()
		if err != nil {
			return err
		}
		return deliver(request.Conn, request.Messages[:1])
	})
}

func main() {
	if len(os.Args) != 4 || os.Args[2] != "--adapter" {
		log.Fatalf("expected HABIT --adapter ADDRESS, found %q", os.Args[1:])
	}
	habit, address := os.Args[1], os.Args[3]
	channel, err := grpc.Dial(address, grpc.WithInsecure())
	if err != nil {
		log.Fatal(err)
	}
	adapter = exproto.NewConnectionAdapterClient(channel)
	server := grpc.NewServer()
	switch habit {
	case "first-message", "iterates":
		exproto.RegisterConnectionUnaryHandlerServer(server, unary{iterates: habit == "iterates"})
	case "stream-first":
		exproto.RegisterConnectionHandlerServer(server, streaming{})
	case "stream-scope":
		exproto.RegisterConnectionHandlerServer(server, streaming{streamScope: true})
	case "returns":
		exproto.RegisterConnectionHandlerServer(server, streaming{once: true})
	case "answers":
		exproto.RegisterConnectionHandlerServer(server, streaming{answers: true})
	default:
		log.Fatalf("expected a habit, found %q", habit)
	}
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println(listener.Addr().(*net.TCPAddr).Port)
	log.Fatal(server.Serve(listener))
}
