//! Many requests on connections that move.

use crate::scene::{Scene, URL};
use crate::support::{kernel_test, numbered, until};

kernel_test!(pythons_client_keeps_its_connection, || {
    let mut scene = Scene::new();
    let mut python = scene.python(
        "import http.client, sys\n\
         c = http.client.HTTPConnection('198.18.0.80', 8080, timeout=30)\n\
         c.connect(); port = c.sock.getsockname()[1]\n\
         for line in sys.stdin:\n    \
             c.request('GET', '/who', headers={'x-say': 'it is python'})\n    \
             print(c.getresponse().read().decode(), end='')\n    \
             assert c.sock.getsockname()[1] == port\n",
    );
    for visit in 1..=20 {
        python.go();
        let host = ["a", "b"][scene.at];
        assert_eq!(python.line(), format!("{host} {visit} it is python\n"));
        scene.hop();
    }
    drop(python.0.stdin.take());
    python.end();
});

kernel_test!(curl_fetches_many_on_one_connection, || {
    let mut scene = Scene::new();
    let url = format!("{URL}/chunked/500000");
    let mut curl = scene.curl(&vec![&url[..]; 100]);
    let mut body = Vec::new();
    for hop in 1..=10 {
        body.extend(curl.read(4_500_000 + hop));
        scene.hop();
    }
    body.extend(curl.end_of_curl(100));
    assert!(body == numbered(0, 500_000).repeat(100));
});

kernel_test!(wrk_sees_no_error, || {
    let mut scene = Scene::new();
    let directory = tempfile::tempdir().unwrap();
    let script = directory.path().join("check.lua");
    std::fs::write(
        &script,
        "response = function(status, headers, body)\n\
           if status ~= 200 or #body ~= 1000 then os.exit(7) end\n\
         end\n\
         done = function(summary, latency, requests)\n\
           local e = summary.errors\n\
           print('RESULT', summary.requests, e.connect + e.read + e.write + e.status + e.timeout)\n\
         end\n",
    )
    .unwrap();
    let mut command = scene.command("wrk");
    // Its own time limit for an answer is two seconds.
    command.args(["-t1", "-c16", "-d3600s", "--timeout", "120s", "-s"]);
    command.arg(&script);
    command.arg(format!("{URL}/file/1000"));
    let wrk = crate::scene::Client(command.spawn().expect("wrk starts"));
    until("wrk has connected", || scene.counts() == [16, 0]);
    for _ in 0..6 {
        assert_eq!(scene.hop_all(), 16);
        until("all have arrived", || scene.counts()[scene.at] == 16);
    }
    // It says what it saw when it is interrupted.
    let id = nix::unistd::Pid::from_raw(wrk.0.id().try_into().unwrap());
    nix::sys::signal::kill(id, nix::sys::signal::Signal::SIGINT).unwrap();
    let output = wrk.end();
    let said = String::from_utf8(output.stdout).unwrap();
    let result = said.lines().find_map(|line| line.strip_prefix("RESULT\t"));
    let (requests, errors) = result.expect("a result").split_once('\t').unwrap();
    assert!(requests.parse::<u64>().unwrap() > 100, "{said}");
    assert_eq!(errors, "0", "{said}");
});
