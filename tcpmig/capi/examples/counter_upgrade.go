// SPDX-License-Identifier: MIT OR Apache-2.0

// A server whose next version takes its listener and its connections over, with libtcpmig through cgo. It answers each line with the
// number of lines that have come on that connection; the number goes along. It is counter_upgrade.c in Go, and each of the two takes
// over from the other.
//
//	go run counter_upgrade.go ADDRESS PORT SOCKET      started once more, it takes over from the one that runs
package main

/*
#cgo pkg-config: tcpmig
#include <stdlib.h>
#include <tcpmig.h>
*/
import "C"

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"net"
	"os"
	"runtime"
	"strconv"
	"syscall"
	"unsafe"
)

const (
	kind     = "org.example.counter"
	version  = 1
	listener = "counter"
)

type client struct {
	fd    int
	lines uint32
}

type server struct {
	upgrade  *C.struct_tcpmig_upgrade
	epoll    int
	listener int
	accepts  bool
	open     map[int]*client
	given    map[C.uint64_t]*client
	next     C.uint64_t
}

// The reason of a failure is that of the last call on this thread: main stays on one.
func problem(what string) error {
	return fmt.Errorf("%s: %s", what, C.GoString(C.tcpmig_last_error()))
}

// What C keeps or looks into must not be memory of Go; it is to be freed.
func text(s string) *C.char {
	return C.CString(s)
}

func (s *server) watch(fd int) error {
	event := syscall.EpollEvent{Events: syscall.EPOLLIN, Fd: int32(fd)}
	return syscall.EpollCtl(s.epoll, syscall.EPOLL_CTL_ADD, fd, &event)
}

func (s *server) unwatch(fd int) {
	syscall.EpollCtl(s.epoll, syscall.EPOLL_CTL_DEL, fd, nil)
}

func (s *server) add(c *client) {
	if s.watch(c.fd) != nil {
		syscall.Close(c.fd)
		return
	}
	s.open[c.fd] = c
}

func (s *server) answer(c *client) {
	var buffer [512]byte

	got, err := syscall.Read(c.fd, buffer[:])
	if err == syscall.EINTR {
		return
	}
	for i := 0; err == nil && i < bytes.Count(buffer[:got], []byte("\n")); i++ {
		c.lines++
		_, err = syscall.Write(c.fd, []byte(strconv.Itoa(int(c.lines))+"\n"))
	}
	if got <= 0 || err != nil {
		delete(s.open, c.fd)
		syscall.Close(c.fd)
	}
}

// Gives the next version a connection.
func (s *server) give(c *client) error {
	payload := C.malloc(4)
	defer C.free(payload)
	binary.BigEndian.PutUint32(unsafe.Slice((*byte)(payload), 4), c.lines)
	layer := (*C.struct_tcpmig_layer)(C.calloc(1, C.sizeof_struct_tcpmig_layer))
	defer C.free(unsafe.Pointer(layer))
	layer.size = C.sizeof_struct_tcpmig_layer
	layer.kind = text(kind)
	defer C.free(unsafe.Pointer(layer.kind))
	layer.version = version
	layer.payload = payload
	layer.payload_length = 4
	session := C.struct_tcpmig_session{size: C.sizeof_struct_tcpmig_session, layers: layer, layer_count: 1}

	s.unwatch(c.fd)
	s.next++
	if C.tcpmig_upgrade_give(s.upgrade, C.int(c.fd), &session, s.next) != C.TCPMIG_OK {
		err := problem("give")
		s.add(c)
		return err
	}
	delete(s.open, c.fd)
	s.given[s.next] = c
	return nil
}

// The number that comes with a connection, unless it is of another server.
func (s *server) linesOf(event *C.struct_tcpmig_event) (uint32, bool) {
	layer := C.struct_tcpmig_layer{size: C.sizeof_struct_tcpmig_layer}

	if event.layer_count != 1 || C.tcpmig_upgrade_layer(s.upgrade, 0, &layer) != C.TCPMIG_OK ||
		C.GoString(layer.kind) != kind || layer.version != version || layer.payload_length != 4 {
		return 0, false
	}
	return binary.BigEndian.Uint32(C.GoBytes(layer.payload, 4)), true
}

// Whether there was an event.
func (s *server) handle() bool {
	event := C.struct_tcpmig_event{size: C.sizeof_struct_tcpmig_event}

	if C.tcpmig_upgrade_next_event(s.upgrade, &event) != C.TCPMIG_OK {
		return false
	}
	switch event.kind {
	case C.TCPMIG_EVENT_OFFER:
		// What nobody here knows must not be taken: the session would be damaged.
		if _, known := s.linesOf(&event); known {
			C.tcpmig_upgrade_take(s.upgrade, event.id)
		} else {
			why := text("it is not a session of this server")
			C.tcpmig_upgrade_refuse(s.upgrade, event.id, why)
			C.free(unsafe.Pointer(why))
		}
	case C.TCPMIG_EVENT_ARRIVED:
		if lines, known := s.linesOf(&event); known {
			s.add(&client{int(event.fd), lines})
		} else {
			syscall.Close(int(event.fd))
		}
	case C.TCPMIG_EVENT_SUCCESSOR:
		s.accepts = false
		s.unwatch(s.listener)
		for _, c := range s.open {
			if err := s.give(c); err != nil {
				fmt.Fprintln(os.Stderr, err)
			}
		}
	case C.TCPMIG_EVENT_SUCCESSOR_GONE:
		s.accepts = s.watch(s.listener) == nil
	case C.TCPMIG_EVENT_MOVED, C.TCPMIG_EVENT_LOST:
		delete(s.given, event.id)
	case C.TCPMIG_EVENT_KEPT:
		c := s.given[event.id]
		delete(s.given, event.id)
		c.fd = int(event.fd)
		s.add(c)
	}
	return event.kind != C.TCPMIG_EVENT_NONE
}

func listen(address, port string) (int, error) {
	there, err := net.ResolveTCPAddr("tcp4", net.JoinHostPort(address, port))
	if err != nil {
		return -1, err
	}
	fd, err := syscall.Socket(syscall.AF_INET, syscall.SOCK_STREAM|syscall.SOCK_CLOEXEC, 0)
	if err != nil {
		return -1, err
	}
	here := syscall.SockaddrInet4{Port: there.Port}
	copy(here.Addr[:], there.IP.To4())
	for _, step := range []func() error{
		func() error { return syscall.SetsockoptInt(fd, syscall.SOL_SOCKET, syscall.SO_REUSEADDR, 1) },
		func() error { return syscall.Bind(fd, &here) },
		func() error { return syscall.Listen(fd, 64) },
	} {
		if err := step(); err != nil {
			return -1, err
		}
	}
	return fd, nil
}

// Takes over from the version that runs, or is the first one.
func begin(address, port, socket string) (*server, error) {
	s := &server{accepts: true, open: map[int]*client{}, given: map[C.uint64_t]*client{}}
	path, name := text(socket), text(listener)
	defer C.free(unsafe.Pointer(path))
	defer C.free(unsafe.Pointer(name))
	var hadOlder, fd C.int

	if C.tcpmig_upgrade_begin(path, &s.upgrade, &hadOlder) != C.TCPMIG_OK {
		return nil, problem(socket)
	}
	if hadOlder == 0 {
		first, err := listen(address, port)
		if err != nil {
			return nil, err
		}
		fd = C.int(first)
	} else if C.tcpmig_upgrade_listener(s.upgrade, name, &fd) != C.TCPMIG_OK {
		return nil, problem("listener")
	}
	s.listener = int(fd)
	if C.tcpmig_upgrade_pass(s.upgrade, name, fd) != C.TCPMIG_OK || C.tcpmig_upgrade_ready(s.upgrade) != C.TCPMIG_OK {
		return nil, problem("ready")
	}
	var err error
	if s.epoll, err = syscall.EpollCreate1(syscall.EPOLL_CLOEXEC); err != nil {
		return nil, err
	}
	for _, fd := range []int{s.listener, int(C.tcpmig_upgrade_fd(s.upgrade))} {
		if err := s.watch(fd); err != nil {
			return nil, err
		}
	}
	return s, nil
}

// Serves until the next version accepts and has all that there is.
func (s *server) serve() error {
	var events [64]syscall.EpollEvent

	for s.accepts || len(s.open) > 0 || len(s.given) > 0 {
		ready, err := syscall.EpollWait(s.epoll, events[:], -1)
		if err != nil && err != syscall.EINTR {
			return err
		}
		for i := 0; i < ready; i++ {
			fd := int(events[i].Fd)
			if fd == s.listener {
				if accepted, _, err := syscall.Accept4(fd, syscall.SOCK_CLOEXEC); err == nil {
					s.add(&client{accepted, 0})
				}
			} else if c := s.open[fd]; c != nil {
				s.answer(c)
			}
		}
		// After the connections: what happens to them here may concern one that this round was about.
		for s.handle() {
		}
	}
	if C.tcpmig_upgrade_finish(s.upgrade) != C.TCPMIG_OK {
		return problem("finish")
	}
	C.tcpmig_upgrade_free(&s.upgrade)
	return nil
}

func main() {
	runtime.LockOSThread()
	if len(os.Args) < 4 {
		fmt.Fprintln(os.Stderr, "usage: counter_upgrade ADDRESS PORT SOCKET")
		os.Exit(2)
	}
	s, err := begin(os.Args[1], os.Args[2], os.Args[3])
	if err == nil {
		fmt.Println("ready")
		err = s.serve()
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}
