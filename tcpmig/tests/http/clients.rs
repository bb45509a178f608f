//! Clients that know nothing of moves, through ten of them: each event once and in order, on one connection.

use std::env;
use std::process::Stdio;

use tcpmig_sys::kernel_test;

use crate::gateway::{COMPLETIONS, gateways, llm::Model, request};
use crate::scene::{Client, Scene, URL};

const TOKENS: u64 = 1000;
const MOVES: u64 = 10;

/// What the programs share.
const PREAMBLE: &str = r"
import json
def say(*words):
    print(*words, flush=True)
class Tokens:
    'Checks what comes, and says how far it is.'
    def __init__(self, name='once-0-', first=1):
        self.name, self.next = name, first
    def got(self, text):
        assert text == f'{self.name}{self.next}', (text, self.next)
        if self.next % 50 == 0:
            say(self.next)
        self.next += 1
";

/// A stream of tokens moves while this program reads it. It says every fiftieth token, and in the end how many it has had.
fn reads(python: &str, program: &str) {
    let (mut scene, models) = gateways(Model::GivesOnce);
    let mut client = start(&scene, python, program);
    for token in (50..=TOKENS).step_by(50) {
        client.says(&token.to_string());
        if token <= 50 * MOVES {
            scene.hop();
        }
    }
    client.says(&format!("{TOKENS} tokens"));
    client.end();
    assert_eq!(models.map(|models| models.asked()), [1, 0]);
}

fn start(scene: &Scene, python: &str, program: &str) -> Client {
    let mut command = scene.command(python);
    let program = program
        .replace("COMPLETIONS", COMPLETIONS)
        .replace("REQUEST", &format!("{:?}", request(TOKENS)))
        .replace("URL", URL);
    command
        .env("NO_PROXY", "*")
        .args(["-u", "-c", &format!("{PREAMBLE}{program}")])
        .stderr(Stdio::piped());
    Client(command.spawn().expect("python starts"))
}

kernel_test!(http_client_of_python, || reads(
    "/usr/bin/python3",
    r"
import http.client
connection = http.client.HTTPConnection('198.18.0.80', 8080, timeout=60)
connection.request('POST', 'COMPLETIONS', REQUEST, {'content-type': 'application/json'})
port = connection.sock.getsockname()[1]
response = connection.getresponse()
assert response.status == 200, response.status
tokens = Tokens()
while line := response.readline():
    if line.startswith(b'data: ') and line != b'data: [DONE]\n':
        tokens.got(json.loads(line[6:])['choices'][0]['delta']['content'])
say(tokens.next - 1, 'tokens')
# The connection is one of the server afterwards.
connection.request('POST', 'COMPLETIONS', '{}', {'content-type': 'application/json'})
assert connection.sock.getsockname()[1] == port
assert connection.getresponse().status == 400
"
));

/// A test that is not run with the others, because it needs more than they do.
macro_rules! client_test {
    ($name:ident, $needs:literal, $body:expr) => {
        #[test]
        #[ignore = concat!("needs ", $needs)]
        fn $name() {
            let path = concat!(module_path!(), "::", stringify!($name));
            tcpmig_sys::lab::isolated(tcpmig_sys::lab::test_name(path), $body);
        }
    };
}
pub(crate) use client_test;

mod of_pypi {
    use super::*;

    fn python() -> String {
        env::var("TCPMIG_CLIENTS_PYTHON")
            .expect("TCPMIG_CLIENTS_PYTHON names a python that has the packages: .ci/clients")
    }

    client_test!(openai, "packages of PyPI: .ci/clients", || reads(
        &python(),
        r"
from openai import OpenAI
client = OpenAI(base_url='URL/v1', api_key='none', max_retries=0)
tokens = Tokens()
for chunk in client.chat.completions.create(**json.loads(REQUEST)):
    tokens.got(chunk.choices[0].delta.content)
say(tokens.next - 1, 'tokens')
"
    ));
    client_test!(httpx_sse, "packages of PyPI: .ci/clients", || reads(
        &python(),
        r"
import httpx
from httpx_sse import connect_sse
tokens = Tokens()
kind = {'content-type': 'application/json'}
with httpx.Client(timeout=60) as client:
    with connect_sse(client, 'POST', 'URLCOMPLETIONS', content=REQUEST, headers=kind) as source:
        for event in source.iter_sse():
            assert int(event.id) == tokens.next, event
            if event.data != '[DONE]':
                tokens.got(json.loads(event.data)['choices'][0]['delta']['content'])
say(tokens.next - 1, 'tokens')
"
    ));
    client_test!(websockets, "packages of PyPI: .ci/clients", || {
        let mut scene = Scene::new();
        let mut client = start(
            &scene,
            &python(),
            r"
import sys
from websockets.sync.client import connect
with connect('URL/axum-chat'.replace('http', 'ws'), compression='deflate') as socket:
    port = socket.socket.getsockname()[1]
    say('open')
    for number in range(1000):
        message = str(number) * 1000
        socket.send(message)
        assert socket.recv() == message
        if number % 50 == 49:
            say(number + 1)
    socket.send('who')
    say(socket.recv())
    assert socket.socket.getsockname()[1] == port
",
        );
        client.says("open");
        for number in (50..=1000).step_by(50) {
            client.says(&number.to_string());
            if number <= 500 {
                scene.hop();
            }
        }
        client.says("a 1001");
        client.end();
    });
}
