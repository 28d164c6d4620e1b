//! What concerns the file.

use std::fs::{Permissions, set_permissions};
use std::os::unix::fs::PermissionsExt;

use super::*;

#[tokio::test]
async fn a_world_writable_file_is_found() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("locks.sqlite3");
    let url = format!("sqlite://{}", file.display());
    let locks = Locks::connect(&url).await.unwrap();
    assert!(ids(&locks.doctor().await.unwrap()).is_empty());
    set_permissions(&file, Permissions::from_mode(0o666)).unwrap();
    only(
        &locks.doctor().await.unwrap(),
        "file-open",
        "locks.sqlite3 may be written",
    );
    set_permissions(&file, Permissions::from_mode(0o660)).unwrap();
    set_permissions(folder.path(), Permissions::from_mode(0o777)).unwrap();
    only(&locks.doctor().await.unwrap(), "file-open", "the folder");
    // As that of /tmp.
    set_permissions(folder.path(), Permissions::from_mode(0o1777)).unwrap();
    assert!(ids(&locks.doctor().await.unwrap()).is_empty());
}

/// A commit there reaches no disk, and need not: a restart of the machine ends all holders.
#[cfg(target_os = "linux")]
#[tokio::test]
async fn a_database_in_memory_is_not_reported_as_on_disk() {
    let durability = async |folder: &std::path::Path| {
        let url = format!("sqlite://{}", folder.join("locks.sqlite3").display());
        let report = Locks::connect(&url).await.unwrap().doctor().await.unwrap();
        assert!(ids(&report).is_empty(), "{report:#?}");
        check(&report, "durability").message.clone()
    };
    let on_tmpfs = tempfile::tempdir_in("/dev/shm").unwrap();
    let message = durability(on_tmpfs.path()).await;
    assert!(message.contains("in memory (tmpfs)"), "{message}");
}
