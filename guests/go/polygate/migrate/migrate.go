// Package migrate lets connections go on in a new version of their handler. A handler that imports it exports the
// interface migrate of wit/handler.wit.
package migrate

import (
	"unsafe"

	"polygate"
	"polygate/internal/host"
)

// State is what a version of a handler knows of one connection.
type State struct {
	// Format is a number of the handler's own.
	Format uint32
	Bytes  []byte
}

// Handler is a connection that can be carried over.
type Handler interface {
	polygate.Handler
	// Snapshot is called on the old version; false: nothing to carry over.
	Snapshot() (State, bool)
}

// Register says how a connection goes on, in place of polygate.Register's function; state is nil when the old version had
// nothing to carry over. An error keeps the connection with the old version. To be called once, in an init function.
func Register(restored func(conn polygate.Conn, info polygate.ConnInfo, state *State) (polygate.Handler, error)) {
	restore = restored
}

var restore func(conn polygate.Conn, info polygate.ConnInfo, state *State) (polygate.Handler, error)

type list struct{ at, length uint32 }

// option<state>, and what it points to until the next call.
var snapshot struct {
	present uint8
	format  uint32
	bytes   list
}
var snapshotBytes []byte

//go:wasmexport polygate:handler/migrate@0.1.0#snapshot
func onSnapshot(conn uint64) unsafe.Pointer {
	defer host.Release()
	snapshot.present = 0
	if handler, ok := host.Connections[conn].(Handler); ok {
		if state, ok := handler.Snapshot(); ok {
			snapshot.present = 1
			snapshot.format = state.Format
			snapshotBytes = state.Bytes
			snapshot.bytes = list{host.Address(unsafe.Pointer(unsafe.SliceData(snapshotBytes))), uint32(len(snapshotBytes))}
		}
	}
	return unsafe.Pointer(&snapshot)
}

// The arguments of restore, which are one more than the ABI passes one by one.
type arguments struct {
	conn uint64
	info struct {
		kind        uint8
		peer, local struct {
			host list
			port uint16
		}
		hasCertificate uint8
		cn, dn         list
	}
	present uint8
	format  uint32
	bytes   list
}

// result<_, string>, and what it points to until the next call.
var restored struct {
	failed uint8
	words  list
}
var restoredWords string

//go:wasmexport polygate:handler/migrate@0.1.0#restore
func onRestore(at uint32) unsafe.Pointer {
	defer host.Release()
	given := (*arguments)(unsafe.Pointer(uintptr(at)))
	text := func(list list) string { return host.Text(list.at, list.length) }
	info := polygate.ConnInfo{
		Kind:  polygate.SocketKind(given.info.kind),
		Peer:  polygate.Address{Host: text(given.info.peer.host), Port: given.info.peer.port},
		Local: polygate.Address{Host: text(given.info.local.host), Port: given.info.local.port},
	}
	if given.info.hasCertificate == 1 {
		info.PeerCert = &polygate.Certificate{CN: text(given.info.cn), DN: text(given.info.dn)}
	}
	var state *State
	if given.present == 1 {
		state = &State{given.format, host.Bytes(given.bytes.at, given.bytes.length)}
	}
	if restore == nil {
		return refused("this handler cannot restore connections")
	}
	handler, err := restore(polygate.Conn(given.conn), info, state)
	if err != nil {
		return refused(err.Error())
	}
	host.Connections[given.conn] = handler
	restored.failed = 0
	return unsafe.Pointer(&restored)
}

func refused(why string) unsafe.Pointer {
	restoredWords = string([]rune(why))
	restored.failed = 1
	restored.words = list{host.Address(unsafe.Pointer(unsafe.StringData(restoredWords))), uint32(len(restoredWords))}
	return unsafe.Pointer(&restored)
}
