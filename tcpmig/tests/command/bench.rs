//! Measurements, small ones.

use std::fs;
use std::process::{Command, Output};

use crate::support::TCPMIG;

fn bench(arguments: &[&str]) -> Output {
    let mut command = Command::new(&*TCPMIG);
    let output = command.arg("bench").args(arguments).output();
    output.unwrap()
}

#[test]
fn all_connections_move_and_answer() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("bench.svg");
    let svg = file.to_str().unwrap();
    let arguments = ["--single", "3", "--many", "20", "--json", "--svg", svg];
    let output = bench(&arguments);
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{said}");
    let value: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(
        (&value["connections"], &value["alive"]),
        (&23.into(), &23.into())
    );
    for (moves, count) in [("single", 3), ("many", 20)] {
        let still = value[moves]["still_us"].as_array().unwrap();
        assert_eq!(still.len(), count);
        assert!(still.iter().all(|us| us.as_u64().unwrap() > 0), "{value}");
    }
    let chart = fs::read_to_string(&file).unwrap();
    assert!(chart.contains("3 one by one") && chart.ends_with("</svg>\n"));
    // What is there stays, and is found before anything is measured.
    let output = bench(&arguments);
    assert_eq!(output.status.code(), Some(1));
    assert_eq!(fs::read_to_string(&file).unwrap(), chart);
}

#[test]
fn the_table_says_how_many_and_how_long() {
    let output = bench(&["--single", "1", "--many", "2"]);
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{output:?}");
    for part in [
        "1 one by one",
        "2 at once",
        "stood still",
        "3 of 3 connections",
    ] {
        assert!(said.contains(part), "{part}: {said}");
    }
}

#[test]
fn numbers_that_make_no_sense_are_refused() {
    for wrong in [["--many", "0"], ["--single", "x"], ["--many", "100001"]] {
        assert_eq!(bench(&wrong).status.code(), Some(2), "{wrong:?}");
    }
}
