#!/usr/bin/env python3
"""A server whose connections move: it answers each line with its number and the line.

    counter_server.py --listen 10.0.0.1:7000 --service counter [--agent SOCKET] [--to HOST]

It needs no privileges. The agent's configuration has to name its user and the service. SIGUSR1 gives all connections to HOST; `tcpmig
drain` does as well, and ends the server when none is left.
"""

import argparse
import asyncio
import json
import signal
import socket
import sys

from tcpmig_agent import Agent, Arrived, Drain, Refused, Want, readable, writable

KIND, VERSION = "org.tcpmig.example.counter", 1
MUCH = 1 << 16


class Session:
    """One connection. Everything that is known of it is in here, so that it can stop between any two awaits."""

    def __init__(self, sock, count=0, unread=b"", unwritten=b""):
        self.sock, self.count, self.unread, self.unwritten = sock, count, unread, unwritten
        self.task = None

    async def run(self):
        """Until the peer is gone."""
        while True:
            self.answer()
            self.write()
            if self.unwritten:
                await writable(self.sock)
                continue
            await readable(self.sock)
            try:
                data = self.sock.recv(MUCH)
            except BlockingIOError:
                continue
            if not data:
                return
            self.unread += data

    def answer(self):
        *lines, self.unread = self.unread.split(b"\n")
        for line in lines:
            self.count += 1
            self.unwritten += b"%d %s\n" % (self.count, line)

    def write(self):
        try:
            sent = self.sock.send(self.unwritten) if self.unwritten else 0
        except BlockingIOError:
            sent = 0
        self.unwritten = self.unwritten[sent:]

    async def stop(self):
        """Brings it to a safe point: nobody uses the socket any more."""
        self.task.cancel()
        await asyncio.gather(self.task, return_exceptions=True)

    def layer(self):
        state = {"count": self.count, "unread": self.unread.hex(), "unwritten": self.unwritten.hex()}
        return (KIND, VERSION, json.dumps(state).encode())

    @classmethod
    def from_layer(cls, sock, payload, unwritten):
        state = json.loads(payload)
        # What was under way goes before what had not been given to the kernel.
        unwritten += bytes.fromhex(state["unwritten"])
        return cls(sock, state["count"], bytes.fromhex(state["unread"]), unwritten)


class Server:
    def __init__(self, agent, service):
        self.agent, self.service = agent, service
        self.sessions = set()

    def serve(self, session):
        async def run():
            try:
                await session.run()
            except OSError as error:
                print("error", error, session.sock, file=sys.stderr, flush=True)
            self.sessions.discard(session)
            session.sock.close()

        self.sessions.add(session)
        session.task = asyncio.ensure_future(run())

    async def accept(self, listener):
        loop = asyncio.get_running_loop()
        while True:
            sock, _ = await loop.sock_accept(listener)
            self.serve(Session(sock))

    async def give_all(self, hosts):
        """Gives each connection that is here now away."""
        gifts = [self.give(session, hosts[at % len(hosts)]) for at, session in enumerate(list(self.sessions))]
        await asyncio.gather(*gifts)

    async def give(self, session, to):
        await session.stop()
        if session not in self.sessions:
            return
        self.sessions.discard(session)
        outcome = await self.agent.give(self.service, session.sock, [session.layer()], to)
        print(outcome.fate, outcome.handover or outcome.reason, flush=True)
        if outcome.is_kept:
            self.serve(session)
        else:
            session.sock.close()

    async def take(self, offer):
        kinds = [(kind, version) for kind, version, _ in offer.layers]
        if kinds != [(KIND, VERSION)]:
            raise Refused("session", f"this server does not know {kinds}")


async def main():
    arguments = argparse.ArgumentParser()
    arguments.add_argument("--listen", required=True)
    arguments.add_argument("--service", required=True)
    arguments.add_argument("--agent", default="/run/tcpmig/agent.sock")
    arguments.add_argument("--to")
    arguments = arguments.parse_args()
    host, port = arguments.listen.rsplit(":", 1)
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.create_server((host.strip("[]"), int(port)), family=family)
    listener.setblocking(False)

    agent = await Agent.connect(arguments.agent)
    server = Server(agent, arguments.service)
    await agent.register(arguments.service, [arguments.listen], accept=server.take)
    accepting = asyncio.ensure_future(server.accept(listener))
    loop = asyncio.get_running_loop()
    loop.add_signal_handler(signal.SIGUSR1, lambda: asyncio.ensure_future(server.give_all([arguments.to])))
    print("ready", flush=True)

    async for event in agent.events():
        if isinstance(event, Arrived):
            ((_, _, payload),) = event.offer.layers
            server.serve(Session.from_layer(event.sock, payload, event.unwritten))
            print("arrived", *event.offer.remote, flush=True)
        elif isinstance(event, Want):
            wanted = [one for one in server.sessions if one.sock.getpeername()[:2] == event.remote]
            for session in wanted:
                asyncio.ensure_future(server.give(session, event.host))
        elif isinstance(event, Drain):
            accepting.cancel()
            listener.close()
            while server.sessions:
                await server.give_all(event.hosts)
                event.left(len(server.sessions))
                await asyncio.sleep(0.1 if server.sessions else 0)
            event.left(0)
            break
    print("empty", flush=True)
    await asyncio.sleep(0.2)
    await agent.close()


if __name__ == "__main__":
    asyncio.run(main())
