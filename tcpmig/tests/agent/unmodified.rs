//! Programs that know nothing of it, whose connections move while somebody is killed.

use std::fs;
use std::os::fd::AsFd;
use std::process::Stdio;
use std::thread::sleep;
use std::time::Duration;

use tcpmig_sys::kernel_test;
use tcpmig_sys::process::take::descriptor;
use tcpmig_sys::repair::is_in_repair_mode;

use crate::hosts::{Hosts, open_service, user};
use crate::killed::{Random, number};
use crate::support::{Echo, TCPMIG, text, until};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Victim {
    Command,
    Agent,
}

/// The third field of a process's `stat`.
fn state(pid: u32) -> Option<char> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    stat.rsplit_once(") ")?.1.chars().next()
}

/// Neither does its process stand still, nor is its socket in repair mode.
fn is_free(echo: &Echo) -> bool {
    let is_still = matches!(state(echo.owner.pid), Some('t' | 'T'));
    // One that moved is closed, or gone with its program.
    let socket = descriptor(echo.owner.pid, echo.owner.fd);
    let is_frozen = socket.is_ok_and(|socket| is_in_repair_mode(socket.as_fd()).unwrap_or(false));
    !is_still && !is_frozen
}

fn run(victim: Victim, random: &mut Random) {
    let mut hosts = Hosts::with(|of| {
        let user = if user() == 0 { "root" } else { "nobody" };
        let command = format!("command = [\"/bin/cat\"]\ncommand_user = \"{user}\"\n");
        open_service(of) + &command
    });
    let mut echo = hosts.echo();
    let socket = hosts.agent("a").socket.clone();
    let mut mover = hosts.a.command(&TCPMIG).unwrap();
    mover.args(["move", "--to", "b.example", "--flow", &echo.flow, "--json"]);
    mover.arg("--agent").arg(socket);
    let mut mover = mover.stdout(Stdio::piped()).spawn().unwrap();
    until("the program stands still, or it is over", || {
        state(echo.owner.pid) == Some('t') || mover.try_wait().unwrap().is_some()
    });
    let pause = Duration::from_micros(random.below(30_000));
    sleep(pause);
    println!("{victim:?} is killed {pause:?} after that");
    match victim {
        Victim::Command => mover.kill().unwrap(),
        Victim::Agent => {
            let killed = &mut hosts.agents[0].program.child;
            killed.kill().unwrap();
            killed.wait().unwrap();
            hosts.agents[0] = hosts.start_agent("a");
        }
    }
    let said = mover.wait_with_output().unwrap();
    println!("{}", text(&said.stdout));
    until("nothing stands still", || is_free(&echo));
    // The program, or the command on the other host.
    echo.client.say("who is there");
    assert_eq!(echo.client.hear(), "who is there");
}

kernel_test!(
    nothing_stands_still_for_a_command_or_an_agent_that_is_killed,
    || {
        let runs = number("TCPMIG_AGENT_KILLS").unwrap_or(4);
        let seed =
            number("TCPMIG_AGENT_KILLS_SEED").unwrap_or_else(|| u64::from(std::process::id()));
        println!("TCPMIG_AGENT_KILLS_SEED={seed}");
        let mut random = Random::of(seed);
        for at in 0..runs {
            let victim = [Victim::Command, Victim::Agent][at as usize % 2];
            run(victim, &mut random);
        }
    }
);
