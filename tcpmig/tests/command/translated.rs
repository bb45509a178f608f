//! `tcpmig dump` of a connection whose packets the host rewrites.

use tcpmig_sys::lab::isolated;

use crate::support::{Net, Program, fails, peer_end, tcpmig, until};

#[test]
fn it_is_refused_with_the_translation_and_goes_on() {
    isolated(
        "translated::it_is_refused_with_the_translation_and_goes_on",
        || {
            let net = Net::new();
            let rules = "table ip nat { chain c { type nat hook prerouting priority dstnat; tcp dport 7001 dnat to :7000; }; }";
            let nft = net.a.command("nft").unwrap().arg(rules).status().unwrap();
            assert!(nft.success());
            let _server = Program::start(&net.a, "socat", &["TCP-LISTEN:7000", "PIPE"]);
            until("socat listens", || {
                let table = net
                    .a
                    .run(|| std::fs::read_to_string("/proc/thread-self/net/tcp"));
                table.unwrap().unwrap().contains(":1B58 00000000:0000 0A")
            });
            let mut client = Program::start(&net.peer, "nc", &["-N", "198.18.0.80", "7001"]);
            client.say("one");
            assert_eq!(client.hear(), "one");
            let from = net.peer.run(peer_end).unwrap();

            let image = net.file("connection.image");
            let flow = format!("198.18.0.80:7000,{from}");
            let dumped = tcpmig(
                &net.a,
                &["dump", "--flow", &flow, "-o", image.to_str().unwrap()],
            );
            let rewritten =
                format!("DNAT: {from} -> 198.18.0.80:7001 becomes {from} -> 198.18.0.80:7000");
            fails(
                &dumped,
                1,
                &["translates its packets", &rewritten, "hint: "],
            );
            assert!(!image.exists());
            client.say("two");
            assert_eq!(client.hear(), "two");
        },
    );
}
