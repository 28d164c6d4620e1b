//! Several commands at once on a default SQLite file that does not exist yet.

use crate::support::Sandbox;

/// Each is used first by some process of each round, and none of them may see half of the file.
const COMMANDS: [&[&str]; 12] = [
    &["run", "--limit", "9", "api", "--", "true"],
    &["run", "--limit", "9", "api", "--", "true"],
    &["run", "--limit", "9", "api", "--", "true"],
    &["acquire", "--limit", "9", "--ttl", "5s", "other api"],
    &["run", "job", "--", "true"],
    &["acquire", "--ttl", "5s", "step"],
    &["run", "a", "b", "--", "true"],
    &["limit", "third api", "3"],
    &["list"],
    &["init"],
    &["prune", "--older-than", "30d"],
    &["doctor"],
];

#[test]
fn commands_that_make_the_file_at_the_same_time_all_succeed() {
    for round in 0..COMMANDS.len() {
        let sandbox = Sandbox::new();
        let mut order = COMMANDS;
        order.rotate_left(round);
        let running = order.map(|args| sandbox.start(&mut sandbox.dblock(args)));
        for (args, one) in order.iter().zip(running) {
            let done = one.end();
            assert_eq!(done.code(), 0, "{args:?}: {done:?}");
        }
    }
}
