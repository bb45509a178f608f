//! Sessions that a target does not know.

use std::time::Duration;

use crate::scene::{OnB, Scene, URL};
use crate::support::{kernel_test, numbered};

/// The connection stays, for this reason, and the download on it comes to its end.
fn stays(on_b: &OnB, reason: &str) {
    let scene = Scene::with(on_b, Duration::from_secs(5));
    let mut curl = scene.curl(&[&format!("{URL}/file/40000000"), &format!("{URL}/who")]);
    let mut body = curl.read(1_000_000);
    let why = scene.stays();
    assert!(why.contains(reason), "{why}");
    body.extend(curl.end_of_curl(2));
    let expected = [&numbered(0, 40_000_000)[..], b"a 1 \n"].concat();
    assert!(body == expected, "{} bytes", body.len());
}

kernel_test!(a_newer_server_does_not_know_the_state, || stays(
    &OnB::NewVisits,
    "refused it: session state \"visits\" version 1 is not known here, which takes \"visits\" version 2"
));
kernel_test!(a_server_without_state_refuses_one, || stays(
    &OnB::NoState,
    "session state \"visits\" version 1 is not known here, which takes none"
));
kernel_test!(a_server_that_knows_no_such_cursor_refuses_it, || stays(
    &OnB::OtherCursors,
    "refused it: the response in the middle cannot go on here: the cursor of the response in the middle cannot be \
     decoded: missing field `chapter`"
));
kernel_test!(a_target_that_takes_nothing_in_is_told_of, || stays(
    &OnB::Nothing,
    "the connection goes on here: "
));
