//! Connections that a handler takes by `hyper::upgrade`: axum's WebSockets.

use crate::log;
use crate::scene::Scene;
use crate::support::{kernel_test, until};

kernel_test!(axums_websockets_work_and_stay, || {
    log::keep();
    let scene = Scene::new();
    let mut client = scene.python(
        "import asyncio, sys, websockets\n\
         async def run():\n    \
             async with websockets.connect('ws://198.18.0.80:8080/axum') as ws:\n        \
                 print('open')\n        \
                 while await asyncio.get_running_loop().run_in_executor(None, sys.stdin.readline):\n            \
                     for message in 'text', b'octets', 'x' * 70000:\n                \
                         await ws.send(message)\n                \
                         assert await ws.recv() == message\n            \
                     print('echoed')\n    \
             assert ws.close_code == 1000, ws.close_code\n\
         asyncio.run(run())\n",
    );
    client.says("open");
    for _ in 0..3 {
        client.go();
        client.says("echoed");
        let why = scene.stays();
        assert!(why.contains("WebSocketUpgrade"), "{why}");
    }
    assert_eq!(scene.counts(), [1, 0]);
    log::logged(
        "INFO",
        &["198.18.0.80:8080 <-> ", "upgraded", "hyper::upgrade"],
    );
    client.end_of_python();
    until("the connection is over", || scene.counts() == [0, 0]);
});
