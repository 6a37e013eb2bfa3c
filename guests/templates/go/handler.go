// Devices that speak lines of text: HELLO <clientid> first, and then what is to be published on "up".
package main

import (
	"bytes"
	"errors"
	"strings"
	"time"

	"polygate"
	"polygate/migrate"
)

// Without a bound, a device that never ends its line would fill the memory.
const lineMax = 1024

// The gateway ends a device that is silent for 1.5 times as long.
const keepalive = 300 * time.Second

// One connection.
type device struct {
	conn           polygate.Conn
	known, closing bool
	// The unfinished line at the end of what was read.
	line []byte
}

func init() {
	polygate.Register(func(conn polygate.Conn, _ polygate.ConnInfo) polygate.Handler { return &device{conn: conn} })
	migrate.Register(restore)
}

func main() {}

func (d *device) ReceivedBytes(received []byte) {
	for len(received) > 0 && !d.closing {
		part, rest, ended := bytes.Cut(received, []byte("\n"))
		if len(d.line)+len(part) > lineMax {
			polygate.Log(polygate.LevelWarn, "expected a line of at most 1024 bytes; closing")
			d.close()
			return
		}
		d.line, received = append(d.line, part...), rest
		if ended {
			line := d.line
			d.line = nil
			d.receivedLine(line)
		}
	}
}

func (d *device) receivedLine(line []byte) {
	var err error
	if d.known {
		err = d.conn.Publish("up", polygate.AtLeastOnce, line)
	} else {
		err = d.hello(string(line))
	}
	if err != nil {
		d.conn.Send([]byte("ERR " + err.Error() + "\n"))
	} else {
		d.conn.Send([]byte("OK\n"))
	}
	if !d.known {
		d.close()
	}
}

func (d *device) hello(line string) error {
	clientID, found := strings.CutPrefix(line, "HELLO ")
	if !found || clientID == "" {
		return errors.New("expected HELLO <clientid>")
	}
	if err := d.conn.Authenticate(polygate.Client{ProtoName: "lines", ProtoVer: "1", ClientID: clientID}); err != nil {
		return err
	}
	if err := d.conn.StartKeepalive(keepalive); err != nil {
		return err
	}
	if err := d.conn.Subscribe("down", polygate.AtLeastOnce); err != nil {
		return err
	}
	d.known = true
	return nil
}

func (d *device) ReceivedMessage(message polygate.Message) {
	d.conn.Send(append(message.Payload, '\n'))
}

func (d *device) KeepaliveTimeout() { d.close() }

func (d *device) close() {
	d.closing = true
	d.conn.Close()
}

// Another number whenever what is carried over changes.
const format = 1

// Snapshot lets the connection go on in the next version of this handler, also in the middle of a line.
func (d *device) Snapshot() (migrate.State, bool) {
	state := []byte{0}
	if d.known {
		state[0] = 1
	}
	return migrate.State{Format: format, Bytes: append(state, d.line...)}, true
}

func restore(conn polygate.Conn, _ polygate.ConnInfo, state *migrate.State) (polygate.Handler, error) {
	if state == nil || state.Format != format || len(state.Bytes) == 0 || len(state.Bytes) > 1+lineMax {
		return nil, errors.New("the state is of another version")
	}
	return &device{conn: conn, known: state.Bytes[0] == 1, line: bytes.Clone(state.Bytes[1:])}, nil
}
