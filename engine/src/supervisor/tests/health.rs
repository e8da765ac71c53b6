//! Health checks, with an agent that answers as a test wants.

use brig_protocol::agent::ToAgent;

use super::{exec::begun, *};
use crate::sandbox::health::{Health, HealthConfig, HealthStatus};

fn config(timeout_ms: u64) -> HealthConfig {
    HealthConfig {
        test: vec!["CMD".into(), "check".into()],
        args: vec!["check".into()],
        interval: Duration::from_millis(1),
        timeout: Duration::from_millis(timeout_ms),
        start_period: Duration::ZERO,
        start_interval: Duration::from_millis(1),
        retries: 2,
    }
}

/// Waits for a state that `wanted` says yes to.
async fn wait_for(bench: &Bench, wanted: impl Fn(&Health) -> bool) -> Health {
    loop {
        let health = bench.sandbox().state.health;
        if let Some(health) = health.filter(&wanted) {
            return health;
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// Answers a check.
fn answer(guest: &mut PlayedGuest, code: u8, output: &[u8]) {
    let (process, spec, mut streams) = begun(guest);
    assert_eq!(
        (spec.args, spec.stdin, spec.tty),
        (vec!["check".to_owned()], false, None)
    );
    guest.say(&FromAgent::Started {
        process,
        pid: 9,
        took_us: 1,
    });
    streams[0].write_all(output).unwrap();
    drop(streams);
    guest.say(&FromAgent::Exited {
        process,
        status: ExitStatus::Code(code),
    });
}

#[test]
fn what_checks_find_is_in_the_state_with_the_beginning_of_their_output() {
    let bench = Bench::new(|made| made.health = Some(config(60_000)));
    let (seen, see) = std::sync::mpsc::channel::<()>();
    let see = Mutex::new(see);
    bench.run(
        move |mut guest| {
            let streams = guest.start();
            let long = vec![b'x'; 10_000];
            answer(&mut guest, 1, &long);
            answer(&mut guest, 1, b"bad\n");
            see.lock().unwrap().recv().unwrap();
            answer(&mut guest, 0, b"good\n");
            see.lock().unwrap().recv().unwrap();
            // One that is under way when the sandbox ends is forgotten.
            let _begun = begun(&mut guest);
            drop(streams);
            guest.say(&exited(0));
            shut_down(guest);
        },
        async |mut client| {
            client.start(true).await;
            let health = wait_for(&bench, |health| health.log.len() == 2).await;
            assert_eq!(
                (health.status, health.failing_streak),
                (HealthStatus::Unhealthy, 2)
            );
            assert_eq!(health.log[0].output, format!("{}...", "x".repeat(4096)));
            assert_eq!(
                (health.log[1].exit_code, health.log[1].output.as_str()),
                (1, "bad\n")
            );
            seen.send(()).unwrap();
            let health = wait_for(&bench, |health| health.log.len() == 3).await;
            assert_eq!((health.status, health.failing_streak), (HealthStatus::Healthy, 0));
            seen.send(()).unwrap();
            assert_eq!(client.exit().await.code, 0);
        },
    );
    // It is still told how it was.
    assert_eq!(bench.sandbox().state.health.unwrap().log.len(), 3);
    assert_eq!(bench.log(), "");
    bench.assert_clean();
}

#[test]
fn a_check_that_takes_too_long_is_killed_and_has_failed() {
    let bench = Bench::new(|made| made.health = Some(config(50)));
    bench.run(
        move |mut guest| {
            let streams = guest.start();
            let (process, ..) = begun(&mut guest);
            guest.say(&FromAgent::Started {
                process,
                pid: 9,
                took_us: 1,
            });
            assert_eq!(guest.hear(), Some(ToAgent::Signal { process, signal: 9 }));
            guest.say(&FromAgent::Exited {
                process,
                status: ExitStatus::Signal(9),
            });
            let (process, ..) = begun(&mut guest);
            guest.say(&FromAgent::StartFailed {
                process,
                kind: StartFailure::NotFound,
                message: "exec: not there".into(),
            });
            let _next = begun(&mut guest);
            drop(streams);
            guest.say(&exited(0));
            shut_down(guest);
        },
        async |mut client| {
            client.start(true).await;
            let health = wait_for(&bench, |health| health.log.len() == 2).await;
            assert_eq!(health.status, HealthStatus::Unhealthy);
            let said: Vec<_> = health
                .log
                .iter()
                .map(|one| (one.exit_code, one.output.as_str()))
                .collect();
            assert_eq!(
                said,
                [
                    (-1, "Health check exceeded timeout (50ms)"),
                    (-1, "exec: not there")
                ]
            );
            assert_eq!(client.exit().await.code, 0);
        },
    );
}
