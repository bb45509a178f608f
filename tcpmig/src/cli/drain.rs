//! `tcpmig drain`: a service, or all of this host, is to be empty.

use std::process::ExitCode;
use std::time::Duration;

use anyhow::bail;
use clap::Args;
use indicatif::{ProgressBar, ProgressStyle};
use serde_json::json;
use tcpmig::agent::{Client, Progress};
use tokio::time::timeout;

use super::print::say;
use super::status::AgentSocket;
use super::{FAILED, Output};

/// Let the servers of this host give all their connections to other hosts.
///
/// The agent tells each server, which stops accepting and gives its connections away at their next safe point. What
/// cannot move yet is tried again. Ended here, the servers go on nevertheless; called again, it shows how far they are.
#[derive(Debug, Args)]
pub(crate) struct DrainArgs {
    /// This service only
    #[arg(long, value_name = "NAME")]
    service: Option<String>,

    /// The hosts that get the connections, in turn; HOST=N counts for N
    #[arg(long, required = true, value_name = "HOST[=N]", num_args = 1.., value_delimiter = ',', value_parser = share)]
    to: Vec<(String, usize)>,

    /// Wait until no connection is left, and show how many are
    #[arg(long)]
    wait: bool,

    /// With --wait: for so long at most [seconds]
    #[arg(long, value_name = "SECONDS", requires = "wait", value_parser = super::lockers::seconds)]
    within: Option<Duration>,

    #[command(flatten)]
    agent: AgentSocket,
}

/// The most that one host counts for.
const MOST: usize = 100;

/// A host and what it counts for.
fn share(text: &str) -> Result<(String, usize), String> {
    let Some((host, share)) = text.split_once('=') else {
        return Ok((text.to_owned(), 1));
    };
    match share.parse() {
        Ok(share) if (1..=MOST).contains(&share) => Ok((host.to_owned(), share)),
        _ => Err(format!("give a number from 1 to {MOST} behind {host}=")),
    }
}

/// One after another, each as often as it counts.
fn in_turn(shares: &[(String, usize)]) -> Vec<String> {
    let most = shares.iter().map(|(_, share)| *share).max().unwrap_or(0);
    let round = |round: usize| {
        let due = shares.iter().filter(move |(_, share)| round < *share);
        due.map(|(host, _)| host.clone())
    };
    (0..most).flat_map(round).collect()
}

pub(crate) fn main(args: &DrainArgs, output: Output) -> anyhow::Result<ExitCode> {
    let to = in_turn(&args.to);
    args.agent.with(|client| async move {
        let draining = follow(&client, args, to, output);
        match args.within {
            None => draining.await,
            Some(within) => match timeout(within, draining).await {
                Ok(done) => done,
                Err(_) => bail!("connections are left after {within:?}; the servers go on"),
            },
        }
    })
}

async fn follow(
    client: &Client,
    args: &DrainArgs,
    to: Vec<String>,
    output: Output,
) -> anyhow::Result<ExitCode> {
    let mut draining = client.drain(args.service.clone(), to).await?;
    let bar = ProgressBar::new(0);
    bar.set_style(
        ProgressStyle::with_template("{wide_bar} {msg}")
            .unwrap_or_else(|_| ProgressStyle::default_bar()),
    );
    let mut last = Progress::default();
    while let Some(progress) = draining.next().await? {
        last = progress;
        if !args.wait {
            break;
        }
        show(&bar, progress, output);
    }
    bar.finish_and_clear();
    let Progress {
        moved, kept, left, ..
    } = last;
    match output {
        Output::Json => say!(
            "{}",
            json!({ "moved": moved, "kept": kept, "left": left, "done": args.wait })
        ),
        Output::Text if args.wait => say!("{moved} connections moved, none is left"),
        Output::Text => say!("the servers were told; {left} connections are left"),
    }
    Ok(if args.wait && left > 0 {
        FAILED.into()
    } else {
        ExitCode::SUCCESS
    })
}

fn show(bar: &ProgressBar, progress: Progress, output: Output) {
    let Progress {
        moved, kept, left, ..
    } = progress;
    match output {
        Output::Json => say!("{}", json!({ "moved": moved, "kept": kept, "left": left })),
        Output::Text => {
            bar.set_length(moved + left);
            bar.set_position(moved);
            bar.set_message(format!("{moved} moved, {left} left"));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hosts_get_their_shares_in_turn() {
        let shares = ["b", "c=3", "d=2"].map(|text| share(text).unwrap());
        assert_eq!(in_turn(&shares), ["b", "c", "d", "c", "d", "c"]);
        assert!(share("b=0").is_err());
        assert!(share("b=x").is_err());
        assert!(share("b=101").is_err());
    }
}
