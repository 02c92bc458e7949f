package main

import (
	"net"
	"syscall"
)

// closeDoor makes the kernel ignore further attempts to connect to l, while those that it has accepted still
// come out of Accept. Closing a listener resets these, with the requests that they have sent already.
// Whoever is ignored tries again a second later, and is refused, or served by our successor on the port.
func closeDoor(l net.Listener) {
	if raw, err := l.(*net.TCPListener).SyscallConn(); err == nil {
		raw.Control(func(fd uintptr) {
			//lint:ignore SA1019 what it is deprecated for is a module of its own, for one instruction
			syscall.AttachLsf(int(fd), []syscall.SockFilter{{Code: syscall.BPF_RET | syscall.BPF_K, K: 0}}) // of each packet pass 0 bytes
		})
	}
}
