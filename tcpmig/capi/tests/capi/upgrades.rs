//! Upgrade in place: the example server is started once more, and once more.

use std::io::Read;
use std::path::Path;

use tcpmig_sys::kernel_test;
use tcpmig_sys::lab::World;

use crate::agents::{PORT, Resting, Server, both_are_whole, curl};
use crate::built::{How, Installed, VALGRIND};

fn version(installed: &Installed, world: &World, words: &[&str], number: usize) -> Server {
    let mut command = world.a.command(words[0]).unwrap();
    command
        .args(&words[1..])
        .args([World::SERVICE[0], PORT, "web", "-"]);
    command.arg(installed.path("upgrade.sock"));
    let log = installed.path(&format!("version {number}.log"));
    Server::start(installed.with_library(&mut command), log)
}

fn takes_over(before: &[&str], program: &Path, installed: &Installed) {
    let world = World::new();
    let words: Vec<&str> = before.iter().copied().chain(program.to_str()).collect();
    let mut running = version(installed, &world, &words, 1);
    let address = format!("{}:{PORT}", World::SERVICE[0]);
    let connect = || [(); 3].map(|()| Resting::new(&address));
    let mut rest = world.peer.run(connect).unwrap();
    let mut download = curl(&world.peer);
    let mut downloaded = vec![0; 1000];
    download
        .stdout
        .as_mut()
        .unwrap()
        .read_exact(&mut downloaded)
        .unwrap();

    for number in 2..4 {
        // Half of a request that is answered by the next version.
        rest[0].say("GET / HT");
        let mut next = version(installed, &world, &words, number);
        next.says("arrived", 4);
        running.says("moved", 4);
        running.ends_well();
        running = next;
        rest[0].say("TP/1.1\r\n\r\n");
        rest[0].hears(&format!("request {number} of this connection\n"));
        for one in &mut rest[1..] {
            one.asks(&format!("request {number} of this connection\n"));
        }
        // It listens.
        drop(world.peer.run(|| Resting::new(&address)).unwrap());
    }
    both_are_whole(download, downloaded);
}

kernel_test!(
    the_next_version_takes_over_in_the_middle_of_everything,
    || {
        let installed = Installed::new();
        let how = How {
            cxx: true,
            sanitized: true,
            ..How::default()
        };
        let program = installed.compile("http_server.c", how);
        takes_over(&[], &program, &installed);
    }
);

kernel_test!(the_next_version_takes_over_and_no_memory_is_lost, || {
    let installed = Installed::new();
    let program = installed.compile("http_server.c", How::default());
    takes_over(&VALGRIND, &program, &installed);
});
