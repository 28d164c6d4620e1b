//! The default SQLite file.

use crate::support::{Finished, Sandbox};

fn at_home(sandbox: &Sandbox, home: &std::path::Path, args: &[&str]) -> Finished {
    let mut command = sandbox.dblock(args);
    command.env_remove("XDG_STATE_HOME").env("HOME", home);
    sandbox.start(&mut command).end()
}

#[test]
fn a_missing_home_folder_is_not_created() {
    let sandbox = Sandbox::new();
    let home = sandbox.path("no/such/home");
    for args in [
        &["list"][..],
        &["run", "job", "--", "touch", "ran"],
        &["init"],
    ] {
        let done = at_home(&sandbox, &home, args);
        let message = done.only_line(69);
        assert!(
            message.contains("no/such/home (HOME) is missing") && message.contains("--url"),
            "{args:?}: {message}"
        );
    }
    assert!(!sandbox.path("no").exists() && !sandbox.path("ran").exists());
    // It is not needed if the file is in another folder.
    let mut elsewhere = sandbox.dblock(["run", "job", "--", "true"]);
    assert_eq!(sandbox.start(elsewhere.env("HOME", &home)).end().code(), 0);
}

#[test]
fn folders_below_the_home_folder_are_created_for_their_owner_only() {
    use std::os::unix::fs::PermissionsExt;
    let sandbox = Sandbox::new();
    let done = at_home(&sandbox, &sandbox.path(""), &["run", "job", "--", "true"]);
    assert_eq!(done.code(), 0, "{done:?}");
    for (path, mode) in [
        (".local/state/dblock", 0o700),
        (".local/state/dblock/locks.sqlite3", 0o600),
    ] {
        let found = std::fs::metadata(sandbox.path(path)).expect(path);
        assert_eq!(found.permissions().mode() & 0o777, mode, "{path}");
    }
}
