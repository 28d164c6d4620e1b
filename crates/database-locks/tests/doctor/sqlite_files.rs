//! What concerns the file.

use std::fs::{Permissions, set_permissions};
use std::os::unix::fs::PermissionsExt;

use super::*;

#[tokio::test]
async fn a_file_that_everybody_may_write_is_found() {
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
