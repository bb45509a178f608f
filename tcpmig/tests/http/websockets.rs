//! WebSockets that move under a client that knows nothing of it: Python's `websockets`.

use std::time::Duration;

use crate::scene::{Client, OnB, Scene};
use crate::support::{kernel_test, until};

/// What the programs share: a connection that stays the same, and lines to wait for.
const PREAMBLE: &str = r"
import asyncio, sys, websockets
URL = 'ws://198.18.0.80:8080/chat'
def numbered(begin, size):
    return bytes((at // 4 + 1).to_bytes(8, 'big')[4 + at % 4] for at in range(begin, begin + size))
async def go():
    return await asyncio.get_running_loop().run_in_executor(None, sys.stdin.readline)
def say(*words):
    print(*words, flush=True)
def run(session, url=URL, **options):
    async def whole():
        async with websockets.connect(url, max_size=None, **options) as ws:
            port = ws.local_address[1]
            say('open')
            await session(ws)
            assert ws.local_address[1] == port
            assert ws.open, ws.close_reason
        assert ws.close_code == 1000, ws.close_code
    asyncio.run(whole())
";

pub(crate) fn python(scene: &Scene, path: &str, program: &str) -> Client {
    let preamble = PREAMBLE.replace("/chat", path);
    let mut client = scene.python(&format!("{preamble}\n{program}"));
    client.says("open");
    client
}

kernel_test!(a_websocket_moves_between_messages, || between_messages(
    "/chat"
));

pub(crate) fn between_messages(path: &str) {
    let mut scene = Scene::new();
    let mut client = python(
        &scene,
        path,
        "async def session(ws):\n    \
             while await go():\n        \
                 for message in 'text', b'octets', '', b'', 'é' * 500, b'x' * 126, b'x' * 70000:\n            \
                     await ws.send(message)\n            \
                     assert await ws.recv() == message\n        \
                 await (await ws.ping())\n        \
                 await ws.send('who')\n        \
                 say(await ws.recv())\n\
         run(session)\n",
    );
    for hop in 1..=20 {
        client.go();
        let host = ["a", "b"][scene.at];
        client.says(&format!("{host} {}", hop * 8));
        scene.hop();
    }
    client.end_of_python();
}

kernel_test!(large_messages_are_whole_wherever_they_are_cut, || {
    large_messages("/chat");
});

pub(crate) fn large_messages(path: &str) {
    let mut scene = Scene::new();
    let mut client = python(
        &scene,
        path,
        "async def session(ws):\n    \
             for number in range(60):\n        \
                 message = number.to_bytes(4, 'big') * 250_000\n        \
                 await ws.send(message)\n        \
                 say(number)\n        \
                 assert await ws.recv() == message\n    \
             say('end')\n    \
             await go()\n\
         run(session)\n",
    );
    for number in 0..60 {
        client.says(&number.to_string());
        // It goes on meanwhile.
        if number % 5 == 0 {
            scene.hop();
        }
    }
    client.says("end");
    client.end_of_python();
}

kernel_test!(a_websocket_moves_between_the_peers_fragments, || {
    between_fragments("/chat");
});

pub(crate) fn between_fragments(path: &str) {
    let mut scene = Scene::new();
    let mut client = python(
        &scene,
        path,
        "async def session(ws):\n    \
             parts = [numbered(i * 1000, 1000 * (i % 3)) for i in range(30)]\n    \
             async def fragments():\n        \
                 for number, part in enumerate(parts):\n            \
                     if number % 4 == 1:\n                \
                         await (await ws.ping(b'%d' % number))\n            \
                     yield part\n            \
                     say(number)\n            \
                     await go()\n    \
             for _ in range(2):\n        \
                 await ws.send(fragments())\n        \
                 assert await ws.recv() == b''.join(parts)\n    \
             await ws.send('who')\n    \
             say(await ws.recv())\n    \
             await go()\n\
         run(session)\n",
    );
    for _ in 0..2 {
        for number in 0..30 {
            client.says(&number.to_string());
            if number % 3 == 0 {
                scene.hop();
            }
            client.go();
        }
    }
    client.says("a 3");
    client.end_of_python();
}

kernel_test!(a_websocket_moves_between_the_servers_fragments, || {
    let mut scene = Scene::new();
    let mut client = python(
        &scene,
        "/chat",
        "async def session(ws):\n    \
             await ws.send('fragments 2000 100')\n    \
             assert await ws.recv() == numbered(0, 200_000)\n    \
             say('end')\n    \
             await go()\n\
         run(session)\n",
    );
    for _ in 0..10 {
        scene.hop();
    }
    client.says("end");
    client.end_of_python();
});

/// Python's `websockets` without I/O of its own: its bytes are cut where the test wants.
const BY_HAND: &str = r"
import socket
try:
    from websockets.client import ClientProtocol as Connection
except ImportError:
    from websockets.client import ClientConnection as Connection
from websockets.uri import parse_uri
from websockets.frames import OP_PONG, OP_CLOSE
sock = socket.create_connection(('198.18.0.80', 8080), timeout=30)
ws = Connection(parse_uri(URL), max_size=None)
ws.send_request(ws.connect())
def whole_stream():
    return b''.join(ws.data_to_send())
def events():
    while True:
        for event in ws.events_received():
            yield event
        received = sock.recv(65536)
        assert received, 'the server closed it'
        ws.receive_data(received)
sock.sendall(whole_stream())
events = events()
assert next(events).status_code == 101
say('open')
";

kernel_test!(a_websocket_may_be_cut_anywhere, || cut_anywhere("/chat"));

pub(crate) fn cut_anywhere(path: &str) {
    let mut scene = Scene::new();
    let program = "
cut = 0
while True:
    ws.send_text('één'.encode()[:4], fin=False)
    ws.send_ping(b'still there?')
    ws.send_continuation('één'.encode()[4:], fin=True)
    ws.send_binary(bytes(range(130)))
    whole = whole_stream()
    if cut == len(whole):
        break
    sock.sendall(whole[:cut])
    say(cut)
    sys.stdin.readline()
    sock.sendall(whole[cut:])
    frame = next(events)
    # Where the pong was under way, it comes twice.
    assert frame.opcode == OP_PONG and frame.data == b'still there?', frame
    frame = next(events)
    if frame.opcode == OP_PONG:
        frame = next(events)
    assert frame.data == 'één'.encode(), frame
    frame = next(events)
    assert frame.data == bytes(range(130)), frame
    cut += 1
say('end')
";
    let mut client = python(&scene, path, &format!("{BY_HAND}{program}"));
    let mut cut = 0;
    loop {
        let line = client.line();
        if line == "end\n" {
            break;
        }
        assert_eq!(line, format!("{cut}\n"));
        // Sometimes the library has read the half, sometimes it is in the socket.
        if cut % 4 != 0 {
            scene.take_turns();
        }
        scene.hop();
        client.go();
        cut += 1;
    }
    assert!(cut > 150, "{cut}");
    client.end();
}

kernel_test!(a_websocket_of_a_slow_reader_is_not_held_up, || {
    let mut scene = Scene::new();
    let program = "
ws.send_text(b'fragments 400 50000')
sock.sendall(whole_stream())
say('asked')
sys.stdin.readline()
got = b''
for frame in events:
    got += frame.data
    if frame.fin:
        break
assert got == numbered(0, 20_000_000), len(got)
say('end')
";
    let mut client = python(&scene, "/chat", &format!("{BY_HAND}{program}"));
    client.says("asked");
    for _ in 0..4 {
        scene.hop();
    }
    client.go();
    client.says("end");
    client.end();
});

kernel_test!(a_websocket_that_is_being_closed_stays, || being_closed(
    "/chat"
));

pub(crate) fn being_closed(path: &str) {
    let scene = Scene::with(&OnB::Visits, Duration::from_millis(300));
    let program = "
ws.send_text(b'close')
sock.sendall(whole_stream())
while not (received := sock.recv(65536)):
    pass
say('closing')
sys.stdin.readline()
ws.receive_data(received)
sock.sendall(whole_stream())
assert sock.recv(1) == b''
say('end')
";
    let mut client = python(&scene, path, &format!("{BY_HAND}{program}"));
    client.says("closing");
    let why = scene.stays();
    assert!(why.contains("the WebSocket is being closed"), "{why}");
    client.go();
    client.says("end");
    client.end();
    until("it is over", || scene.counts() == [0, 0]);
}

kernel_test!(a_handler_that_is_at_work_keeps_its_websocket, || at_work(
    "/chat"
));

pub(crate) fn at_work(path: &str) {
    let mut scene = Scene::with(&OnB::Visits, Duration::from_millis(300));
    let mut client = python(
        &scene,
        path,
        "async def session(ws):\n    \
             await ws.send('slow')\n    \
             assert await ws.recv() == 'at last'\n    \
             while await go():\n        \
                 await ws.send('who')\n        \
                 say(await ws.recv())\n\
         run(session)\n",
    );
    scene.slow_begins();
    let why = scene.stays();
    assert!(
        why.contains("the handler of the WebSocket is still at work"),
        "{why}"
    );
    scene.slow.release.notify_one();
    client.go();
    client.says("a 2");
    scene.hop();
    client.go();
    client.says("b 3");
    client.end_of_python();
}

const WHO: &str = "
async def session(ws):
    while await go():
        await ws.send('who')
        say(await ws.recv())
";

kernel_test!(a_target_without_websockets_refuses_one, || {
    let scene = Scene::with(&OnB::NoWebSockets, Duration::from_secs(5));
    let mut client = python(&scene, "/chat", &format!("{WHO}run(session)"));
    let why = scene.stays();
    let reason = "refused it: the connection is a WebSocket, and this server has no handler";
    assert!(why.contains(reason), "{why}");
    client.go();
    client.says("a 1");
    client.end_of_python();
});

kernel_test!(a_websocket_with_extensions_stays, || {
    let scene = Scene::new();
    let session = "async def session(ws):\n    await go()\n";
    let run = "run(session, URL.replace('chat', 'compressed'), compression='deflate')";
    let client = python(&scene, "/chat", &format!("{session}{run}"));
    let why = scene.stays();
    assert!(why.contains("the WebSocket has extensions"), "{why}");
    client.end_of_python();
});

kernel_test!(a_drained_server_loses_http_and_websockets_alike, || {
    let mut scene = Scene::new();
    let chat = format!("{WHO}run(session)");
    let mut clients = [
        python(&scene, "/chat", &chat),
        python(&scene, "/chat", &chat),
    ];
    let url = format!("{}/chunked/40000000", crate::scene::URL);
    let mut curl = scene.curl(&[&url]);
    let mut body = curl.read(1_000_000);
    for round in 1..=4 {
        until("all live here", || scene.counts()[scene.at] == 3);
        assert_eq!(scene.hop_all(), 3);
        for client in &mut clients {
            client.go();
            let host = ["a", "b"][scene.at];
            client.says(&format!("{host} {round}"));
        }
        body.extend(curl.read(1_000_000));
    }
    clients.into_iter().for_each(Client::end_of_python);
    body.extend(curl.end_of_curl(1));
    assert!(
        body == crate::support::numbered(0, 40_000_000),
        "{} bytes",
        body.len()
    );
});
