package polygate

import (
	"time"
	"unsafe"

	"polygate/internal/host"
)

//go:wasmexport polygate:handler/handler@0.1.0#on-socket-created
func onSocketCreated(conn uint64, kind, peer, peerLength, peerPort, local, localLength, localPort, hasCertificate, cn,
	cnLength, dn, dnLength uint32) {
	defer end()
	info := ConnInfo{
		Kind:  SocketKind(kind),
		Peer:  Address{host.Text(peer, peerLength), uint16(peerPort)},
		Local: Address{host.Text(local, localLength), uint16(localPort)},
	}
	if hasCertificate == 1 {
		info.PeerCert = &Certificate{host.Text(cn, cnLength), host.Text(dn, dnLength)}
	}
	if register == nil {
		panic("no handler: call polygate.Register in an init function")
	}
	host.Connections[conn] = register(Conn(conn), info)
}

//go:wasmexport polygate:handler/handler@0.1.0#on-received-bytes
func onReceivedBytes(conn uint64, bytes, length uint32) {
	defer end()
	if handler, ok := find(conn).(Handler); ok {
		handler.ReceivedBytes(host.Bytes(bytes, length))
	}
}

//go:wasmexport polygate:handler/handler@0.1.0#on-timer-timeout
func onTimerTimeout(conn uint64, timer uint32) {
	defer end()
	if handler, ok := find(conn).(KeepaliveHandler); ok {
		handler.KeepaliveTimeout()
	}
}

// A list and its elements as the gateway lays them out: pointers are 32 bits, which are 64 in Go.
type list struct{ at, length uint32 }

func (l list) text() string { return host.Text(l.at, l.length) }

type message struct {
	node, id, topic, payload list
	qos                      uint8
	sender                   list
	timestampMs              uint64
}

//go:wasmexport polygate:handler/handler@0.1.0#on-received-messages
func onReceivedMessages(conn uint64, messages, length uint32) {
	defer end()
	handler, ok := find(conn).(MessageHandler)
	if !ok || length == 0 {
		return
	}
	for _, message := range unsafe.Slice((*message)(unsafe.Pointer(uintptr(messages))), length) {
		handler.ReceivedMessage(Message{
			Node:    message.node.text(),
			ID:      message.id.text(),
			Topic:   message.topic.text(),
			Payload: host.Bytes(message.payload.at, message.payload.length),
			QoS:     QoS(message.qos),
			Sender:  message.sender.text(),
			Time:    time.UnixMilli(int64(message.timestampMs)),
		})
	}
}

//go:wasmexport polygate:handler/handler@0.1.0#on-socket-closed
func onSocketClosed(conn uint64, kind, words, length uint32) {
	defer end()
	reason := CloseReason{Kind: CloseKind(kind)}
	if reason.Kind == ClosedByError {
		reason.Words = host.Text(words, length)
	}
	if handler, ok := find(conn).(CloseHandler); ok {
		handler.Closed(reason)
	}
	delete(host.Connections, conn)
}

func find(conn uint64) any {
	handler, ok := host.Connections[conn]
	if !ok {
		Log(LevelError, "an event for a connection that was never announced, or has ended")
	}
	return handler
}

// end is the end of every event. A panic ends the instance without a word of Go's runtime; these are its last.
func end() {
	host.Release()
	if reason := recover(); reason != nil {
		switch reason := reason.(type) {
		case error:
			Log(LevelError, "panic: "+reason.Error())
		case string:
			Log(LevelError, "panic: "+reason)
		default:
			Log(LevelError, "panic")
		}
		panic(reason)
	}
}
