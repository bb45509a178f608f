//! What an exchange promises, over QUIC and in memory alike.

use std::net::SocketAddr;

use bytes::Bytes;
use proptest::prelude::*;
use tcpmig_transport::{Exchange, TransportError, TransportLimits, memory};

use crate::support::{SOURCE, TARGET, authority, bytes, host, host_at, hosts, in_time, loopback};

/// Runs `check` on an exchange in memory and on one over QUIC.
async fn on_both<F: Future<Output = ()>>(
    limits: TransportLimits,
    check: impl Fn(Exchange, Exchange) -> F,
) {
    let (here, there) = memory::pair(limits.clone());
    in_time(check(here, there)).await;
    let hosts = hosts(loopback(), limits).await;
    let (here, there) = hosts.exchange().await;
    in_time(check(here, there)).await;
}

async fn echo(mut exchange: Exchange) -> Exchange {
    while let Some(frame) = exchange.recv().await.expect("received") {
        exchange.send(frame).await.expect("sent");
    }
    exchange.finish().await.expect("finished");
    exchange
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn frames_of_all_sizes_come_back_over_ipv4_and_ipv6() {
    for addr in [loopback(), "[::1]:0".parse::<SocketAddr>().expect("valid")] {
        let hosts = hosts(addr, TransportLimits::default()).await;
        assert_eq!(
            hosts.to_target.address(),
            hosts.target.local_addr().expect("bound")
        );
        let (mut here, there) = hosts.exchange().await;
        let answering = tokio::spawn(echo(there));
        for len in [0, 1, 3, 4, 5, 1024, 65_535, 65_536, 65_537, 16 << 20] {
            let frame = bytes(len);
            in_time(here.send(frame.clone())).await.expect("sent");
            let back = in_time(here.recv()).await.expect("received");
            assert!(back == Some(frame), "frame of {len} bytes");
        }
        here.finish().await.expect("finished");
        assert_eq!(in_time(here.recv()).await.expect("received"), None);
        assert_eq!(in_time(here.recv()).await.expect("still finished"), None);
        let there = in_time(answering).await.expect("echoed");
        assert_eq!(there.stats().bytes_sent, here.stats().bytes_received);
    }
}

#[tokio::test]
async fn thousands_of_small_frames_stay_in_order() {
    on_both(TransportLimits::default(), |here, mut there| async move {
        let (mut sender, _receiver) = here.split();
        let sending = async {
            for i in 0..5000u32 {
                sender.send(Bytes::from(i.to_be_bytes().to_vec())).await?;
            }
            sender.finish().await
        };
        let receiving = async {
            for i in 0..5000u32 {
                let frame = there.recv().await?.expect("not finished yet");
                assert_eq!(frame[..], i.to_be_bytes());
            }
            assert_eq!(there.recv().await?, None);
            Ok::<_, TransportError>(())
        };
        let (sent, received) = tokio::join!(sending, receiving);
        sent.expect("sent");
        received.expect("received");
    })
    .await;
}

#[tokio::test]
async fn many_exchanges_share_a_connection() {
    let mut limits = TransportLimits::default();
    limits.max_exchanges = 4;
    let hosts = hosts(loopback(), limits).await;
    let to_source = hosts.to_source.clone();
    let answering = tokio::spawn(async move {
        while let Some(exchange) = to_source.accept().await {
            tokio::spawn(echo(exchange.expect("opened")));
        }
    });
    let asking: Vec<_> = (0..40)
        .map(|i: usize| {
            let peer = hosts.to_target.clone();
            tokio::spawn(async move {
                let mut exchange = peer.open().await.expect("opened");
                exchange.send(bytes(i * 999)).await.expect("sent");
                exchange.finish().await.expect("finished");
                assert_eq!(exchange.recv().await.expect("came"), Some(bytes(i * 999)));
                assert_eq!(exchange.recv().await.expect("finished"), None);
            })
        })
        .collect();
    for task in asking {
        in_time(task).await.expect("answered");
    }
    hosts.source.close("enough").await;
    in_time(answering).await.expect("no error when closed");
}

#[tokio::test]
async fn a_frame_over_the_limit_is_not_sent() {
    let mut limits = TransportLimits::default();
    limits.max_frame = 100;
    on_both(limits, |mut here, mut there| async move {
        let refused = here.send(bytes(101)).await;
        assert!(matches!(
            refused,
            Err(TransportError::FrameTooLong {
                len: 101,
                limit: 100
            })
        ));
        here.send(bytes(100)).await.expect("within the limit");
        assert_eq!(there.recv().await.expect("in step"), Some(bytes(100)));
    })
    .await;
}

#[tokio::test]
async fn an_announced_frame_over_the_limit_is_refused_on_both_sides() {
    let authority = authority();
    let source = host(&authority, SOURCE);
    let mut strict = TransportLimits::default();
    strict.max_frame = 1000;
    let target = host_at(loopback(), &authority, TARGET, strict);
    let address = target.local_addr().expect("bound");
    let (to_target, to_source) = tokio::join!(source.connect(address, TARGET), target.accept());
    let (to_target, to_source) = (
        to_target.expect("connected"),
        to_source.expect("open").expect("let in"),
    );
    let mut here = to_target.open().await.expect("opened");
    // Longer than the windows, so that sending lasts until the refusal.
    let big = Bytes::from(vec![0; 50 << 20]);
    let (sent, received) = in_time(async {
        tokio::join!(here.send(big), async {
            let mut there = to_source.accept().await.expect("open").expect("opened");
            let refused = there.recv().await;
            assert!(matches!(there.recv().await, Err(TransportError::Ended)));
            refused
        })
    })
    .await;
    assert!(matches!(
        received,
        Err(TransportError::FrameTooLong {
            len: 52_428_800,
            limit: 1000
        })
    ));
    assert!(matches!(sent, Err(TransportError::Stopped { .. })));
}

#[tokio::test]
async fn what_is_queued_comes_before_the_next_frame_or_the_end() {
    on_both(
        TransportLimits::default(),
        |mut here, mut there| async move {
            let before = here.stats().frames_sent;
            for len in [3, 0] {
                here.queue(bytes(len)).expect("queued");
            }
            here.send(bytes(5)).await.expect("sent");
            here.queue(bytes(7)).expect("queued");
            here.finish().await.expect("finished");
            assert!(matches!(here.queue(bytes(1)), Err(TransportError::Ended)));
            for len in [3, 0, 5, 7] {
                assert_eq!(there.recv().await.expect("received"), Some(bytes(len)));
            }
            assert_eq!(there.recv().await.expect("finished"), None);
            assert_eq!(here.stats().frames_sent - before, 4);
        },
    )
    .await;
}

#[tokio::test]
async fn dropped_unfinished_is_abandoned_after_the_frames_sent() {
    on_both(
        TransportLimits::default(),
        |mut here, mut there| async move {
            here.send(bytes(5)).await.expect("sent");
            drop(here);
            assert_eq!(there.recv().await.expect("delivered"), Some(bytes(5)));
            assert!(matches!(there.recv().await, Err(TransportError::Abandoned)));
            assert!(matches!(there.recv().await, Err(TransportError::Ended)));
        },
    )
    .await;
}

#[tokio::test]
async fn cut_inside_a_frame_is_truncated() {
    on_both(
        TransportLimits::default(),
        |mut here, mut there| async move {
            // More than the window holds: the future is dropped with a part of the frame sent.
            let frame = Bytes::from(vec![1; 40 << 20]);
            let mut sending = Box::pin(here.send(frame));
            let cut = tokio::select! {
                biased;
                sent = &mut sending => panic!("sent in one go: {sent:?}"),
                () = std::future::ready(()) => sending,
            };
            drop(cut);
            drop(here);
            let error = there.recv().await.expect_err("cut");
            assert!(
                matches!(error, TransportError::Truncated { got, expected } if got < expected),
                "{error}"
            );
        },
    )
    .await;
}

#[tokio::test]
async fn an_interrupted_send_is_completed_by_the_next_call() {
    on_both(
        TransportLimits::default(),
        |mut here, mut there| async move {
            let big = bytes(40 << 20);
            {
                let mut sending = Box::pin(here.send(big.clone()));
                tokio::select! {
                    biased;
                    sent = &mut sending => panic!("sent in one go: {sent:?}"),
                    () = std::future::ready(()) => {}
                }
            }
            let (finished, received) = tokio::join!(
                async {
                    here.send(bytes(7)).await?;
                    here.finish().await
                },
                async {
                    assert!(there.recv().await? == Some(big));
                    assert_eq!(there.recv().await?, Some(bytes(7)));
                    there.recv().await
                }
            );
            finished.expect("finished");
            assert_eq!(received.expect("in step"), None);
        },
    )
    .await;
}

#[tokio::test]
async fn receiving_is_cancel_safe() {
    on_both(TransportLimits::default(), |here, mut there| async move {
        let (mut sender, _receiver) = here.split();
        let sending = tokio::spawn(async move {
            for i in 0..200 {
                sender.send(bytes(i * 997)).await.expect("sent");
                tokio::task::yield_now().await;
            }
            sender.finish().await.expect("finished");
        });
        let (mut next, mut interrupted) = (0, 0);
        loop {
            // Drops the future whenever it has to wait.
            let received = tokio::select! {
                biased;
                received = there.recv() => received.expect("in step"),
                () = std::future::ready(()) => {
                    interrupted += 1;
                    tokio::task::yield_now().await;
                    continue;
                }
            };
            let Some(frame) = received else { break };
            assert_eq!(frame, bytes(next * 997));
            next += 1;
        }
        assert_eq!(next, 200);
        assert!(interrupted > 0);
        sending.await.expect("sent");
    })
    .await;
}

#[tokio::test]
async fn nothing_follows_finish_and_finish_may_repeat() {
    on_both(
        TransportLimits::default(),
        |mut here, mut there| async move {
            let before = there.stats();
            here.send(bytes(9)).await.expect("sent");
            here.finish().await.expect("finished");
            here.finish().await.expect("finished");
            let late = here.send(bytes(1)).await;
            assert!(matches!(late, Err(TransportError::Ended)));
            // The other direction goes on.
            there.send(bytes(3)).await.expect("sent");
            assert_eq!(here.recv().await.expect("received"), Some(bytes(3)));
            assert_eq!(there.recv().await.expect("received"), Some(bytes(9)));
            assert_eq!(there.recv().await.expect("finished"), None);
            let after = there.stats();
            assert_eq!(after.frames_received - before.frames_received, 1);
            assert_eq!(after.bytes_received - before.bytes_received, 9);
            assert_eq!(after.bytes_sent - before.bytes_sent, 3);
        },
    )
    .await;
}

#[tokio::test]
async fn a_reader_that_goes_stops_the_sender() {
    on_both(TransportLimits::default(), |mut here, there| async move {
        drop(there);
        // More than the windows hold, so that sending lasts until the other side is heard.
        let sent = here.send(Bytes::from(vec![0; 50 << 20])).await;
        assert!(
            matches!(sent, Err(TransportError::Stopped { .. })),
            "{sent:?}"
        );
    })
    .await;
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(32))]
    #[test]
    fn memory_carries_any_frames(lens in proptest::collection::vec(0usize..200_000, 0..20)) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().expect("a runtime");
        runtime.block_on(in_time(async {
            let (mut here, mut there) = memory::pair(TransportLimits::default());
            for &len in &lens {
                here.send(bytes(len)).await.expect("sent");
            }
            here.finish().await.expect("finished");
            for &len in &lens {
                assert_eq!(there.recv().await.expect("received"), Some(bytes(len)));
            }
            assert_eq!(there.recv().await.expect("finished"), None);
        }));
    }
}
