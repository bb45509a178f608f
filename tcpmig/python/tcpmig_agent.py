"""Gives TCP connections to other hosts and takes them in, through the tcpmig agent of this host.

Needs nothing but Python 3.9 and an asyncio event loop. AGENT.md specifies the protocol; counter_server.py beside this file is an
example.

    agent = await Agent.connect("/run/tcpmig/agent.sock")
    await agent.register("chat", ["10.0.0.1:7000"], accept=accept)
    outcome = await agent.give("chat", sock, [("org.example.chat", 1, state)], to="b.example")
    if outcome.is_kept: ...          # it goes on here, else close `sock`
    async for event in agent.events(): ...   # Arrived, Drain, Want

A socket that is given is not touched until its outcome is there. If the agent ends meanwhile, this waits for the next one and
asks that what became of the connection.
"""

import asyncio
import os
import socket
import struct
import sys
from dataclasses import dataclass, field

DEFAULT_SOCKET = "/run/tcpmig/agent.sock"
VERSION = 1
MAX_PACKET = 64 << 10
PIECE = 48 << 10
AGAIN = 0.25


# MessagePack, as far as the protocol uses it.


def _sized(value, fix, codes):
    """The head of something that has a length: in the first byte, or behind one of these codes."""
    if fix is not None and value <= fix[1]:
        return bytes([fix[0] | value])
    for code, form in codes:
        if code is not None and value < 1 << 8 * struct.calcsize(form):
            return bytes([code]) + struct.pack(form, value)
    raise ValueError("too long")


def pack(value):
    """Encodes None, booleans, integers, str, bytes, lists and dicts."""
    if value is None:
        return b"\xc0"
    if value is True or value is False:
        return b"\xc3" if value else b"\xc2"
    if isinstance(value, int):
        if value >= 0:
            return _sized(value, (0, 127), [(0xCC, ">B"), (0xCD, ">H"), (0xCE, ">I"), (0xCF, ">Q")])
        return b"\xd3" + struct.pack(">q", value)
    if isinstance(value, str):
        data = value.encode()
        return _sized(len(data), (0xA0, 31), [(0xD9, ">B"), (0xDA, ">H"), (0xDB, ">I")]) + data
    if isinstance(value, (bytes, bytearray, memoryview)):
        data = bytes(value)
        return _sized(len(data), None, [(0xC4, ">B"), (0xC5, ">H"), (0xC6, ">I")]) + data
    if isinstance(value, (list, tuple)):
        head = _sized(len(value), (0x90, 15), [(0xDC, ">H"), (0xDD, ">I")])
        return head + b"".join(map(pack, value))
    if isinstance(value, dict):
        head = _sized(len(value), (0x80, 15), [(0xDE, ">H"), (0xDF, ">I")])
        return head + b"".join(pack(key) + pack(one) for key, one in value.items())
    raise TypeError(f"{type(value)} has no encoding here")


_NUMBERS = {
    0xCA: ">f", 0xCB: ">d", 0xCC: ">B", 0xCD: ">H", 0xCE: ">I", 0xCF: ">Q",
    0xD0: ">b", 0xD1: ">h", 0xD2: ">i", 0xD3: ">q",
}  # fmt: skip
_LENGTHS = {
    0xC4: (">B", "bin"), 0xC5: (">H", "bin"), 0xC6: (">I", "bin"),
    0xD9: (">B", "str"), 0xDA: (">H", "str"), 0xDB: (">I", "str"),
    0xDC: (">H", "list"), 0xDD: (">I", "list"), 0xDE: (">H", "map"), 0xDF: (">I", "map"),
}  # fmt: skip


def unpack(data):
    """Decodes one value that takes all of the bytes."""
    try:
        value, end = _unpack(memoryview(data), 0, 16)
    except (IndexError, struct.error):
        raise ValueError("cut") from None
    if end != len(data):
        raise ValueError("bytes follow the value")
    return value


def _unpack(data, at, depth):
    if depth == 0:
        raise ValueError("too deep")
    code = data[at]
    at += 1
    if code <= 0x7F:
        return code, at
    if code >= 0xE0:
        return code - 256, at
    if code in (0xC0, 0xC2, 0xC3):
        return {0xC0: None, 0xC2: False, 0xC3: True}[code], at
    if code in _NUMBERS:
        form = _NUMBERS[code]
        return struct.unpack_from(form, data, at)[0], at + struct.calcsize(form)
    if code <= 0x8F:
        length, kind = code & 15, "map"
    elif code <= 0x9F:
        length, kind = code & 15, "list"
    elif code <= 0xBF:
        length, kind = code & 31, "str"
    elif code in _LENGTHS:
        form, kind = _LENGTHS[code]
        length = struct.unpack_from(form, data, at)[0]
        at += struct.calcsize(form)
    else:
        raise ValueError(f"code {code:#x}")
    if kind in ("bin", "str"):
        if at + length > len(data):
            raise ValueError("cut")
        octets = bytes(data[at : at + length])
        return (octets if kind == "bin" else octets.decode()), at + length
    if kind == "list":
        items = []
        for _ in range(length):
            item, at = _unpack(data, at, depth - 1)
            items.append(item)
        return items, at
    pairs = {}
    for _ in range(length):
        key, at = _unpack(data, at, depth - 1)
        pairs[key], at = _unpack(data, at, depth - 1)
    return pairs, at


# What the agent says of connections.


class Refused(Exception):
    """The agent, or an `accept`, says no: a code of AGENT.md, and a reason for a person to read."""

    def __init__(self, code, reason):
        super().__init__(f"{reason} ({code})")
        self.code, self.reason = code, reason


@dataclass
class Outcome:
    """What became of a connection that was given away."""

    fate: str  # moved, kept, lost, gone
    code: str = ""
    reason: str = ""
    handover: str = ""
    report: dict = field(default_factory=dict)

    @property
    def is_kept(self):
        """Whether it goes on here. If not, close its socket: nothing of that reaches the peer."""
        return self.fate == "kept"


@dataclass
class Offer:
    """A connection that another host offers."""

    service: str
    local: tuple
    remote: tuple
    host: str
    layers: list  # of (kind, version, payload), from the bottom up


@dataclass
class Arrived:
    """A connection that moved here: write `unwritten` before anything else."""

    offer: Offer
    sock: socket.socket
    unwritten: bytes


@dataclass
class Drain:
    """A service is to give its connections to these hosts, in turn."""

    service: str
    hosts: list
    _left: object

    def left(self, count):
        """Tells how many connections are left: when the server is through, and again at 0."""
        self._left(count)


@dataclass
class Want:
    """Somebody wants one connection, by its peer, to move to this host: give it if it is here and can."""

    service: str
    remote: tuple
    host: str


def _ends(text):
    """Both ends of a flow, each as (address, port)."""

    def end(text):
        host, port = text.rsplit(":", 1)
        return host.strip("[]"), int(port)

    local, remote = text.split(",")
    return end(local), end(remote)


def _flow(sock):
    def text(name):
        host = name[0].removeprefix("::ffff:")
        return f"[{host}]:{name[1]}" if ":" in host else f"{host}:{name[1]}"

    return f"{text(sock.getsockname())},{text(sock.getpeername())}"


def _encode_layers(layers):
    return pack([{"kind": kind, "version": version, "payload": bytes(payload)} for kind, version, payload in layers])


def _decode_layers(octets):
    layers = unpack(octets) if octets else []
    return [(layer["kind"], layer["version"], layer["payload"]) for layer in layers]


class _Given:
    """A connection that was given and whose outcome is not known."""

    def __init__(self, service, sock):
        self.service, self.sock, self.flow = service, sock, _flow(sock)
        self.outcome = asyncio.get_running_loop().create_future()


class Agent:
    """The agent of this host. Made by `connect`; ends with `close`."""

    @classmethod
    async def connect(cls, path=DEFAULT_SOCKET):
        """Connects. OSError if there is no agent; ConnectionError if it does not talk to this user."""
        agent = cls(path)
        await agent._greet()
        agent._task = asyncio.create_task(agent._run())
        return agent

    def __init__(self, path):
        self.path = path
        self.host = None
        self._id = 0
        self._answers = {}  # by id: a future
        self._given = {}  # by id: _Given
        self._offers = {}  # by the agent's id: an Offer that was taken
        self._services = {}  # by name: (id, fields, accept)
        self._pieces = {}
        self._events = asyncio.Queue()
        self._turns = None
        self._sock = None

    # For servers.

    async def register(self, service, addresses, accept=None, sessions=None):
        """Serves a service on these addresses. `accept`, a coroutine function, is asked about each Offer and raises Refused if the
        connection cannot go on here; without it none is taken. Raises Refused if the agent does not allow it."""
        fields = {"service": service, "addresses": list(addresses), "takes": accept is not None}
        if sessions is not None:
            fields["sessions"] = [{"kind": kind, "oldest": old, "newest": new} for kind, old, new in sessions]
        self._services[service] = (fields, accept)
        try:
            await self._ask("register", fields)
        except Refused:
            del self._services[service]
            raise

    async def give(self, service, sock, layers, to):
        """Gives a connection away, which nobody uses any more, and returns its Outcome. Its socket stays open: close it unless the outcome is
        that it is kept."""
        given = _Given(service, sock)
        async with self._turns:
            message_id = self._next()
            self._given[message_id] = given
            self._send("give", {"id": message_id, "service": service, "to": to}, sock, ("layers", _encode_layers(layers)))
            return await given.outcome

    async def status(self):
        """What the agent does and knows, as AGENT.md has it."""
        return await self._ask("status", {})

    async def events(self):
        """Arrived, Drain and Want, as they come, until `close`."""
        while (event := await self._events.get()) is not None:
            yield event

    async def close(self):
        """Ends the link. What was given goes on without its outcome."""
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)
        self._hang_up()
        self._events.put_nowait(None)

    # The link.

    def _next(self):
        self._id += 1
        return self._id

    async def _ask(self, name, fields):
        message_id = self._next()
        answer = self._answers[message_id] = asyncio.get_running_loop().create_future()
        self._send(name, {"id": message_id, **fields})
        try:
            return await answer
        finally:
            self._answers.pop(message_id, None)

    async def _greet(self):
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        sock.setblocking(False)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4 * MAX_PACKET)
        try:
            sock.connect(self.path)
        except BaseException:
            sock.close()
            raise
        self._sock, self._queue = sock, []
        self._pieces.clear()
        self._offers.clear()
        self._send("hello", {"oldest": VERSION, "newest": VERSION})
        try:
            name, fields, _ = await asyncio.wait_for(self._receive(), 10)
        except BaseException:
            self._hang_up()
            raise
        if name != "welcome":
            self._hang_up()
            raise ConnectionError(f"the agent says {name} instead of welcome")
        self.host = fields["host"]
        if self._turns is None:
            self._turns = asyncio.Semaphore(fields["gives"])

    def _hang_up(self):
        if self._sock is not None:
            loop = asyncio.get_running_loop()
            loop.remove_reader(self._sock)
            loop.remove_writer(self._sock)
            self._sock.close()
            self._sock = None
        for _, descriptor in getattr(self, "_queue", []):
            if descriptor is not None:
                os.close(descriptor)
        self._queue = []

    async def _run(self):
        while True:
            try:
                while True:
                    self._hear(*await self._receive())
            except (OSError, EOFError, ValueError, KeyError):
                self._hang_up()
            for answer in self._answers.values():
                if not answer.done():
                    answer.set_exception(ConnectionError("the agent is gone"))
            while True:
                try:
                    await self._greet()
                    break
                except (OSError, EOFError, ValueError, KeyError, asyncio.TimeoutError):
                    await asyncio.sleep(AGAIN)
            for fields, _ in self._services.values():
                self._send("register", {"id": self._next(), **fields})
            for message_id, given in self._given.items():
                fields = {"id": message_id, "service": given.service, "flow": given.flow}
                self._send("recover", fields, given.sock)

    def _send(self, name, fields, sock=None, long=None):
        """Sends a message, after the pieces of what is too long for it."""
        if long is not None:
            key, octets = long
            while len(octets) > PIECE:
                self._put({"piece": {"id": fields["id"], "octets": octets[:PIECE]}}, None)
                octets = octets[PIECE:]
            fields = {**fields, key: octets}
        self._put({name: fields}, sock)

    def _put(self, message, sock):
        if self._sock is None:
            return  # It is asked about at the next link.
        # A duplicate: it may wait, and its owner may close its own.
        descriptor = None if sock is None else os.dup(sock.fileno())
        self._queue.append((pack(message), descriptor))
        if len(self._queue) == 1:
            self._flush()

    def _flush(self):
        loop = asyncio.get_running_loop()
        while self._queue:
            packet, descriptor = self._queue[0]
            rights = []
            if descriptor is not None:
                rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, struct.pack("i", descriptor))]
            try:
                self._sock.sendmsg([packet], rights)
            except BlockingIOError:
                loop.add_writer(self._sock, self._flush)
                return
            except OSError:
                # The reader sees the end of the link.
                break
            self._queue.pop(0)
            if descriptor is not None:
                os.close(descriptor)
        loop.remove_writer(self._sock)

    async def _receive(self):
        """The next message: its name, its fields, and the descriptor that came with it."""
        while True:
            await readable(self._sock)
            try:
                packet, rights, flags, _ = self._sock.recvmsg(
                    MAX_PACKET, socket.CMSG_SPACE(4), socket.MSG_CMSG_CLOEXEC
                )
            except (BlockingIOError, ConnectionResetError):
                # An agent that died before it had read everything: that is said once, and before what it had sent.
                continue
            descriptor = None
            for level, kind, data in rights:
                if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
                    (descriptor,) = struct.unpack("i", data[:4])
            if not packet:
                raise EOFError
            if flags & socket.MSG_TRUNC:
                raise ValueError("a packet is cut")
            ((name, fields),) = unpack(packet).items()
            if name == "piece":
                self._pieces.setdefault(fields["id"], bytearray()).extend(fields["octets"])
                continue
            for key in ("layers", "unwritten"):
                if key in fields:
                    fields[key] = bytes(self._pieces.pop(fields["id"], b"")) + fields[key]
            return name, fields, descriptor

    def _hear(self, name, fields, descriptor):
        message_id = fields.get("id")
        if name in ("moved", "kept", "lost", "gone"):
            given = self._given.pop(message_id, None)
            if given is not None and not given.outcome.done():
                known = ("code", "reason", "handover", "report")
                given.outcome.set_result(Outcome(name, **{key: fields[key] for key in known if key in fields}))
        elif name in ("done", "status", "failed"):
            answer = self._answers.get(message_id)
            if answer is not None and not answer.done():
                if name == "failed":
                    answer.set_exception(Refused(fields["code"], fields["reason"]))
                else:
                    answer.set_result(fields.get("status"))
        elif name == "offer":
            local, remote = _ends(fields["flow"])
            layers = _decode_layers(fields["layers"])
            offer = Offer(fields["service"], local, remote, fields["from"], layers)
            asyncio.ensure_future(self._decide(message_id, offer, self._sock))
        elif name == "withdrawn":
            self._offers.pop(message_id, None)
        elif name == "arrived":
            offer = self._offers.pop(message_id, None)
            if descriptor is None:
                print("tcpmig: a connection is lost, for which this process has no room (RLIMIT_NOFILE)", file=sys.stderr)
            elif offer is not None:
                sock, descriptor = socket.socket(fileno=descriptor), None
                sock.setblocking(False)
                self._events.put_nowait(Arrived(offer, sock, fields["unwritten"]))
        elif name == "drain":

            def left(count):
                self._send("drained", {"id": message_id, "left": count})

            self._events.put_nowait(Drain(fields["service"], fields["to"], left))
        elif name == "want":
            self._events.put_nowait(Want(fields["service"], _ends(fields["flow"])[1], fields["to"]))
        # `doubt`: the outcome follows.
        if descriptor is not None:
            os.close(descriptor)

    async def _decide(self, message_id, offer, link):
        """Asks the server about an offer. Its numbers are those of this link alone."""
        _, accept = self._services.get(offer.service, (None, None))
        try:
            if accept is None:
                raise Refused("other", "the server takes no connections")
            await accept(offer)
        except Refused as refused:
            answer, fields = "refuse", {"code": refused.code, "reason": refused.reason}
        except Exception as error:
            answer, fields = "refuse", {"code": "other", "reason": repr(error)}
        else:
            answer, fields = "take", {}
        if link is self._sock:
            if answer == "take":
                self._offers[message_id] = offer
            self._send(answer, {"id": message_id, **fields})


async def readable(sock):
    """Waits until there is something to read. Nothing is lost if it is cancelled, unlike with `loop.sock_recv`."""
    await _ready(sock, "reader")


async def writable(sock):
    """Waits until there is room to write; as `readable`."""
    await _ready(sock, "writer")


async def _ready(sock, what):
    loop = asyncio.get_running_loop()
    ready = loop.create_future()
    getattr(loop, f"add_{what}")(sock, lambda: ready.done() or ready.set_result(None))
    try:
        await ready
    finally:
        if sock.fileno() >= 0:
            getattr(loop, f"remove_{what}")(sock)
