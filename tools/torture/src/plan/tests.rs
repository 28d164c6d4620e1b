//! Plans for engines, seeds and lengths.

use super::*;

const TTL: Duration = Duration::from_millis(1500);

fn of(engine: Engine, seed: u64, seconds: u64) -> Vec<Planned> {
    let kinds = kinds(Client::Rust, engine);
    let processes = Processes {
        count: 8,
        clocks: vec![0, 1],
        guarded: (0..6).collect(),
    };
    plan(kinds, seed, Duration::from_secs(seconds), TTL, &processes)
}

#[test]
fn equal_seeds_plan_equal_faults_and_other_seeds_other_ones() {
    assert_eq!(of(Engine::Postgres, 7, 60), of(Engine::Postgres, 7, 60));
    assert_ne!(of(Engine::Postgres, 7, 60), of(Engine::Postgres, 8, 60));
}

#[test]
fn a_short_run_has_each_kind_of_fault_that_fits() {
    for engine in [Engine::Postgres, Engine::MySql, Engine::Sqlite] {
        for seconds in [12, 120] {
            let planned = of(engine, 1, seconds);
            for kind in KINDS {
                let comes = planned.iter().any(|fault| fault.kind == kind);
                let fits = kind.is_for(engine) && kind != Kind::SlowClaim;
                assert_eq!(comes, fits, "{engine:?} {kind:?}");
            }
            assert!(planned.iter().all(|fault| fault.at < seconds * 1000));
        }
    }
}

#[test]
fn clock_jumps_hit_only_processes_with_a_clock_of_their_own() {
    for fault in of(Engine::Postgres, 3, 120) {
        assert!(fault.kind != Kind::Clock || fault.victim < 2);
    }
}

#[test]
fn faults_in_a_guarded_write_hit_only_processes_that_write_there() {
    for fault in of(Engine::Postgres, 3, 120) {
        assert!(!fault.kind.is_in_guarded() || fault.victim < 6);
    }
}
