"""The library through ctypes: python3 ctypes_test.py LIBRARY, on a host where a connection to itself can be made."""

import ctypes
import socket
import sys

OK, INVALID, NOT_MOVABLE, IMAGE = 0, 1, 2, 9


class Flow(ctypes.Structure):
    _fields_ = [("local", ctypes.c_uint8 * 16), ("remote", ctypes.c_uint8 * 16), ("local_port", ctypes.c_uint16),
                ("remote_port", ctypes.c_uint16), ("family", ctypes.c_uint16), ("reserved", ctypes.c_uint16)]


class Probe(ctypes.Structure):
    _fields_ = [("size", ctypes.c_size_t), ("flow", Flow), ("state", ctypes.c_uint32), ("unread", ctypes.c_uint32),
                ("unacked", ctypes.c_uint32), ("unsent", ctypes.c_uint32)]


class Layer(ctypes.Structure):
    _fields_ = [("size", ctypes.c_size_t), ("kind", ctypes.c_char_p), ("payload", ctypes.c_void_p),
                ("payload_length", ctypes.c_size_t), ("version", ctypes.c_uint32)]


library = ctypes.CDLL(sys.argv[1])
for name in ("version", "last_error", "code_name"):
    getattr(library, f"tcpmig_{name}").restype = ctypes.c_char_p
library.tcpmig_image_layers.restype = ctypes.c_size_t


def do(name, *arguments, expected=OK):
    code = getattr(library, f"tcpmig_{name}")(*arguments)
    assert code == expected, (name, code, library.tcpmig_last_error())


listener = socket.create_server(("127.0.0.1", 0))
client = socket.create_connection(listener.getsockname())
server, _ = listener.accept()
client.sendall(b"read me")
server.setblocking(True)

locker, frozen, image, prepared, restored = (ctypes.c_void_p() for _ in range(5))
do("locker_open", b"none", ctypes.byref(locker))
do("locker_open", b"nonsense", ctypes.byref(locker), expected=INVALID)
assert b"nonsense" in library.tcpmig_last_error()
do("probe", listener.fileno(), None, expected=NOT_MOVABLE)
probe = Probe(size=ctypes.sizeof(Probe))
do("probe", server.fileno(), ctypes.byref(probe))
assert (probe.state, probe.unread) == (1, 7), (probe.state, probe.unread)
text = ctypes.create_string_buffer(108)
do("flow_text", ctypes.byref(probe.flow), text)
ends = ["%s:%d" % end for end in (server.getsockname(), client.getsockname())]
assert text.value.decode() == ",".join(ends), text.value

do("freeze", server.detach(), locker, 10000, ctypes.byref(frozen))
layer = Layer(ctypes.sizeof(Layer), b"org.example.python", ctypes.cast(b"state", ctypes.c_void_p), 5, 3)
do("capture", frozen, ctypes.byref(layer), ctypes.c_size_t(1), ctypes.byref(image))
do("discard", ctypes.byref(frozen))
assert frozen.value is None

there, length = ctypes.c_void_p(), ctypes.c_size_t()
do("image_bytes", image, ctypes.byref(there), ctypes.byref(length))
copy = ctypes.string_at(there, length.value)
library.tcpmig_image_free(ctypes.byref(image))
do("image_decode", copy[:-1], ctypes.c_size_t(len(copy) - 1), ctypes.byref(image), expected=IMAGE)
do("image_decode", copy, ctypes.c_size_t(len(copy)), ctypes.byref(image))
assert library.tcpmig_image_layers(image) == 1
found = Layer(size=ctypes.sizeof(Layer))
do("image_layer", image, ctypes.c_size_t(0), ctypes.byref(found))
assert (found.kind, found.version) == (b"org.example.python", 3)
assert ctypes.string_at(found.payload, found.payload_length) == b"state"

fd = ctypes.c_int(-1)
do("prepare", image, locker, 10000, 0, ctypes.byref(prepared))
do("activate", ctypes.byref(prepared), ctypes.byref(fd), ctypes.byref(restored))
library.tcpmig_restored_free(ctypes.byref(restored))
library.tcpmig_image_free(ctypes.byref(image))
library.tcpmig_locker_free(ctypes.byref(locker))
server = socket.socket(fileno=fd.value)
server.settimeout(60)
client.settimeout(60)
assert server.recv(100) == b"read me"
server.sendall(b"answer")
assert client.recv(100) == b"answer"
print("fine", library.tcpmig_version().decode())
