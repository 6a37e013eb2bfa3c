package polygate

import "unsafe"

// Where the gateway puts what it answers: a result<_, error-code>, an option<string>, a list<u8>. Not on a stack, since
// stacks move, also while the gateway asks for memory in the middle of an answer.
var area [4]uint32

var result = unsafe.Pointer(&area)

func outcome() error {
	// Two bytes: whether it failed, and the code.
	if area[0]&0xff == 0 {
		return nil
	}
	return Error(area[0] >> 8)
}

//go:wasmimport polygate:handler/adapter@0.1.0 send
func hostSend(conn uint64, bytes unsafe.Pointer, length uint32, result unsafe.Pointer)

//go:wasmimport polygate:handler/adapter@0.1.0 close
func hostClose(conn uint64, result unsafe.Pointer)

//go:wasmimport polygate:handler/adapter@0.1.0 authenticate
func hostAuthenticate(conn uint64, protoName, protoVer, clientID string, hasUsername uint32, username string,
	hasMountpoint uint32, mountpoint string, hasPassword uint32, password string, result unsafe.Pointer)

//go:wasmimport polygate:handler/adapter@0.1.0 start-timer
func hostStartTimer(conn uint64, timer, intervalMs uint32, result unsafe.Pointer)

//go:wasmimport polygate:handler/adapter@0.1.0 stop-timer
func hostStopTimer(conn uint64, timer uint32, result unsafe.Pointer)

//go:wasmimport polygate:handler/adapter@0.1.0 publish
func hostPublish(conn uint64, topic string, qos uint32, payload unsafe.Pointer, length uint32, result unsafe.Pointer)

//go:wasmimport polygate:handler/adapter@0.1.0 raw-publish
func hostRawPublish(topic string, qos uint32, payload unsafe.Pointer, length uint32, result unsafe.Pointer)

//go:wasmimport polygate:handler/adapter@0.1.0 subscribe
func hostSubscribe(conn uint64, filter string, qos uint32, result unsafe.Pointer)

//go:wasmimport polygate:handler/adapter@0.1.0 unsubscribe
func hostUnsubscribe(conn uint64, filter string, result unsafe.Pointer)

//go:wasmimport polygate:handler/adapter@0.1.0 setting
func hostSetting(name string, result unsafe.Pointer)

//go:wasmimport polygate:handler/adapter@0.1.0 now-ms
func hostNowMs() uint64

//go:wasmimport polygate:handler/adapter@0.1.0 random
func hostRandom(length uint32, result unsafe.Pointer)

//go:wasmimport polygate:handler/adapter@0.1.0 log
func hostLog(level uint32, text string)
