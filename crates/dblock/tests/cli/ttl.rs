//! Which outages a ttl forgives: the rule of `docs/cli.md` and of `run --help`, measured.

use std::time::{Duration, Instant};

use crate::support::{DBLOCK, Lab, Running, SOON};
use testkit::time;
use testkit::{Postgres, Proxy};

const TTL: Duration = Duration::from_secs(9);
/// What `dblock` takes by default for this ttl.
const GRACE: Duration = Duration::from_millis(2250);
/// A fifth of `ttl / 2 - grace`.
const RESERVE: Duration = Duration::from_millis(450);
const HOLDER: &str = "the-only-holder";
/// A stopped command has written this down.
const TERMED: &str = "termed";

/// From the beginning of an outage just before a renewal to TERM.
fn until_term() -> Duration {
    TTL * 2 / 3 - GRACE - RESERVE
}

/// A command under a lock, whose database can be cut off.
struct Held {
    lab: Lab,
    proxy: Proxy,
    running: Running,
}

impl Held {
    fn start() -> Option<Self> {
        let server = Postgres::shared()?;
        let (lab, direct) = (Lab::new(), server.fresh_database());
        let init = lab.run(["--url", &direct, "init"]);
        assert_eq!(init.code(), 0, "{init:?}");
        let proxy = Proxy::to_url(&direct);
        proxy.watch_for(HOLDER);
        let script = "touch begun; trap 'touch termed; exit' TERM; \
                      while [ ! -e go ]; do sleep 0.02; done";
        let ttl = format!("{}s", TTL.as_secs());
        let mut command = lab.command(DBLOCK);
        command
            .args(["run", "--holder", HOLDER, "--ttl", &ttl, "job"])
            .args(["--", "sh", "-c", script])
            .env("DATABASE_LOCKS_URL", proxy.url(&direct));
        let running = lab.start(&mut command);
        lab.wait_for("begun");
        Some(Self {
            lab,
            proxy,
            running,
        })
    }

    fn renewals(&self) -> u64 {
        self.proxy.count(HOLDER)
    }

    fn outage(&self, begins: bool) {
        self.proxy.refuse(begins);
        if begins {
            self.proxy.cut();
        }
    }

    /// Cut the database off shortly before a renewal is due; answers with the time of that.
    fn cut_before_a_renewal(&self) -> Instant {
        for _ in 0..10 {
            let before = self.renewals();
            assert!(time::wait_until(SOON, || self.renewals() > before));
            let after = self.renewals();
            time::sleep(TTL / 3 - Duration::from_millis(400));
            let began = time::now();
            self.outage(true);
            if self.renewals() == after {
                return began;
            }
            // This machine was busy, and a renewal got through: on to the next.
            self.outage(false);
        }
        panic!("no outage began before a renewal");
    }
}

/// Not earlier than the rule says, and not much later.
#[test]
fn an_outage_just_before_a_renewal_stops_the_command_when_the_rule_says_so() {
    let Some(held) = Held::start() else { return };
    let began = held.cut_before_a_renewal();
    let termed = time::wait_until(SOON, || held.lab.path(TERMED).exists());
    let took = began.elapsed();
    assert!(termed, "{}", held.running.said());
    assert!(took >= until_term(), "after {took:?}");
    assert!(took < until_term() + GRACE, "after {took:?}");
    assert_eq!(held.running.end().code(), 76);
    testkit::promise("P4", "postgres");
}

/// Two seconds are for the pause between two tries to connect.
#[test]
fn an_outage_that_is_two_seconds_shorter_costs_nothing() {
    let Some(held) = Held::start() else { return };
    let began = held.cut_before_a_renewal();
    let lasts = until_term() - Duration::from_secs(2);
    time::sleep(lasts.saturating_sub(began.elapsed()));
    held.outage(false);
    let renewed = time::wait_until(SOON, || {
        held.running.said().contains("renewals get through again")
    });
    assert!(renewed, "{}", held.running.said());
    assert!(!held.lab.path(TERMED).exists());
    held.lab.touch("go");
    let done = held.running.end();
    assert_eq!(done.code(), 0, "{done:?}");
    testkit::promise("P6", "postgres");
}
