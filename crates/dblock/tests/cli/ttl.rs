//! Which outages a ttl survives: measures the rule of `docs/cli.md` and of `run --help`.

use std::time::{Duration, Instant};

use crate::support::{DBLOCK, Running, Sandbox, TIMEOUT};
use testkit::time;
use testkit::{Postgres, Proxy};

const HOLDER: &str = "the-only-holder";
/// The file that the command creates when it gets TERM.
const TERMED: &str = "termed";

/// The default grace, for a ttl below 20 s.
fn grace(ttl: Duration) -> Duration {
    ttl / 4
}

/// The time from the beginning of an outage, just before a renewal, to TERM.
fn until_term(ttl: Duration) -> Duration {
    let reserve = (ttl / 2 - grace(ttl)) / 5;
    ttl * 2 / 3 - grace(ttl) - reserve
}

/// A command under a lock, with a proxy that can cut it off from the database.
struct Held {
    ttl: Duration,
    sandbox: Sandbox,
    proxy: Proxy,
    running: Running,
}

impl Held {
    fn start(ttl: Duration) -> Option<Self> {
        let server = Postgres::shared()?;
        let (sandbox, direct) = (Sandbox::new(), server.fresh_database());
        let init = sandbox.run(["--url", &direct, "init"]);
        assert_eq!(init.code(), 0, "{init:?}");
        let proxy = Proxy::to_url(&direct);
        proxy.watch_for(HOLDER);
        let script = "touch begun; trap 'touch termed; exit' TERM; \
                      while [ ! -e go ]; do sleep 0.02; done";
        let seconds = format!("{}s", ttl.as_secs());
        let mut command = sandbox.command(DBLOCK);
        command
            .args(["run", "--holder", HOLDER, "--ttl", &seconds, "job"])
            .args(["--", "sh", "-c", script])
            .env("DATABASE_LOCKS_URL", proxy.url(&direct));
        let running = sandbox.start(&mut command);
        sandbox.wait_for("begun");
        Some(Self {
            ttl,
            sandbox,
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

    /// Cuts the database off shortly before a renewal is due, and returns the time.
    fn cut_before_a_renewal(&self) -> Instant {
        for _ in 0..10 {
            let before = self.renewals();
            assert!(time::wait_until(TIMEOUT, || self.renewals() > before));
            let after = self.renewals();
            time::sleep(self.ttl / 3 - Duration::from_millis(400));
            let began = time::now();
            self.outage(true);
            if self.renewals() == after {
                return began;
            }
            // The machine was busy, and a renewal got through: try again before the next one.
            self.outage(false);
        }
        panic!("no outage began before a renewal");
    }
}

/// Not before the time of the rule, and not much after it.
#[test]
fn an_outage_just_before_a_renewal_stops_the_command_when_the_rule_says() {
    let ttl = Duration::from_secs(18);
    let Some(held) = Held::start(ttl) else { return };
    let began = held.cut_before_a_renewal();
    let termed = time::wait_until(TIMEOUT, || held.sandbox.path(TERMED).exists());
    let took = began.elapsed();
    assert!(termed, "{}", held.running.stderr());
    assert!(took >= until_term(ttl), "after {took:?}");
    assert!(took < until_term(ttl) + grace(ttl), "after {took:?}");
    assert_eq!(held.running.end().code(), 76);
    testkit::promise("P4", "postgres");
}

/// Two seconds are the longest pause between two tries to connect.
#[test]
fn an_outage_that_is_two_seconds_shorter_costs_nothing() {
    let ttl = Duration::from_secs(9);
    let Some(held) = Held::start(ttl) else { return };
    let began = held.cut_before_a_renewal();
    let lasts = until_term(ttl) - Duration::from_secs(2);
    time::sleep(lasts.saturating_sub(began.elapsed()));
    held.outage(false);
    let renewed = time::wait_until(TIMEOUT, || {
        held.running.stderr().contains("renewals get through again")
    });
    assert!(renewed, "{}", held.running.stderr());
    assert!(!held.sandbox.path(TERMED).exists());
    held.sandbox.touch("go");
    let done = held.running.end();
    assert_eq!(done.code(), 0, "{done:?}");
    testkit::promise("P6", "postgres");
}
