use super::*;

const FEW: usize = 4;
const EACH: usize = 3;
const PLACES: usize = 16;
const PATIENCE: Duration = Duration::from_secs(1);

struct Scene {
    knocking: Knocking,
    now: Instant,
}

fn scene() -> Scene {
    scene_with(1_000_000)
}

fn scene_with(answers_per_second: u32) -> Scene {
    let now = Instant::now();
    let limits = TransportLimits {
        max_handshakes: PLACES,
        max_handshakes_per_address: EACH,
        retry_above: FEW,
        crowded_handshake: PATIENCE,
        answers_per_second,
        ..Default::default()
    };
    let knocking = Knocking::new(&limits, now);
    Scene { knocking, now }
}

/// A host of its own.
fn host(number: usize) -> SocketAddr {
    SocketAddr::from(([10, 0, (number >> 8) as u8, number as u8], 4000))
}

impl Scene {
    fn passes(&mut self, time: Duration) {
        self.now += time;
    }

    fn judge(&mut self, from: SocketAddr, proven: bool) -> Verdict {
        self.knocking.judge(from, proven, self.now)
    }

    /// Knocks, and is admitted if it may be.
    fn knock(&mut self, from: SocketAddr, proven: bool) -> Result<Id, Verdict> {
        match self.judge(from, proven) {
            Verdict::Admit { instead_of } => {
                Ok(self.knocking.admit(from, proven, instead_of, self.now))
            }
            other => Err(other),
        }
    }

    fn end(&mut self, id: Id, end: End) {
        self.knocking.end(id, end, self.now);
    }

    /// Takes what one that shows its address can get, from so many addresses.
    fn crowd(&mut self, addresses: usize) -> Vec<Id> {
        let knocks = (0..addresses).flat_map(|i| std::iter::repeat_n(host(1000 + i), PLACES));
        knocks
            .filter_map(|from| self.knock(from, true).ok())
            .collect()
    }
}

#[test]
fn few_begin_at_once_and_more_have_to_show_their_address() {
    let mut scene = scene();
    let first = scene.knock(host(0), false).expect("admitted");
    for i in 1..FEW {
        scene.knock(host(i), false).expect("admitted");
    }
    assert_eq!(scene.knock(host(9), false), Err(Verdict::Retry));
    scene.knock(host(9), true).expect("admitted");
    scene.end(first, End::LetIn);
    assert_eq!(
        scene.knock(host(10), false),
        Err(Verdict::Retry),
        "four are left"
    );
    assert_eq!(scene.knocking.knocks().retried, 2);
    assert_eq!(scene.knocking.knocks().under_way, FEW);
}

#[test]
fn what_is_asked_for_its_address_leaves_nothing() {
    let mut scene = scene();
    for i in 0..10_000 {
        let _ = scene.knock(host(i), false);
    }
    assert_eq!(scene.knocking.under_way.len(), FEW);
    assert_eq!(scene.knocking.proven.len(), 0);
    assert_eq!(scene.knocking.knocks().most_under_way, FEW);
}

#[test]
fn an_address_has_its_share_and_no_more() {
    let mut scene = scene();
    let first = scene.knock(host(0), true).expect("admitted");
    for _ in 1..EACH {
        scene.knock(host(0), true).expect("admitted");
    }
    assert_eq!(scene.knock(host(0), true), Err(Verdict::Ignore));
    scene.knock(host(1), true).expect("another address");
    scene.end(first, End::LetIn);
    scene.knock(host(0), true).expect("a place became free");
}

#[test]
fn packets_that_name_an_address_take_no_place_of_those_that_are_there() {
    let mut scene = scene();
    scene.knocking.retry_above = 100;
    for _ in 0..200 {
        let _ = scene.knock(host(0), false);
    }
    for _ in 0..EACH {
        scene.knock(host(0), true).expect("admitted");
    }
    assert_eq!(scene.crowd(3).len(), PLACES - PLACES / 4 - EACH);
}

#[test]
fn the_addresses_of_one_ipv6_link_are_one() {
    let mut scene = scene();
    let at = |address: &str| SocketAddr::new(address.parse().expect("valid"), 9);
    for i in 0..EACH {
        let from = at(&format!("2001:db8:0:1::{i}"));
        scene.knock(from, true).expect("admitted");
    }
    let same = at("2001:db8:0:1:ffff::7");
    assert_eq!(scene.knock(same, true), Err(Verdict::Ignore));
    scene
        .knock(at("2001:db8:0:2::1"), true)
        .expect("another link");
    // IPv4 on a socket for both is IPv4.
    for _ in 0..EACH {
        scene.knock(at("::ffff:10.0.0.1"), true).expect("admitted");
    }
    assert_eq!(scene.knock(host(1), true), Err(Verdict::Ignore));
    scene.knock(host(2), true).expect("another address");
}

#[test]
fn addresses_that_take_all_they_can_leave_places_for_others() {
    let mut scene = scene();
    scene.crowd(4);
    assert_eq!(scene.knocking.under_way.len(), PLACES - PLACES / 4);
    for i in 0..PLACES / 4 {
        scene.knock(host(i), true).expect("has none yet");
        assert_eq!(scene.knock(host(i), true), Err(Verdict::Ignore), "has one");
    }
    assert_eq!(scene.knock(host(99), true), Err(Verdict::Ignore));
    assert_eq!(scene.knocking.under_way.len(), PLACES);
}

#[test]
fn the_oldest_of_those_that_have_the_most_makes_way_when_it_has_had_its_time() {
    let mut scene = scene();
    let lone = scene.knock(host(0), true).expect("admitted");
    let crowd = scene.crowd(4);
    assert_eq!(crowd.len(), PLACES - PLACES / 4 - 1);
    for i in 1..=PLACES / 4 {
        scene.knock(host(i), true).expect("has none yet");
    }
    scene.passes(PATIENCE - Duration::from_millis(1));
    assert_eq!(scene.judge(host(99), true), Verdict::Ignore);
    scene.passes(Duration::from_millis(1));
    let instead_of = Some(crowd[0]);
    assert_eq!(scene.judge(host(99), true), Verdict::Admit { instead_of });
    scene.knock(host(99), true).expect("admitted");
    assert_eq!(scene.knocking.under_way.len(), PLACES);
    assert_eq!(scene.knocking.knocks().made_way, 1);
    // Its own end comes later.
    scene.end(crowd[0], End::Late);
    assert_eq!(scene.knocking.knocks().late, 0);
    // When all have one, the oldest of all.
    for i in 101..100 + PLACES {
        scene.knock(host(i), true).expect("admitted");
    }
    assert!(
        scene
            .knocking
            .under_way
            .values()
            .all(|place| place.since == scene.now)
    );
    assert!(!scene.knocking.under_way.contains_key(&lone));
}

#[test]
fn addresses_that_take_all_they_can_never_have_none() {
    let mut scene = scene();
    let addresses = 5;
    for _ in 0..1000 {
        scene.crowd(addresses);
        scene.passes(PATIENCE / 10);
        let newcomer = scene.knock(host(7), true).expect("admitted");
        scene.passes(PATIENCE / 100);
        scene.end(newcomer, End::LetIn);
    }
    assert_eq!(scene.knocking.shares.len(), addresses);
}

#[test]
fn of_a_full_share_its_own_oldest_makes_way() {
    let mut scene = scene();
    scene.knock(host(1), true).expect("the oldest of all");
    let own: Vec<Id> = (0..EACH)
        .filter_map(|_| scene.knock(host(0), true).ok())
        .collect();
    scene.passes(PATIENCE);
    let instead_of = Some(own[0]);
    assert_eq!(scene.judge(host(0), true), Verdict::Admit { instead_of });
}

#[test]
fn nobody_makes_way_while_there_is_room() {
    let mut scene = scene();
    scene.knock(host(0), true).expect("admitted");
    scene.passes(PATIENCE * 100);
    assert_eq!(
        scene.judge(host(0), true),
        Verdict::Admit { instead_of: None }
    );
}

#[test]
fn one_that_failed_counts_for_as_long_as_it_is_remembered() {
    let mut scene = scene();
    for _ in 0..EACH {
        let id = scene.knock(host(0), true).expect("admitted");
        scene.end(id, End::Failed);
    }
    assert_eq!(scene.knock(host(0), true), Err(Verdict::Ignore));
    assert_eq!(scene.knocking.knocks().under_way, EACH);
    scene.passes(PATIENCE);
    scene.knock(host(0), true).expect("admitted");
    assert_eq!(scene.knocking.knocks().under_way, 1);
    assert_eq!(scene.knocking.failed.len(), 0);
    assert_eq!(scene.knocking.knocks().made_way, 0);
}

#[test]
fn a_crowd_that_ends_leaves_nothing() {
    for end in [End::LetIn, End::Failed, End::Late] {
        let mut scene = scene();
        for id in scene.crowd(4) {
            scene.end(id, end);
        }
        scene.passes(PATIENCE);
        scene.judge(host(0), false);
        assert_eq!(scene.knocking.under_way.len(), 0);
        assert_eq!(scene.knocking.proven.len(), 0);
        assert_eq!(scene.knocking.proven_places, 0);
        assert_eq!(scene.knocking.shares.len(), 0);
        assert_eq!(scene.knocking.failed.len(), 0);
    }
}

#[test]
fn without_places_for_those_that_show_nothing_all_are_asked() {
    let mut scene = scene();
    scene.knocking.retry_above = 0;
    assert_eq!(scene.judge(host(0), false), Verdict::Retry);
    assert_eq!(
        scene.judge(host(0), true),
        Verdict::Admit { instead_of: None }
    );
}

fn taken(scene: &mut Scene, froms: impl IntoIterator<Item = SocketAddr>) -> usize {
    scene.knocking.retry_above = 0;
    let answered = froms
        .into_iter()
        .filter(|from| scene.judge(*from, false) == Verdict::Retry);
    answered.count()
}

#[test]
fn answers_have_a_rate() {
    let per_second = 10 * SLOTS as u32;
    let mut scene = scene_with(per_second);
    let many = || (0..50_000).map(host);
    let at_once = taken(&mut scene, many());
    assert!(at_once <= per_second as usize, "{at_once}");
    assert_eq!(scene.knocking.knocks().ignored, 50_000 - at_once as u64);
    scene.passes(Duration::from_millis(100));
    let later = taken(&mut scene, many());
    assert!(0 < later && later <= per_second as usize / 10, "{later}");
    // Saved up is no more than a second's worth.
    scene.passes(Duration::from_secs(1000));
    let much_later = taken(&mut scene, many());
    assert!(much_later <= per_second as usize, "{much_later}");
    assert_eq!(taken(&mut scene_with(0), many()), 0);
}

#[test]
fn one_that_asks_without_end_does_not_use_up_what_others_get() {
    let mut scene = scene_with(10 * SLOTS as u32);
    let loud = taken(&mut scene, std::iter::repeat_n(host(0), 100_000));
    assert!(loud <= 10, "{loud}");
    let others = taken(&mut scene, (1..=1000).map(host));
    assert!(others > 900, "{others}");
    // Who shares its slot does not share it for long.
    let mut unlucky = 0;
    for i in 1..=1000 {
        let mut again = 0;
        for _ in 0..4 {
            taken(&mut scene, std::iter::repeat_n(host(0), 100));
            again += taken(&mut scene, [host(i)]);
            scene.passes(Duration::from_secs(1));
        }
        unlucky += usize::from(again == 0);
    }
    assert_eq!(unlucky, 0);
}

#[test]
fn reports_have_a_pause_and_tell_what_is_new() {
    let mut scene = scene_with(0);
    assert_eq!(scene.knocking.report(scene.now), None, "nothing happened");
    assert_eq!(taken(&mut scene, (0..5).map(host)), 0);
    let first = scene.knocking.report(scene.now).expect("the first at once");
    assert_eq!(first.ignored, 5);
    assert_eq!(taken(&mut scene, (0..7).map(host)), 0);
    scene.passes(REPORTS / 2);
    assert_eq!(scene.knocking.report(scene.now), None);
    scene.passes(REPORTS / 2);
    let second = scene.knocking.report(scene.now).expect("after the pause");
    assert_eq!(second.ignored, 7);
    scene.passes(REPORTS);
    assert_eq!(scene.knocking.report(scene.now), None, "nothing new");
}
