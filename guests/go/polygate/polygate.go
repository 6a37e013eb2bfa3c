// Package polygate is what a handler written in Go stands on: the interface of wit/handler.wit in Go's words.
//
// A handler is a type whose values are connections. It must implement [Handler], and may implement [MessageHandler],
// [KeepaliveHandler] and [CloseHandler]:
//
//	type echo struct{ conn polygate.Conn }
//
//	func (e *echo) ReceivedBytes(bytes []byte) { e.conn.Send(bytes) }
//
//	func init() {
//		polygate.Register(func(conn polygate.Conn, info polygate.ConnInfo) polygate.Handler { return &echo{conn} })
//	}
//
//	func main() {}
//
// and one command makes what the gateway loads:
//
//	GOOS=wasip1 GOARCH=wasm go build -buildmode=c-shared -o handler.wasm .
//
// There are no files, sockets, environment and threads, and an event must return: a goroutine that waits is never woken.
// Call the gateway from the event itself, not from goroutines. time.Now counts readings, not time: use [Now]. crypto/rand
// fails and math/rand draws the same in every instance: use [Random]. What is printed goes nowhere: use [Log]; a panic is
// logged, and ends the connection.
package polygate

import (
	"time"
	"unicode/utf8"
	"unsafe"

	"polygate/internal/host"
)

// Handler is one connection.
type Handler interface {
	// ReceivedBytes takes the next bytes of the stream, cut anywhere; or one whole datagram. They are the handler's.
	ReceivedBytes(bytes []byte)
}

// MessageHandler is a Handler that subscribes.
type MessageHandler interface {
	// ReceivedMessage takes a message of one of the connection's subscriptions.
	ReceivedMessage(message Message)
}

// KeepaliveHandler is a Handler that wants to know when the keepalive timer has run out.
type KeepaliveHandler interface {
	// KeepaliveTimeout comes before the connection is closed; what is sent here still goes out.
	KeepaliveTimeout()
}

// CloseHandler is a Handler that wants to know of its end.
type CloseHandler interface {
	// Closed is the last event.
	Closed(reason CloseReason)
}

// Register says how the handler of a new connection is made; to be called once, in an init function.
func Register(created func(conn Conn, info ConnInfo) Handler) {
	register = created
}

var register func(conn Conn, info ConnInfo) Handler

// Conn is one connection: the gateway's number for it, never used twice.
type Conn uint64

// Client is who the peer says it is.
type Client struct {
	ProtoName, ProtoVer string
	// ClientID must not be empty. The newest connection with the same id ends the older one.
	ClientID string
	// Username and Password may be absent.
	Username, Password *string
}

// QoS is MQTT's.
type QoS uint8

const (
	AtMostOnce QoS = iota
	AtLeastOnce
	ExactlyOnce
)

// Level is how much a line of the log matters.
type Level uint8

const (
	LevelTrace Level = iota
	LevelDebug
	LevelInfo
	LevelWarn
	LevelError
)

// Error says why the gateway did not do what was asked.
type Error uint8

const (
	ErrUnknown Error = iota
	ErrConnGone
	ErrBadParams
	ErrPermissionDenied
	ErrNotAuthenticated
	ErrOverloaded
	ErrTimeout
)

func (e Error) Error() string {
	switch e {
	case ErrConnGone:
		return "conn-gone"
	case ErrBadParams:
		return "bad-params"
	case ErrPermissionDenied:
		return "permission-denied"
	case ErrNotAuthenticated:
		return "not-authenticated"
	case ErrOverloaded:
		return "overloaded"
	case ErrTimeout:
		return "timeout"
	default:
		return "unknown"
	}
}

// SocketKind is what a connection came over.
type SocketKind uint8

const (
	TCP SocketKind = iota
	TLS
	UDP
	DTLS
	WebSocket
)

// Address of a socket.
type Address struct {
	Host string
	Port uint16
}

// Certificate is the identity read from a verified peer certificate.
type Certificate struct {
	CN, DN string
}

// ConnInfo is what is known of a new connection.
type ConnInfo struct {
	Kind        SocketKind
	Peer, Local Address
	PeerCert    *Certificate
}

// Message of a subscription.
type Message struct {
	Node, ID, Topic string
	Payload         []byte
	QoS             QoS
	Sender          string
	Time            time.Time
}

// CloseReason says why a connection ended.
type CloseReason struct {
	Kind CloseKind
	// Words are there for ClosedByError.
	Words string
}

// CloseKind is the reason without words.
type CloseKind uint8

const (
	ClosedByPeer CloseKind = iota
	ClosedByHandler
	KeepaliveTimeout
	IdleTimeout
	Replaced
	Kicked
	Expired
	ClosedByHost
	ClosedByError
)

// Send queues bytes for the peer.
func (c Conn) Send(bytes []byte) error {
	hostSend(uint64(c), unsafe.Pointer(unsafe.SliceData(bytes)), uint32(len(bytes)), result)
	return outcome()
}

// Close flushes what was queued, and closes.
func (c Conn) Close() error {
	hostClose(uint64(c), result)
	return outcome()
}

// Authenticate returns when the broker has answered; a refusal leaves the connection open.
func (c Conn) Authenticate(client Client) error {
	username, usernameText := optional(client.Username)
	password, passwordText := optional(client.Password)
	if !areText(client.ProtoName, client.ProtoVer, client.ClientID, usernameText, passwordText) {
		return ErrBadParams
	}
	hostAuthenticate(uint64(c), client.ProtoName, client.ProtoVer, client.ClientID, username, usernameText, 0, "", password,
		passwordText, result)
	return outcome()
}

// StartKeepalive starts the timer that runs out after one and a half intervals without a byte from the peer.
func (c Conn) StartKeepalive(interval time.Duration) error {
	ms := interval.Milliseconds()
	if ms < 0 || ms > 1<<32-1 {
		return ErrBadParams
	}
	hostStartTimer(uint64(c), 0, uint32(ms), result)
	return outcome()
}

// StopKeepalive stops it.
func (c Conn) StopKeepalive() error {
	hostStopTimer(uint64(c), 0, result)
	return outcome()
}

// Publish publishes in the connection's name.
func (c Conn) Publish(topic string, qos QoS, payload []byte) error {
	if !areText(topic) {
		return ErrBadParams
	}
	hostPublish(uint64(c), topic, uint32(qos), unsafe.Pointer(unsafe.SliceData(payload)), uint32(len(payload)), result)
	return outcome()
}

// Subscribe asks for messages; they come to ReceivedMessage.
func (c Conn) Subscribe(filter string, qos QoS) error {
	if !areText(filter) {
		return ErrBadParams
	}
	hostSubscribe(uint64(c), filter, uint32(qos), result)
	return outcome()
}

// Unsubscribe ends a subscription.
func (c Conn) Unsubscribe(filter string) error {
	if !areText(filter) {
		return ErrBadParams
	}
	hostUnsubscribe(uint64(c), filter, result)
	return outcome()
}

// RawPublish publishes on nobody's behalf: no mountpoint, no rules.
func RawPublish(topic string, qos QoS, payload []byte) error {
	if !areText(topic) {
		return ErrBadParams
	}
	hostRawPublish(topic, uint32(qos), unsafe.Pointer(unsafe.SliceData(payload)), uint32(len(payload)), result)
	return outcome()
}

// Setting is a value of the handler's settings in the configuration.
func Setting(name string) (string, bool) {
	if !areText(name) {
		return "", false
	}
	hostSetting(name, result)
	return host.Text(area[1], area[2]), area[0]&1 == 1
}

// Now is the time.
func Now() time.Time {
	return time.UnixMilli(int64(hostNowMs()))
}

// Random fills bytes from the gateway's secure generator.
func Random(bytes []byte) {
	const most = 1024
	for len(bytes) > 0 {
		hostRandom(uint32(min(len(bytes), most)), result)
		drawn := copy(bytes, host.Bytes(area[0], area[1]))
		if drawn == 0 {
			panic("the gateway gave no random bytes")
		}
		bytes = bytes[drawn:]
	}
}

// Log writes a line of the gateway's log, with the connection beside it.
func Log(level Level, text string) {
	if !utf8.ValidString(text) {
		text = string([]rune(text))
	}
	hostLog(uint32(level), text)
}

func optional(text *string) (uint32, string) {
	if text == nil {
		return 0, ""
	}
	return 1, *text
}

// The gateway ends a handler that hands it text which is none; here the handler is told.
func areText(texts ...string) bool {
	for _, text := range texts {
		if !utf8.ValidString(text) {
			return false
		}
	}
	return true
}
