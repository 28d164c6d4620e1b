//! The short form of `make torture`: from fixed seeds, each kind of fault once on each engine, and
//! the controls that need no Python.

use std::path::{Path, PathBuf};
use std::time::Duration;

use torture::engine::Engine;
use torture::options::Options;
use torture::outcome::Outcome;
use torture::plan::Kind;
use torture::run::run;
use torture::target::Target;
use torture::worker::Client;

/// Locks, a semaphore for which more processes contend than it has permits, a lock that readers
/// share, and the lock of a guarded table.
fn targets(engine: Engine) -> Vec<Target> {
    let mut targets = Target::locks(4);
    targets.extend([Target::semaphore(2), Target::shared()]);
    if engine.has_guards() {
        targets.push(Target::guarded());
    }
    targets
}

fn options(engine: Engine, seed: u64) -> Options {
    Options {
        engine,
        seed,
        length: Duration::from_secs(13),
        clients: vec![Client::Rust; 8],
        targets: targets(engine),
        kinds: None,
        worker: PathBuf::from(env!("CARGO_BIN_EXE_torture-worker")),
        python: None,
        old_python: None,
        folder: Path::new(env!("CARGO_TARGET_TMPDIR")).join("torture"),
    }
}

fn assert_good(outcome: &Outcome) {
    assert!(
        outcome.is_good(),
        "{} violations {:#?}\nproblems {:#?}\nhistories in {}; again: {}",
        outcome.violations.len(),
        outcome.violations.iter().take(20).collect::<Vec<_>>(),
        outcome.problems,
        outcome.options.folder.display(),
        outcome.command(),
    );
}

fn assert_promises_kept(engine: Engine, seed: u64) {
    run_checked(&options(engine, seed));
}

fn run_checked(options: &Options) {
    let Some(outcome) = run(options) else {
        return;
    };
    assert_good(&outcome);
    // Else the processes never contended.
    assert!(outcome.numbers.grants > 20, "{:?}", outcome.numbers);
    assert!(outcome.numbers.writes > 20, "{:?}", outcome.numbers);
}

#[test]
#[ignore = "make prove"]
fn locks_keep_their_promises_on_postgres() {
    assert_promises_kept(Engine::Postgres, 11);
}

#[test]
#[ignore = "make prove"]
fn locks_keep_their_promises_on_mariadb() {
    assert_promises_kept(Engine::MariaDb, 12);
}

#[test]
#[ignore = "make prove"]
fn locks_keep_their_promises_on_mysql() {
    assert_promises_kept(Engine::MySql, 16);
}

#[test]
#[ignore = "make prove"]
fn locks_keep_their_promises_on_sqlite() {
    assert_promises_kept(Engine::Sqlite, 13);
}

/// All processes read and write under one lock, so that the faults of a holder hit its readers and
/// writers.
#[test]
#[ignore = "make prove"]
fn readers_and_writers_keep_their_promises() {
    for (engine, seed) in [
        (Engine::Postgres, 17),
        (Engine::MariaDb, 18),
        (Engine::Sqlite, 19),
    ] {
        run_checked(&Options {
            clients: vec![Client::Rust; 6],
            targets: vec![Target::shared()],
            kinds: Some(Kind::of_a_holder(engine)),
            ..options(engine, seed)
        });
    }
}

/// Some of the kinds of faults: those of a node take longer.
#[test]
#[ignore = "make prove"]
fn locks_keep_their_promises_on_galera() {
    let kinds = vec![
        Kind::KillHolding,
        Kind::FreezeHolding,
        Kind::FreezeInFence,
        Kind::FreezeBeforeGuarded,
        Kind::FreezeInGuarded,
        Kind::StallLong,
        Kind::LoseReply,
        Kind::FreezeNode,
        Kind::ClockOfNode,
    ];
    run_checked(&Options {
        length: Duration::from_secs(10),
        kinds: Some(kinds),
        ..options(Engine::Galera, 15)
    });
}

/// One lock, so that another process has it as soon as its lease has ended.
fn control(client: Client, target: Target, engine: Engine, seed: u64) -> Option<Outcome> {
    run(&Options {
        length: Duration::from_secs(8),
        clients: vec![client; 4],
        targets: vec![target],
        ..options(engine, seed)
    })
}

fn assert_caught(client: Client, engine: Engine) {
    for lock in Target::locks(1) {
        assert_caught_with(client, lock, engine);
    }
}

/// A mistake shows if another process wants the lock at that moment, which nearly every short run
/// has. So there are four attempts.
fn assert_caught_with(client: Client, target: Target, engine: Engine) {
    for seed in [14, 24, 34, 44] {
        let Some(outcome) = control(client, target.clone(), engine, seed) else {
            return;
        };
        let lucky = !outcome.is_good() && outcome.problems.is_empty();
        if !lucky || seed == 44 {
            return assert_good(&outcome);
        }
    }
}

#[test]
#[ignore = "make prove"]
fn a_renewal_that_acquires_is_caught() {
    assert_caught(Client::RenewalAcquires, Engine::Sqlite);
}

#[test]
#[ignore = "make prove"]
fn trust_counted_from_the_reply_is_caught() {
    assert_caught(Client::TrustFromReply, Engine::Postgres);
}

#[test]
#[ignore = "make prove"]
fn a_lock_handed_out_after_the_end_of_trust_is_caught() {
    assert_caught(Client::HandsOutEnded, Engine::Postgres);
    assert_caught(Client::HandsOutEnded, Engine::MariaDb);
}

#[test]
#[ignore = "make prove"]
fn expiry_by_the_clock_of_a_client_is_caught() {
    assert_caught(Client::ClientClock, Engine::MariaDb);
}

#[test]
#[ignore = "make prove"]
fn unfenced_writes_are_caught() {
    assert_caught(Client::Unfenced, Engine::Postgres);
}

#[test]
#[ignore = "make prove"]
fn a_count_of_the_holders_and_then_a_claim_is_caught() {
    for engine in [Engine::Sqlite, Engine::Postgres, Engine::MySql] {
        assert_caught_with(Client::CountsThenEnters, Target::semaphore(2), engine);
    }
}

#[test]
#[ignore = "make prove"]
fn readers_and_writers_that_look_and_then_enter_are_caught() {
    for engine in [Engine::Sqlite, Engine::Postgres, Engine::MySql] {
        assert_caught_with(Client::LooksThenEnters, Target::shared(), engine);
    }
}

/// A run of it is good only if late writes were found, and writes without the grant.
#[test]
#[ignore = "make prove"]
fn writes_to_a_table_without_a_guard_are_caught() {
    for engine in [Engine::Postgres, Engine::MariaDb] {
        assert_caught_with(Client::Unguarded, Target::guarded(), engine);
    }
}

/// The control of the controls: the faults alone cause no violation.
#[test]
#[ignore = "make prove"]
fn a_simple_client_without_a_mistake_is_not_caught() {
    let mut targets = Target::locks(1);
    targets.extend([Target::semaphore(2), Target::shared()]);
    for engine in [Engine::Sqlite, Engine::Postgres] {
        for target in &targets {
            if let Some(outcome) = control(Client::Correct, target.clone(), engine, 14) {
                assert_good(&outcome);
            }
        }
    }
}
