// Package host is the border to the gateway that the SDK's packages share: the memory that the gateway fills, and the
// connections of this instance.
package host

import "unsafe"

// Blocks that the gateway has filled during the event in progress. Only this keeps the collector from them: the gateway's
// pointers to them are numbers. From where a Go pointer to a block exists, the block is ordinary Go memory.
var filled [][]uint64

// Allocate is how the gateway gets room for what it hands in. The collector may run here, so nothing that is called may
// be the gateway's.
//
//go:wasmexport cabi_realloc
func Allocate(old, oldSize, align, size uint32) uint32 {
	if size == 0 {
		return align
	}
	// Whole words: aligned for every type of the interface.
	block := make([]uint64, (uint64(size)+7)/8)
	if oldSize > 0 {
		copy(unsafe.Slice((*byte)(unsafe.Pointer(unsafe.SliceData(block))), size), Bytes(old, min(oldSize, size)))
	}
	filled = append(filled, block)
	return Address(unsafe.Pointer(unsafe.SliceData(block)))
}

// Release ends an event: what the handler did not keep may go.
func Release() {
	clear(filled)
	filled = filled[:0]
}

// Address is where something lies, as the gateway counts. What it points to must not be on a stack, since stacks move.
func Address(pointer unsafe.Pointer) uint32 {
	return uint32(uintptr(pointer))
}

// Bytes are what the gateway handed in; they are the handler's.
func Bytes(at, length uint32) []byte {
	if length == 0 {
		return nil
	}
	return unsafe.Slice((*byte)(unsafe.Pointer(uintptr(at))), length)
}

// Text is what the gateway handed in as text.
func Text(at, length uint32) string {
	if length == 0 {
		return ""
	}
	return unsafe.String((*byte)(unsafe.Pointer(uintptr(at))), length)
}

// Connections are those of this instance with their handlers, by the gateway's number.
var Connections = map[uint64]any{}
