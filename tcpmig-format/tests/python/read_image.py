"""Reads an image of a connection, as FORMAT.md describes it, and prints it as JSON.

python3 read_image.py FILE

Needs msgpack (Debian: python3-msgpack). Octets are printed in hexadecimal, absent fields as null. An image that cannot
be read ends the program with status 1 and a line that says why.
"""

import json
import sys
import zlib

import msgpack

MAGIC = b"\x89TCPM\r\n\x1a"
VERSION = 3
HEADER = 24
MAX_TEXT = 255
MAX_DEPTH = 31
MAX_LAYERS = 16

END = {"address!": "octets", "port!": "u16"}
SOCKET = {
    "reuse_addr": "bool",
    "reuse_port": "bool",
    "no_delay": "bool",
    "cork": "bool",
    "oob_inline": "bool",
    "non_blocking": "bool",
    "keep_alive": {"on!": "bool", "idle!": "u32", "interval!": "u32", "count!": "u32"},
    "linger": {"on!": "bool", "seconds!": "u32"},
    "receive_buffer": "u32",
    "send_buffer": "u32",
    "buffer_lock": "u8",
    "receive_low_water": "u32",
    "congestion": "text",
    "user_timeout": "u32",
    "not_sent_low_water": "u32",
    "quick_ack": "bool",
    "linger2": "i32",
    "syn_count": "u32",
    "window_clamp": "u32",
    "max_pacing_rate": "u64",
    "shut_read": "bool",
    "close_on_exec": "bool",
    "receive_timeout": "u64",
    "send_timeout": "u64",
    "filter": "octets",
    "lock_filter": "bool",
    "peek_offset": "u32",
    "dont_route": "bool",
    "busy_poll": "u32",
    "prefer_busy_poll": "bool",
    "zero_copy": "bool",
    "select_error_queue": "bool",
    "timestamp": "bool",
    "timestamp_ns": "bool",
    "timestamping": "u32",
    "timestamp_new": "bool",
    "tx_rehash": "bool",
    "defer_accept": "u32",
    "thin_linear_timeouts": "bool",
    "tx_delay": "u32",
    "inq": "bool",
    "rto_max": "u32",
    "rto_min": "u32",
    "delayed_ack_max": "u32",
}
IP = {
    "family!": "text",
    "local!": END,
    "remote!": END,
    "v6_only": "bool",
    "scope": "text",
    "ttl": "u8",
    "hop_limit": "u8",
    "tos": "u8",
    "traffic_class": "u8",
    "flow_label": "u32",
    "bound_device": "text",
    "transparent": "bool",
    "freebind": "bool",
    "mark": "u32",
    "priority": "u32",
    "flow_label_share": "u8",
    "flow_info_send": "bool",
    "flow_label_reflect": "bool",
    "auto_flow_label": "bool",
    "mtu_discover": "u8",
    "mtu_discover_v6": "u8",
    "min_ttl": "u8",
    "min_hop_limit": "u8",
    "ip_options": "octets",
    "bind_address_no_port": "bool",
    "local_port_range": "u32",
    "receive_errors": "bool",
    "receive_packet_info": "bool",
    "receive_ttl": "bool",
    "receive_tos": "bool",
    "receive_errors_v6": "bool",
    "receive_packet_info_v6": "bool",
    "receive_hop_limit": "bool",
    "receive_traffic_class": "bool",
    "receive_flow_info": "bool",
    "receive_hop_options": "bool",
    "receive_routing_header": "bool",
    "receive_destination_options": "bool",
}
TCP = {
    "state!": "u8",
    "send!": {"snd_una!": "u32", "sent!": "octets", "unsent!": "octets"},
    "receive!": {"rcv_nxt!": "u32", "queue!": "octets"},
    "negotiated!": {
        "mss_clamp!": "u16",
        "window_scale": {"snd!": "u8", "rcv!": "u8"},
        "sack": "bool",
        "timestamps": {"value!": "u32", "unit!": "text"},
    },
    "window!": {
        "snd_wl1!": "u32",
        "snd_wnd!": "u32",
        "max_window!": "u32",
        "rcv_wnd!": "u32",
        "rcv_wup!": "u32",
    },
    "socket": SOCKET,
    "pending_error": {"errno!": "u16", "after_fin!": "bool"},
}
LISTENER = {
    "local!": END,
    "v6_only": "bool",
    "scope": "text",
    "bound_device": "text",
    "transparent": "bool",
    "freebind": "bool",
    "mark": "u32",
    "priority": "u32",
    "backlog!": "u32",
    "defer_accept": "u32",
    "fast_open": "u32",
    "socket": SOCKET,
}
LAYER = {"kind!": "text", "version!": "u32", "payload!": "octets"}
IMAGE = {
    "critical!": "names",
    "taken": "u64",
    "subject!": {"connection": {"ip": IP, "tcp": TCP}, "listener": LISTENER},
    "layers": [LAYER],
}
# Each name of a critical part, and where the part is.
CRITICAL = {
    "ip": ["subject", "connection", "ip"],
    "tcp": ["subject", "connection", "tcp"],
    "tcp.pending_error": ["subject", "connection", "tcp", "pending_error"],
    "listener": ["subject", "listener"],
    "layers": ["layers"],
}
IMAGE_BEFORE_3 = {
    "critical!": "names",
    "taken": "u64",
    "ip": IP,
    "tcp": TCP,
    "app": LAYER,
    "listen": LISTENER,
}
CRITICAL_BEFORE_3 = {
    "ip": ["ip"],
    "tcp": ["tcp"],
    "tcp.pending_error": ["tcp", "pending_error"],
    "app": ["app"],
    "listen": ["listen"],
}


class Unreadable(Exception):
    """Why it is not an image that this program reads."""


def payload(image):
    """The version and the payload behind a good envelope."""
    if not image.startswith(MAGIC):
        raise Unreadable("not an image")
    if len(image) < HEADER:
        raise Unreadable("cut off")
    number = lambda start, end: int.from_bytes(image[start:end], "big")
    version, lowest, length, checksum = number(8, 10), number(10, 12), number(12, 20), number(20, 24)
    if not 0 < lowest <= version:
        raise Unreadable(f"version {version} with lowest compatible version {lowest}")
    if lowest > VERSION:
        raise Unreadable(f"needs a reader of version {lowest}")
    if len(image) != HEADER + length:
        raise Unreadable("cut off" if len(image) < HEADER + length else "octets after the end")
    if zlib.crc32(image[:20] + image[HEADER:]) != checksum:
        raise Unreadable("damaged")
    return version, image[HEADER:]


def keys_once(pairs):
    """A map as a dictionary, unless it has a key twice."""
    fields = dict(pairs)
    if len(fields) != len(pairs):
        raise Unreadable("a key twice")
    return fields


def check_depth(value, depth=1):
    """Maps and lists that are too deep."""
    if isinstance(value, (dict, list)):
        if depth > MAX_DEPTH:
            raise Unreadable("too deep")
        for inner in value.values() if isinstance(value, dict) else value:
            check_depth(inner, depth + 1)


def scalar(value, kind, place):
    """A value that is no map."""
    if kind == "bool":
        good = isinstance(value, bool)
    elif kind == "text":
        good = isinstance(value, str) and len(value.encode()) <= MAX_TEXT
    elif kind == "octets":
        good = isinstance(value, bytes)
        value = value.hex() if good else value
    elif kind == "names":
        good = isinstance(value, list) and len(value) <= 64 and all(isinstance(name, str) for name in value)
    else:
        bits = int(kind[1:])
        lowest = -(1 << bits - 1) if kind[0] == "i" else 0
        good = isinstance(value, int) and not isinstance(value, bool) and lowest <= value < lowest + (1 << bits)
    if not good:
        raise Unreadable(f"{place}: not {kind}")
    return value


def structure(value, fields, place):
    """A map, with all fields that it can have."""
    if not isinstance(value, dict):
        raise Unreadable(f"{place or 'payload'}: not a map")
    result = {}
    for name, kind in fields.items():
        required, name = name.endswith("!"), name.rstrip("!")
        inner = f"{place}.{name}".lstrip(".")
        field = value.get(name)
        if field is None:
            if required:
                raise Unreadable(f"{inner} is missing")
            result[name] = None
        elif isinstance(kind, dict):
            result[name] = structure(field, kind, inner)
        elif isinstance(kind, list):
            if not isinstance(field, list):
                raise Unreadable(f"{inner}: not a list")
            if len(field) > MAX_LAYERS:
                raise Unreadable(f"{inner}: more than {MAX_LAYERS}")
            result[name] = [structure(item, kind[0], f"{inner}[{at}]") for at, item in enumerate(field)]
        else:
            result[name] = scalar(field, kind, inner)
    return result


def check_subject(image, version):
    """Not a connection and a listener at once, nor neither."""
    if version < 3:
        connection, listener = image["ip"] or image["tcp"], image["listen"]
    else:
        connection, listener = image["subject"]["connection"], image["subject"]["listener"]
        if connection is None and listener is None:
            raise Unreadable("subject: neither a connection nor a listener")
    if connection is not None and listener is not None:
        raise Unreadable("subject: a listener and a connection")


def read(image):
    """The image as a dictionary."""
    version, octets = payload(image)
    fields, critical = (IMAGE_BEFORE_3, CRITICAL_BEFORE_3) if version < 3 else (IMAGE, CRITICAL)
    try:
        # One that is not the envelope's alone is extra data, which unpackb refuses.
        value = msgpack.unpackb(octets, raw=False, object_pairs_hook=keys_once)
    except (ValueError, RecursionError) as error:
        raise Unreadable(f"payload: {error}") from error
    check_depth(value)
    result = structure(value, fields, "")
    for name in result["critical"]:
        if name not in critical:
            raise Unreadable(f"critical part {name!r} is not known")
        part = result
        for step in critical[name]:
            part = part and part[step]
        if part is None:
            raise Unreadable(f"critical part {name!r} is missing")
    check_subject(result, version)
    return result


def main():
    try:
        with open(sys.argv[1], "rb") as file:
            print(json.dumps(read(file.read())))
    except Unreadable as error:
        sys.exit(f"{sys.argv[1]}: {error}")


if __name__ == "__main__":
    main()
