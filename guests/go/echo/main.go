// The JSON echo protocol of ExProto's own suite, as guests/echo/README.md has it: what a device writes as JSON is done,
// and the result comes back. With the setting mode = "raw" every chunk goes back as it came.
package main

import (
	"encoding/json"
	"strings"
	"time"

	"polygate"
)

const (
	connect = iota + 1
	connAck
	publish
	pubAck
	subscribe
	subAck
	unsubscribe
	unsubAck
	disconnect
	rawPublish
)

// What a connection may keep of an unfinished object, in bytes.
const objectMax = 1 << 20

type echo struct {
	conn     polygate.Conn
	raw      bool
	held     []byte
	depth    int
	inString bool
	escaped  bool
}

func init() {
	polygate.Register(func(conn polygate.Conn, _ polygate.ConnInfo) polygate.Handler {
		mode, found := polygate.Setting("mode")
		if found && mode != "raw" && mode != "json" {
			polygate.Log(polygate.LevelError, "setting mode: expected \"json\" or \"raw\", found \""+mode+"\"; using \"json\"")
		}
		return &echo{conn: conn, raw: mode == "raw"}
	})
}

func main() {}

func (e *echo) ReceivedBytes(bytes []byte) {
	if e.raw {
		e.send(bytes)
		return
	}
	for {
		length, whole := e.scan(bytes)
		if length < 0 {
			polygate.Log(polygate.LevelWarn, "expected a JSON object, found another byte; closing")
			e.close()
			return
		}
		if !whole {
			break
		}
		object := append(e.held, bytes[:length]...)
		e.held, bytes = nil, bytes[length:]
		e.request(object)
	}
	if e.depth > 0 {
		if len(e.held)+len(bytes) > objectMax {
			polygate.Log(polygate.LevelWarn, "expected an object of at most 1 MiB; closing")
			e.held = nil
			e.close()
			return
		}
		e.held = append(e.held, bytes...)
	}
}

// How many of the bytes it takes to complete an object, and whether they do; negative when nothing that follows can be
// understood. It only counts braces outside of strings, which finds the end of every object that is one.
func (e *echo) scan(bytes []byte) (int, bool) {
	for at, b := range bytes {
		switch {
		case e.inString && e.escaped:
			e.escaped = false
		case e.inString:
			e.escaped = b == '\\'
			e.inString = b != '"'
		case b == '{':
			e.depth++
		case e.depth == 0:
			if !strings.ContainsRune(" \t\r\n\v\f", rune(b)) {
				return -1, false
			}
		case b == '"':
			e.inString = true
		case b == '}':
			e.depth--
			if e.depth == 0 {
				return at + 1, true
			}
		}
	}
	return 0, false
}

type request struct {
	Type       int
	ClientInfo struct {
		ProtoName string `json:"proto_name"`
		ProtoVer  string `json:"proto_ver"`
		ClientID  string `json:"clientid"`
		Username  *string
		Keepalive uint32
	}
	Password *string
	Topic    *string
	QoS      uint8
	Payload  *string
}

func (e *echo) request(object []byte) {
	var r request
	if err := json.Unmarshal(object, &r); err != nil {
		polygate.Log(polygate.LevelWarn, err.Error())
		if r.Type < connect || r.Type > rawPublish {
			return
		}
		e.answer(r.Type+1, polygate.ErrBadParams)
		return
	}
	switch r.Type {
	case connect:
		e.connect(&r)
	case publish:
		e.answer(pubAck, r.publication(e.conn.Publish))
	case rawPublish:
		e.answer(pubAck, r.publication(polygate.RawPublish))
	case subscribe:
		e.answer(subAck, r.filter(func(filter string) error { return e.conn.Subscribe(filter, polygate.QoS(r.QoS)) }))
	case unsubscribe:
		e.answer(unsubAck, r.filter(e.conn.Unsubscribe))
	case disconnect:
		e.close()
	default:
		polygate.Log(polygate.LevelWarn, "expected a type of 1, 3, 5, 7, 9 or 10")
	}
}

func (e *echo) connect(r *request) {
	client := polygate.Client{
		ProtoName: r.ClientInfo.ProtoName,
		ProtoVer:  r.ClientInfo.ProtoVer,
		ClientID:  r.ClientInfo.ClientID,
		Username:  r.ClientInfo.Username,
		Password:  r.Password,
	}
	err := e.conn.Authenticate(client)
	if err == nil && r.ClientInfo.Keepalive > 0 {
		err = e.conn.StartKeepalive(time.Duration(r.ClientInfo.Keepalive) * time.Second)
	}
	e.answer(connAck, err)
	if err != nil {
		e.close()
	}
}

func (r *request) publication(publish func(string, polygate.QoS, []byte) error) error {
	if r.Topic == nil || r.Payload == nil || r.QoS > 2 {
		return polygate.ErrBadParams
	}
	return publish(*r.Topic, polygate.QoS(r.QoS), []byte(*r.Payload))
}

func (r *request) filter(do func(string) error) error {
	if r.Topic == nil || r.QoS > 2 {
		return polygate.ErrBadParams
	}
	return do(*r.Topic)
}

func (e *echo) ReceivedMessage(message polygate.Message) {
	// JSON has no bytes: what is not UTF-8 arrives with U+FFFD in its place.
	e.sendJSON(map[string]any{
		"type": publish, "topic": message.Topic, "qos": message.QoS, "payload": string(message.Payload),
	})
}

// Code 0 when the request was done, 1 when it was not, and then the log says why.
func (e *echo) answer(kind int, err error) {
	code := 0
	if err != nil {
		polygate.Log(polygate.LevelInfo, "answering with code 1: "+err.Error())
		code = 1
	}
	e.sendJSON(map[string]any{"type": kind, "code": code})
}

func (e *echo) sendJSON(value map[string]any) {
	text, err := json.Marshal(value)
	if err != nil {
		polygate.Log(polygate.LevelError, err.Error())
		return
	}
	e.send(text)
}

func (e *echo) send(bytes []byte) {
	if err := e.conn.Send(bytes); err != nil {
		polygate.Log(polygate.LevelWarn, "cannot send: "+err.Error())
	}
}

func (e *echo) close() {
	if err := e.conn.Close(); err != nil {
		polygate.Log(polygate.LevelDebug, "cannot close: "+err.Error())
	}
}
