//! Requests and responses of every shape.

use super::app::{PIECE, numbered};
use super::compare_all;
use super::wire::Step;

/// What a client says, and how.
#[derive(Clone)]
pub(super) struct Shape {
    pub(super) name: &'static str,
    steps: Vec<Step>,
    /// How many bytes the client reads at a time.
    pub(super) reads: usize,
    pub(super) half_close: bool,
    pub(super) settle: u64,
    pub(super) drain_within: u64,
    pub(super) absorb: usize,
    /// Nothing of it can move.
    pub(super) stays: bool,
    /// Nothing is answered.
    pub(super) silent: bool,
    /// Only as it is: what hyper does depends on how much it reads at once.
    uncut: bool,
}

const BIG: usize = 1 << 20;

fn send(name: &'static str, text: &str) -> Shape {
    Shape {
        name,
        steps: vec![Step::Send(text.as_bytes().to_vec())],
        reads: BIG,
        half_close: false,
        settle: 3,
        drain_within: 12,
        absorb: BIG,
        stays: false,
        silent: false,
        uncut: false,
    }
}

impl Shape {
    fn then(mut self, text: &str) -> Self {
        self.steps.push(Step::Send(text.as_bytes().to_vec()));
        self
    }

    fn end(mut self) -> Self {
        self.steps.push(Step::End);
        self
    }

    fn wait(mut self) -> Self {
        self.steps.extend((0..8).map(|_| Step::Wait));
        self
    }

    fn reads(mut self, reads: usize) -> Self {
        self.reads = reads;
        self
    }

    fn stays(mut self) -> Self {
        self.stays = true;
        self
    }

    fn silent(mut self) -> Self {
        self.silent = true;
        self
    }

    fn uncut(mut self) -> Self {
        self.uncut = true;
        self
    }

    /// The script, with what is sent at once cut in different ways.
    pub(super) fn cuts(&self) -> Vec<Vec<Step>> {
        let mut all = vec![self.steps.clone()];
        if self.uncut {
            return all;
        }
        let longest = self.steps.iter().map(|step| match step {
            Step::Send(bytes) => bytes.len(),
            _ => 0,
        });
        let longest = longest.max().unwrap_or(0);
        for size in [
            longest * 2 / 3,
            longest / 2,
            longest / 3,
            longest / 17,
            longest / 60,
        ] {
            let cut = self.steps.iter().flat_map(|step| match step {
                Step::Send(bytes) => bytes
                    .chunks(size.max(1))
                    .map(|piece| Step::Send(piece.to_vec()))
                    .collect(),
                other => vec![other.clone()],
            });
            all.push(cut.collect());
        }
        all
    }
}

fn get(path: &str) -> String {
    format!("GET {path} HTTP/1.1\r\nhost: x\r\n\r\n")
}

fn post(path: &str, headers: &str, body: &str) -> String {
    format!("POST {path} HTTP/1.1\r\nhost: x\r\n{headers}\r\n{body}")
}

fn upload(path: &str, body: &str) -> String {
    post(path, &format!("content-length: {}\r\n", body.len()), body)
}

const CHUNKED: &str = "transfer-encoding: chunked\r\n";
const CHUNKS: &str = "3\r\nabc\r\n00A;x=1\r\n0123456789\r\n0\r\n\r\n";
const TRAILERS: &str = "3\r\nabc\r\n0\r\nx-a: 1\r\nx-b: 0\r\n\r\n";

fn text(len: usize) -> String {
    String::from_utf8(numbered(0, len as u64)).unwrap()
}

#[test]
fn requests_without_a_body() {
    let hello = get("/hello/1");
    compare_all(vec![
        send("one request", &hello),
        send("one request and the end", &hello).wait().end(),
        send("the end at once", &hello).end(),
        send("the end during an answer", &get("/slow/5"))
            .end()
            .silent(),
        Shape {
            half_close: true,
            ..send("half closed", &get("/slow/5")).end()
        },
        Shape {
            half_close: true,
            ..send("half closed, pipelined", &(get("/slow/5") + &hello)).end()
        },
        send(
            "empty lines before it",
            &format!("\r\n\r\n\n{hello}\r\n{hello}"),
        ),
        send(
            "bare line feeds",
            "GET /hello/3 HTTP/1.1\nhost: x\n\nGET /hello/4 HTTP/1.1\n\n",
        ),
        send("two after each other", &hello)
            .then(&get("/slow/4"))
            .then(&hello),
        send("absolute target", &get("http://example.com/hello/3")),
        send("HEAD", &get("/hello/1").replace("GET", "HEAD")).then(&hello),
        send("HEAD of a file", &get("/file/99999").replace("GET", "HEAD")).then(&hello),
        send("no content", &(get("/status/204") + &hello)),
        send("not modified", &(get("/status/304") + &hello)),
        send("an informational status", &(get("/status/102") + &hello)).stays(),
        send(
            "a large head",
            &get("/hello/1").replace(
                "\r\n\r\n",
                &format!("\r\nx-large: {}\r\n\r\n", text(100_000)),
            ),
        ),
        send(
            "a head that is too large",
            &format!("GET / HTTP/1.1\r\nx: {}", text(500_000)),
        ),
        send(
            "many headers",
            &format!("GET / HTTP/1.1\r\n{}\r\n", "x: y\r\n".repeat(101)),
        ),
        send("not HTTP", "what is this?\r\n\r\n"),
        send(
            "not HTTP behind a request",
            &(get("/slow/3") + "what is this?\r\n\r\n" + &hello),
        ),
        // What hyper says to it in pieces depends on when it first looks at which.
        send("HTTP/2", "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n")
            .silent()
            .uncut()
            .stays(),
    ]);
}

#[test]
fn pipelined_requests() {
    let hello = get("/hello/1");
    let many: String = (0..70)
        .map(|number| get(&format!("/hello/{number}")))
        .collect();
    let mixed = get("/slow/3")
        + &upload("/upload", "0123456789")
        + &hello
        + &get("/file/30000")
        + &upload("/upload", "x")
        + &hello;
    compare_all(vec![
        send("pipelined", &hello.repeat(3)),
        send("many pipelined", &many),
        send("many pipelined to a slow reader", &many).reads(300),
        send("of every kind", &mixed),
        send("of every kind to a slow reader", &mixed).reads(2000),
        send(
            "chunked among them",
            &(get("/slow/3")
                + &post("/upload", CHUNKED, CHUNKS)
                + &post("/upload", CHUNKED, TRAILERS)
                + &hello),
        ),
        send(
            "large ones",
            &(get("/slow/3")
                + &upload("/upload", &text(30_000))
                + &hello
                + &upload("/slow-upload/1", &text(20_000))),
        ),
        send("behind one that closes", &(get("/close") + &hello)),
        send(
            "behind one that fails",
            &(get("/slow/3") + &get("/error/2") + &hello),
        ),
    ]);
}

#[test]
fn request_bodies() {
    let slow = get("/slow/4");
    let hello = get("/hello/1");
    let expect = "expect: 100-continue\r\ncontent-length: 10\r\n";
    compare_all(vec![
        // The case that lost bytes.
        send(
            "an upload behind a slow answer",
            &(slow.clone() + &upload("/upload", "0123456789")),
        ),
        send(
            "an upload behind a slow answer, in two",
            &(slow.clone() + &upload("/upload", "01234")),
        )
        .then("56789"),
        send("an upload", &upload("/upload", "0123456789")).then(&hello),
        send("chunked", &post("/upload", CHUNKED, CHUNKS)).then(&hello),
        send("chunked with trailers", &post("/upload", CHUNKED, TRAILERS)).then(&hello),
        send(
            "chunked behind a slow answer",
            &(slow.clone() + &post("/upload", CHUNKED, TRAILERS) + &hello),
        ),
        send(
            "read slowly",
            &(slow.clone() + &upload("/slow-upload/2", &text(3000)) + &hello),
        ),
        send(
            "large",
            &(slow.clone() + &upload("/upload", &text(100_000)) + &hello),
        ),
        send("expected", &post("/upload", expect, ""))
            .then("0123456789")
            .then(&hello),
        send(
            "expected and sent at once",
            &post("/upload", expect, "0123456789"),
        )
        .then(&hello),
        send(
            "expected behind a slow answer",
            &(slow.clone() + &post("/upload", expect, "")),
        )
        .then("0123456789")
        .then(&hello),
        send(
            "expected behind a slow answer, sent at once",
            &(slow.clone() + &post("/upload", expect, "0123456789") + &hello),
        ),
        send("expected and not read", &post("/early/10", expect, "")).stays(),
        send(
            "cut off",
            &post("/upload", "content-length: 10\r\n", "0123"),
        )
        .end()
        .silent(),
        send("malformed", &post("/upload", CHUNKED, "3\r\nabcd\r\n")).silent(),
        send(
            "with two lengths",
            &(slow.clone()
                + &post(
                    "/upload",
                    &format!("content-length: 4\r\n{CHUNKED}"),
                    CHUNKS,
                )
                + &hello),
        ),
        send("echoed", &upload("/echo", &text(2000))).then(&hello),
        send("echoed in chunks", &post("/echo", CHUNKED, CHUNKS)).then(&hello),
    ]);
}

#[test]
fn request_bodies_that_nobody_reads() {
    let hello = get("/hello/1");
    let never = "content-length: 1000000\r\n";
    compare_all(vec![
        // The case that was cut off.
        send(
            "a large answer before a body that does not come",
            &post("/early/300000", never, ""),
        )
        .reads(10_000)
        .stays(),
        send(
            "a large answer before a body, all read",
            &post("/early/300000", never, ""),
        )
        .stays(),
        send(
            "an answer before a body that does not come",
            &post("/early/10", never, "some"),
        )
        .stays(),
        send(
            "an answer behind a slow one before a body that does not come",
            &(get("/slow/3") + &post("/early/10", never, "some")),
        ),
        send(
            "a small body",
            &(upload("/early/10", "0123456789") + &hello),
        )
        .uncut(),
        send(
            "a small body and a slow reader",
            &(upload("/early/300000", "0123456789") + &hello),
        )
        .uncut()
        .reads(10_000),
        send(
            "a small body behind a slow answer",
            &(get("/slow/3") + &upload("/early/10", "0123456789") + &hello),
        )
        .uncut(),
        send(
            "a chunked body",
            &(post("/early/10", CHUNKED, CHUNKS) + &hello),
        )
        .stays(),
        send(
            "a request for a body",
            &(upload("/early/10", &hello) + &hello),
        )
        .uncut(),
        send(
            "no more than there is of a body",
            &(upload("/exactly/10", "0123456789") + &hello),
        )
        .uncut(),
        send(
            "no more than there is of a chunked body",
            &(post("/exactly/13", CHUNKED, CHUNKS) + &hello),
        )
        .uncut(),
        send(
            "no more than the first chunk",
            &(post("/exactly/3", CHUNKED, CHUNKS) + &hello),
        )
        .uncut(),
        send(
            "no more than the first bytes",
            &post("/exactly/3", never, &text(10_000)),
        ),
        send(
            "a body that is dropped later",
            &(upload("/dropped-later/3", &hello) + &hello),
        )
        .uncut(),
        send(
            "a body that is dropped later and does not come",
            &post("/dropped-later/3", never, "some"),
        ),
        send(
            "a body that is read later",
            &(upload("/read-later/3", &hello) + &hello),
        ),
        send(
            "a chunked body that is read later",
            &(post("/read-later/3", CHUNKED, CHUNKS) + &hello),
        ),
        send(
            "a body that is read later and comes later",
            &post("/read-later/1", "content-length: 8\r\n", "some"),
        )
        .then("more")
        .then(&hello),
    ]);
}

#[test]
fn responses() {
    let hello = get("/hello/1");
    let size = PIECE * 9 + 17;
    let trailers = "GET /trailers/3 HTTP/1.1\r\nhost: x\r\nte: trailers\r\n\r\n";
    let mut all = Vec::new();
    for reads in [BIG, 3000] {
        for (name, path) in [
            ("a file", format!("/file/{size}")),
            ("chunks", format!("/stream/{size}")),
            ("chunks and the end", format!("/stream-close/{size}")),
            ("an empty file", "/file/0".to_owned()),
            ("no chunks", "/stream/0".to_owned()),
            ("pieces", "/pieces/5".to_owned()),
        ] {
            let path = &path[..];
            let closes = path.starts_with("/stream-close");
            let stays = |shape: Shape| {
                if path == "/pieces/5" {
                    shape.stays()
                } else {
                    shape
                }
            };
            all.push(send(name, &(get(path) + &hello)).reads(reads));
            let old = get(path).replace("1.1", "1.0");
            all.push(stays(send(name, &old).reads(reads)));
            if !closes {
                let kept = old.replace("host: x", "connection: keep-alive");
                all.push(stays(send(name, &kept).then(&hello).reads(reads)));
            }
            let closed = get(path).replace("host: x", "connection: close");
            all.push(stays(send(name, &closed).reads(reads)));
        }
        all.push(send("trailers", &(trailers.to_owned() + &hello)).reads(reads));
        all.push(
            send(
                "trailers that are not wanted",
                &(get("/trailers/3") + &hello),
            )
            .reads(reads),
        );
        all.push(send("fails", &get("/fails/3")).reads(reads).stays());
        all.push(
            send(
                "fails behind a file",
                &(get("/file/20000") + &get("/fails/3")),
            )
            .reads(reads),
        );
        all.push(
            send("fails before its length", &get("/fails-with-length/3"))
                .reads(reads)
                .stays(),
        );
        all.push(
            send("ends before its length", &get("/short/3"))
                .reads(reads)
                .stays(),
        );
        all.push(
            send("fails at once", &get("/error/0"))
                .reads(reads)
                .stays()
                .silent(),
        );
        all.push(
            send(
                "fails behind an answer",
                &(get("/pieces/6") + &get("/error/0")),
            )
            .reads(reads),
        );
        all.push(
            send(
                "upload, then a file",
                &(upload("/upload", "abc") + &get("/file/20000") + &hello),
            )
            .reads(reads),
        );
    }
    for shape in &mut all {
        shape.uncut = true;
    }
    compare_all(all);
}

#[test]
fn upgrades() {
    let upgrade = |path: &str| {
        format!("GET {path} HTTP/1.1\r\nhost: x\r\nconnection: upgrade\r\nupgrade: echo\r\n\r\n")
    };
    let hello = get("/hello/1");
    compare_all(vec![
        send("upgraded", &upgrade("/switch/0"))
            .then("some bytes for the echo")
            .wait()
            .wait()
            .end(),
        send(
            "upgraded, bytes at once",
            &(upgrade("/switch/1") + "some bytes for the echo"),
        )
        .end(),
        send(
            "upgraded behind an answer",
            &(get("/slow/3") + &upgrade("/switch/1") + "bytes"),
        )
        .wait()
        .end(),
        send(
            "upgraded to a slow reader",
            &(upgrade("/switch/0") + &text(3000)),
        )
        .reads(50)
        .end()
        .stays(),
        send("CONNECT", "CONNECT x:1 HTTP/1.1\r\nhost: x\r\n\r\n")
            .then(&hello)
            .stays(),
        send(
            "an offer that is not taken",
            &(upgrade("/hello/1") + &hello),
        ),
        send(
            "an offer that is not taken, and the end",
            &upgrade("/close"),
        )
        .stays(),
        send(
            "switched by nobody",
            &(upgrade("/nobody-switches") + "bytes"),
        )
        .stays(),
        send(
            "switched without an offer",
            &(get("/nobody-switches") + &hello),
        )
        .stays(),
    ]);
}
