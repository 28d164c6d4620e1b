//! Where the file is without a URL.

use crate::support::{Done, Lab};

fn at_home(lab: &Lab, home: &std::path::Path, args: &[&str]) -> Done {
    let mut command = lab.dblock(args);
    command.env_remove("XDG_STATE_HOME").env("HOME", home);
    lab.start(&mut command).end()
}

#[test]
fn a_home_folder_that_is_missing_is_not_made() {
    let lab = Lab::new();
    let home = lab.path("no/such/home");
    for args in [
        &["list"][..],
        &["run", "job", "--", "touch", "ran"],
        &["init"],
    ] {
        let done = at_home(&lab, &home, args);
        let said = done.refused(69);
        assert!(
            said.contains("no/such/home (HOME) is missing") && said.contains("--url"),
            "{args:?}: {said}"
        );
    }
    assert!(!lab.path("no").exists() && !lab.path("ran").exists());
    // Neither is it missed where the file is elsewhere.
    let mut elsewhere = lab.dblock(["run", "job", "--", "true"]);
    assert_eq!(lab.start(elsewhere.env("HOME", &home)).end().code(), 0);
}

#[test]
fn the_folders_below_the_home_folder_are_made_for_their_owner_alone() {
    use std::os::unix::fs::PermissionsExt;
    let lab = Lab::new();
    let done = at_home(&lab, &lab.path(""), &["run", "job", "--", "true"]);
    assert_eq!(done.code(), 0, "{done:?}");
    for (path, mode) in [
        (".local/state/dblock", 0o700),
        (".local/state/dblock/locks.sqlite3", 0o600),
    ] {
        let found = std::fs::metadata(lab.path(path)).expect(path);
        assert_eq!(found.permissions().mode() & 0o777, mode, "{path}");
    }
}
