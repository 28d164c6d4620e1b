use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use pollster::block_on;

use super::*;
use crate::store::sqlite::Sqlite;
use crate::store::sqlite::tests::{ALONE, command};
use crate::store::{api::Store, connect::table::Table};
use protocol::Grant;
use protocol::Ttl;

const SOON: Duration = Duration::from_secs(20);

/// A store in a folder of its own, its direct connection and its file.
struct Subject {
    store: Sqlite,
    path: PathBuf,
    _folder: tempfile::TempDir,
}

impl Subject {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("locks.sqlite3");
        Self {
            store: Sqlite::new(path.clone(), true, &Table::default()),
            path,
            _folder: folder,
        }
    }

    fn direct(&self) -> Arc<dyn DirectConnection> {
        self.store.direct().unwrap()
    }

    /// Another client, which SQL is run on by hand.
    fn by_hand(&self) -> rusqlite::Connection {
        rusqlite::Connection::open(&self.path).unwrap()
    }

    fn files(&self) -> usize {
        fs::read_dir(self._folder.path()).unwrap().count()
    }
}

fn try_once(
    direct: &dyn DirectConnection,
    command: &AcquireCommand,
) -> Result<Outcome, StoreError> {
    block_on(direct.acquire(std::slice::from_ref(command))).map(|mut outcomes| outcomes.remove(0))
}

fn granted(direct: &dyn DirectConnection, command: &AcquireCommand) -> ReleaseCommand {
    let Outcome::Granted { token, .. } = try_once(direct, command).unwrap() else {
        panic!("not granted");
    };
    let grant = Grant {
        slot: Default::default(),
        name: command.name.clone(),
        token,
        id: command.grant,
        holder: Arc::clone(&command.holder),
        confirmed_by: None,
    };
    ReleaseCommand::of(&grant, Ttl::Finite(command.length))
}

fn release(
    direct: &dyn DirectConnection,
    command: &ReleaseCommand,
) -> Result<Released, StoreError> {
    block_on(direct.release(std::slice::from_ref(command))).map(|done| done[0])
}

/// For calls of the store, which have deadlines.
fn runtime() -> tokio::runtime::Runtime {
    let mut runtime = tokio::runtime::Builder::new_current_thread();
    runtime.enable_time().build().unwrap()
}

fn within_time(mut done: impl FnMut() -> bool) {
    let until = crate::runtime::clock::now() + SOON;
    while !done() {
        assert!(crate::runtime::clock::now() < until, "not in time");
        thread::yield_now();
    }
}

#[test]
fn store_and_direct_connection_see_what_the_other_has_done() {
    let _alone = ALONE.blocking_lock();
    let subject = Subject::new();
    let (direct, store) = (subject.direct(), &subject.store);
    assert!(direct.blocks());
    let (first, second) = (command("job"), command("job"));
    let first = granted(&*direct, &first);
    let runtime = runtime();
    let commands = [second];
    let answer = runtime.block_on(store.acquire(&commands, SOON)).unwrap();
    assert!(matches!(answer[..], [Outcome::Held(_)]), "{answer:?}");
    assert_eq!(release(&*direct, &first).unwrap(), Released::Freed);
    let answer = runtime.block_on(store.acquire(&commands, SOON)).unwrap();
    assert!(matches!(answer[..], [Outcome::Granted { .. }]));
    let third = try_once(&*direct, &command("job")).unwrap();
    assert!(matches!(third, Outcome::Held(_)), "{third:?}");
}

#[test]
fn a_file_that_another_client_writes_to_is_contention_and_a_held_lock_is_held_all_the_same() {
    let _alone = ALONE.blocking_lock();
    let subject = Subject::new();
    let direct = subject.direct();
    let held = granted(&*direct, &command("held"));
    let writer = subject.by_hand();
    writer.execute_batch("BEGIN IMMEDIATE").unwrap();
    // Both are answered while the other client goes on writing.
    let outcome = try_once(&*direct, &command("job"));
    assert!(
        matches!(outcome, Err(StoreError::Contention(_))),
        "{outcome:?}"
    );
    let released = release(&*direct, &held);
    assert!(
        matches!(released, Err(StoreError::Contention(_))),
        "{released:?}"
    );
    let outcome = try_once(&*direct, &command("held")).unwrap();
    assert!(matches!(outcome, Outcome::Held(_)), "{outcome:?}");
    writer.execute_batch("ROLLBACK").unwrap();
    granted(&*direct, &command("job"));
    assert_eq!(release(&*direct, &held).unwrap(), Released::Freed);
}

#[test]
fn an_open_fence_keeps_the_lock_from_callers_of_the_direct_connection() {
    let _alone = ALONE.blocking_lock();
    let subject = Subject::new();
    let direct = subject.direct();
    let held = granted(&*direct, &command("job"));
    let fences = crate::store::sqlite::fence::Fences::of_database(
        &subject.store.database.path,
        Table::default().as_str(),
    );
    let fence = fences.open("job", protocol::Slot::Lock).unwrap().unwrap();
    assert_eq!(release(&*direct, &held).unwrap(), Released::Freed);
    assert_eq!(try_once(&*direct, &command("job")).unwrap(), Outcome::Busy);
    drop(fence);
    granted(&*direct, &command("job"));
}

#[test]
fn a_file_that_was_deleted_is_made_anew_for_its_owner_only() {
    let _alone = ALONE.blocking_lock();
    let subject = Subject::new();
    let direct = subject.direct();
    let lost = granted(&*direct, &command("job"));
    for end in ["", "-wal", "-shm"] {
        let mut file = subject.path.clone().into_os_string();
        file.push(end);
        fs::remove_file(file).unwrap();
    }
    assert_eq!(release(&*direct, &lost).unwrap(), Released::NotHeld);
    granted(&*direct, &command("job"));
    let rows: i64 = subject
        .by_hand()
        .query_row("SELECT count(*) FROM database_locks_lock", [], |row| {
            row.get(0)
        })
        .unwrap();
    assert_eq!(rows, 1, "of the file that is there now");
    let mode = fs::metadata(&subject.path).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
}

#[test]
fn a_file_that_may_not_be_made_is_not_made_by_the_direct_connection() {
    let _alone = ALONE.blocking_lock();
    let subject = Subject::new();
    let store = Sqlite::new(subject.path.clone(), false, &Table::default());
    let refused = block_on(store.direct().unwrap().connect());
    assert!(
        matches!(refused, Err(StoreError::Rejected { hint: Some(_), .. })),
        "{refused:?}"
    );
    assert!(!subject.path.exists());
}

#[test]
fn a_table_that_the_store_has_used_may_come_back_for_the_direct_connection_too() {
    let _alone = ALONE.blocking_lock();
    let subject = Subject::new();
    let (store, direct) = (&subject.store, subject.direct());
    let runtime = runtime();
    runtime
        .block_on(store.acquire(&[command("job")], SOON))
        .unwrap();
    let rename = "ALTER TABLE database_locks_lock RENAME TO away";
    subject.by_hand().execute_batch(rename).unwrap();
    let lacking = try_once(&*direct, &command("job"));
    assert!(
        matches!(lacking, Err(StoreError::Unavailable(_))),
        "{lacking:?}"
    );
}

/// Simulates a disk that hangs by a job that blocks.
#[test]
fn a_call_that_hangs_keeps_no_other_thread() {
    let _alone = ALONE.blocking_lock();
    let subject = Subject::new();
    let direct = &subject.store.direct;
    let (thaw, frozen) = mpsc::channel::<()>();
    let (tell, begun) = mpsc::channel();
    thread::scope(|scope| {
        let hangs = scope.spawn(move || {
            direct.call(|_| {
                tell.send(()).unwrap();
                let _ = frozen.recv();
                Ok(())
            })
        });
        begun.recv().unwrap();
        let outcome = try_once(&**direct, &command("job"));
        assert!(
            matches!(outcome, Err(StoreError::Contention(_))),
            "{outcome:?}"
        );
        drop(thaw);
        hangs.join().unwrap().unwrap();
    });
    granted(&**direct, &command("job"));
}

#[test]
fn a_call_that_panics_leaves_the_direct_connection_usable() {
    let _alone = ALONE.blocking_lock();
    let subject = Subject::new();
    let direct = &subject.store.direct;
    let panics = || direct.call(|_| -> Result<(), StoreError> { panic!("of its own") });
    let caught = std::panic::catch_unwind(std::panic::AssertUnwindSafe(panics));
    assert!(caught.is_err());
    granted(&**direct, &command("job"));
}

#[test]
fn the_last_handle_that_is_dropped_closes_the_file() {
    let _alone = ALONE.blocking_lock();
    let mut subject = Subject::new();
    let direct = subject.direct();
    granted(&*direct, &command("job"));
    assert_eq!(subject.files(), 3, "the file, its journal and its index");
    let other = subject.path.with_file_name("another");
    subject.store = Sqlite::new(other, false, &Table::default());
    granted(&*direct, &command("another job"));
    drop(direct);
    within_time(|| subject.files() == 1);
}

#[cfg(target_os = "linux")]
#[test]
fn a_direct_connection_by_itself_has_the_file_open_once_and_starts_no_thread() {
    let _alone = ALONE.blocking_lock();
    within_time(|| crate::store::sqlite::connection::thread::tests::threads() == 0);
    let subject = Subject::new();
    let direct = subject.direct();
    let open = || {
        let open = fs::read_dir("/proc/self/fd").unwrap().flatten();
        open.filter(|fd| fs::read_link(fd.path()).is_ok_and(|to| to == subject.path))
            .count()
    };
    assert_eq!(open(), 0);
    let held = granted(&*direct, &command("job"));
    release(&*direct, &held).unwrap();
    assert_eq!(open(), 1);
    assert_eq!(
        crate::store::sqlite::connection::thread::tests::threads(),
        0
    );
    let runtime = runtime();
    runtime.block_on(subject.store.read(&[], SOON)).unwrap();
    assert_eq!(open(), 2);
}
