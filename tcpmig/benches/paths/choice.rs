//! What is measured: the product of what is chosen.

use std::time::Duration;

use crate::app::Traffic;
use crate::case::{By, Case, Loss};

pub(crate) const HELP: &str = "\
cargo bench -p tcpmig --bench paths -- [OPTION..]

Lists are separated by commas; each connection is measured with each of them.
  --rtt MS           round-trip times of the path (1,20,60,200)
  --loss LOSS        none, 0.1%, 1%, or queue: one that overflows (none,0.1%,1%,queue)
  --traffic TRAFFIC  download, upload, requests, idle (download,upload)
  --control NAME     congestion controls (bbr)
  --by WAY           driver, file: it stands still for 150 ms, nothing: it stays (driver)
  --without-timestamps
  --rate MBIT        what the path carries in a second (100)
  --moves N          moves, a second apart (1)
  --warm SECONDS     how long it runs before the first move (6)
  --seed N           which frames are lost (1)
  --at-once N        connections that are measured beside each other (2)
  --json
";

/// Options of the command.
pub(crate) struct Choice {
    rtts: Vec<Duration>,
    losses: Vec<Loss>,
    traffics: Vec<Traffic>,
    controls: Vec<String>,
    ways: Vec<By>,
    timestamps: bool,
    mbit: u64,
    moves: usize,
    warm: Duration,
    seed: u64,
    pub(crate) at_once: usize,
    pub(crate) json: bool,
}

impl Choice {
    pub(crate) fn from_arguments(
        mut arguments: impl Iterator<Item = String>,
    ) -> Result<Self, String> {
        let ms = Duration::from_millis;
        let mut choice = Self {
            rtts: [1, 20, 60, 200].map(ms).to_vec(),
            losses: vec![Loss::None, Loss::Ppm(1000), Loss::Ppm(10_000), Loss::Queue],
            traffics: vec![Traffic::Download, Traffic::Upload],
            controls: vec!["bbr".to_owned()],
            ways: vec![By::Driver],
            timestamps: true,
            mbit: 100,
            moves: 1,
            warm: Duration::from_secs(6),
            seed: 1,
            at_once: 2,
            json: false,
        };
        while let Some(argument) = arguments.next() {
            let mut value = || {
                let missing = || format!("a value after {argument}");
                arguments.next().ok_or_else(missing)
            };
            match argument.as_str() {
                "--rtt" => choice.rtts = list(&value()?, |text| text.parse().ok().map(ms))?,
                "--loss" => choice.losses = list(&value()?, Loss::from_text)?,
                "--traffic" => choice.traffics = list(&value()?, traffic)?,
                "--control" => choice.controls = list(&value()?, |text| Some(text.to_owned()))?,
                "--by" => choice.ways = list(&value()?, By::from_text)?,
                "--without-timestamps" => choice.timestamps = false,
                "--rate" => choice.mbit = number(&value()?)?,
                "--moves" => choice.moves = number(&value()?)? as usize,
                "--warm" => choice.warm = Duration::from_secs(number(&value()?)?),
                "--seed" => choice.seed = number(&value()?)?,
                "--at-once" => choice.at_once = number(&value()?)?.max(1) as usize,
                "--json" => choice.json = true,
                // What cargo passes to every benchmark.
                "--bench" => {}
                "--help" | "-h" => return Err(HELP.to_owned()),
                other => return Err(format!("{other:?} is none of these")),
            }
        }
        Ok(choice)
    }

    pub(crate) fn cases(&self) -> Vec<Case> {
        let mut cases = Vec::new();
        for &traffic in &self.traffics {
            for control in &self.controls {
                for &by in &self.ways {
                    for &rtt in &self.rtts {
                        for &loss in &self.losses {
                            cases.push(Case {
                                traffic,
                                control: control.clone(),
                                by,
                                rtt,
                                loss,
                                timestamps: self.timestamps,
                                mbit: self.mbit,
                                moves: self.moves,
                                warm: self.warm,
                                seed: self.seed,
                            });
                        }
                    }
                }
            }
        }
        cases
    }
}

fn list<T>(text: &str, read: impl Fn(&str) -> Option<T>) -> Result<Vec<T>, String> {
    let one = |text: &str| read(text).ok_or_else(|| format!("{text:?} is none of these"));
    text.split(',').map(one).collect()
}

fn number(text: &str) -> Result<u64, String> {
    text.parse()
        .map_err(|_| format!("{text:?} is not a number"))
}

fn traffic(text: &str) -> Option<Traffic> {
    Some(match text {
        "download" => Traffic::Download,
        "upload" => Traffic::Upload,
        "requests" => Traffic::Requests,
        "idle" => Traffic::Idle,
        _ => return None,
    })
}
