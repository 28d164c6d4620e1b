//! The texts that `--help` and the manual pages show after the options.
//!
//! No line is longer than 80 characters: clap would wrap it, and break the tables and examples.

pub(super) const DBLOCK: &str = "\
Examples:
  dblock run nightly -- ./report.sh           wait for the lock, run, release
  dblock run -n nightly -- ./report.sh        skip if another client has it (75)
  dblock run -n -E 0 nightly -- ./report.sh   the same, and end with 0
  dblock run orders stock -- ./move.sh        both locks, or none
  dblock lead scheduler -- ./scheduler        run on one machine of many
  dblock list                                 who holds which lock
  dblock release nightly --force              free the lock of a dead holder
  dblock guard invoices --lock ledger         refuse writes without the lock
  dblock doctor                               check the database
  dblock help run                             all about one command

By default the locks are in an SQLite file, $XDG_STATE_HOME/dblock/locks.sqlite3
or ~/.local/state/dblock/locks.sqlite3, and exclude the processes of one user on
one machine. With the URL of a database server they exclude all clients of the
same table. Create that table once, with `dblock init`.

Results go to stdout: a ticket, a list, a page. Messages go to stderr. While a
command waits for a lock or holds one, it reports the beginning and the end of a
database outage. On a terminal it also reports a wait of more than a second, and
who holds the lock. -v reports every wait; -q reports errors only.

Exit codes:
  0      success
  1      show: there is no such lock; doctor: an error was found; any command:
         the output could not be written (a closed pipe is no error)
  2      usage, a bad URL, a bad setting
  69     the database cannot be reached, refuses, or is blocked
  75     another client has the lock (run, acquire; -E sets another code); an
         open transaction is in the way (release --force, guard, unguard)
  76     the lock was lost and CMD was stopped (run), or the ticket is dead
  126    CMD cannot be run (run, lead)
  127    CMD was not found (run, lead)
  128+n  ended by signal n
  In all other cases `run` ends with the exit code of CMD.

Environment:
  DATABASE_LOCKS_URL  the database, unless --url or --url-file is given. Use it
                      rather than --url for a URL with a password: all users of
                      a machine can see the arguments of a process
  DATABASE_LOCKS_URL_FILE
                      a file that contains the URL
  DATABASE_LOCKS_TABLE
                      the table, unless --table is given
  PGPASSWORD, PGPASSFILE, PGSERVICE, PGHOST, PGUSER, ..., MYSQL_PWD
                      what the URL leaves out, as in psql and mysql; the files
                      ~/.pgpass, ~/.pg_service.conf and ~/.my.cnf are read too
  XDG_STATE_HOME, HOME
                      the folder of the default SQLite file
  NO_COLOR            if set and not empty: no colours";

pub(super) const RUN: &str = "\
CMD runs in a process group of its own, with stdin, stdout and stderr as they
are. The signals TERM, INT, HUP, QUIT, USR1, USR2 and the like are forwarded to
that group. The lock is released after CMD has ended, not before. A signal that
was ignored when dblock started (nohup) stays ignored.

The lock is a lease, renewed every third of the ttl while CMD runs. The lock is
lost if it cannot be renewed for longer than the ttl allows (the database is
away, dblock is stopped, the machine is suspended) or if it is released by
force. Then the process group of CMD gets TERM, and KILL after the grace, both
before the lease ends and another client can have the lock; dblock ends with 76.
So the ttl must be more than twice the grace. The default grace is 5 s, or a
quarter of a ttl below 20 s.

To survive a database outage of a given length, use
ttl = 1.5 x (outage + grace + 5 s). With the defaults, 30 s and 5 s, an outage
of 11 s is survived, and in a longer one TERM comes after 13 s at the earliest.

Processes that CMD leaves in the background (sh -c 'work &') do not hold the
lock: it is released when CMD ends. Let CMD wait for them (`wait` in sh).

If dblock is killed with KILL, CMD is killed too (Linux). Processes that CMD
started may survive, and so may a CMD that changes its user (sudo). The lock is
free when the ttl ends.

A wait (-w; by default without limit) covers the database too: while it is down,
starts up, or has no connection or disk space left, dblock tries again. -n ends
with 69 then: at once, or within 7 s if the table is blocked or packets get
lost. A refusal (wrong password, missing table or right) ends with 69 at once.
If no client holds the lock but a backup or another program has the table
locked, -w waits, then ends with 69. -E does not change 69.

On a cluster with several primaries (Galera, Group Replication) no clock tells
that a lease has ended, so the row is watched for the length of the lease. If
the holder looks dead, -n and -w go on until then, one ttl at most.

With --once-per CMD runs only if no client was granted the lock in this period,
by the clock of the database. Otherwise dblock ends with 0 at once, and only -v
says so. A tenth of the period, at most a minute, is forgiven, since machines
start a little earlier or later each time. A run counts whether CMD succeeded or
not. `dblock prune` must leave rows for longer than the period.

With --at-least the lock rests after a CMD that ends sooner: no client holds it,
and none can acquire it before that time has passed since the grant. `dblock
release --force` ends the rest. After a loss, or if dblock is killed, the lock
does not rest.

The words before the first `--` are names, and CMD follows it. Without `--`, CMD
begins with the second word.

Several names are acquired all or none, 100 at most. While it waits
for one of them, dblock holds none, so runs that name the same locks in another
order cannot block each other. Each lock is an ordinary one, in `list` and for
`release`. If one is lost, CMD is stopped as above, and the others are released
after it has ended. The locks have to be free at the same moment: while other
processes hold them in turn without a pause, the wait may be long; limit it by
-w.

With --limit N the lock is one of N permits of a semaphore: up to N holders have
one at the same time, on all machines together. A semaphore and a lock of the
same name are independent of each other. `dblock limit` sets a limit for all
callers.

With --shared the lock is held together with others that give --shared, and
never beside one that does not. A run without --shared that waits goes before
all runs with --shared that start later.

With --pgoptions every program on libpq in CMD (psql, pg_restore and others)
writes to the tables that the lock guards (see `dblock help guard`): the grant
is added to PGOPTIONS. If the locks are not in PostgreSQL, dblock ends with 2.
The option cannot be combined with --limit or --shared, which open no guard.

Within CMD, a `dblock run` or `dblock acquire` of a lock that this one holds is
refused with 2: it would wait for this run, which waits for CMD. A wait for
another permit of the same semaphore is not refused: limit it by -w.

CMD may release the lock early, with `dblock release` and its ticket: CMD runs
on, and other clients can have the lock.

Durations: 500ms, 30s, 5m, 2h, 1d, or bare seconds (30, 1.5), up to 10 years;
--ttl and --wait also take `inf`.

Exit codes:
  CMD's  CMD has run
  0      with --once-per also if CMD was begun in this period already
  128+n  signal n ended CMD, or dblock before CMD was started
  75     another client has the lock; -E sets another code
  76     the lock was lost and CMD was stopped, or the ticket is dead
  69     the database cannot be reached, refuses, or is blocked
  2      usage, a bad URL, a bad setting, or the lock is held by an outer run
  126    CMD cannot be run
  127    CMD was not found

Environment of CMD:
  DBLOCK_NAME    NAME
  DBLOCK_TOKEN   the fencing token, which grows with each grant: store it with
                 what CMD writes, and reject a smaller one
  DBLOCK_GRANT   the random id of this grant
  DBLOCK_GRANTS  that id, and the ids of the runs around this one
  DBLOCK_HOLDER  the holder, as `dblock list` shows it
  DBLOCK_SLOT    with --limit: the number of the permit, from 0
  DBLOCK_TICKET  the ticket, with which any process can renew, release or resume
                 the lock: keep it secret
  PGOPTIONS      with --pgoptions: what it contained, and the grants
  Of several locks, NAME, TOKEN, GRANT and TICKET are lists, separated by
  commas, in the order of the names given. A ticket contains no comma.

Examples:
  dblock run deploy -- make deploy
  dblock run -w 1m orders stock -- ./move-stock.sh
  dblock run -w 10m --ttl 1m deploy -- make deploy
  dblock run --ttl 5s job -- ./job
  dblock run -n backup --meta why=weekly -- sh -c 'pg_dump app > app.sql'
  dblock run a -- sh -c './x && dblock release a --ticket \"$DBLOCK_TICKET\"; ./y'
  dblock run --once-per 1h hourly -- ./report.sh     (the same on all machines)
  dblock run --limit 3 api -- ./sync.sh
  dblock run --shared prices -- ./quote.sh
  dblock run --pgoptions ledger -- psql -f invoices.sql
  printf '%s\\n' \"$TICKET\" | dblock run deploy --ticket - -- make deploy";

pub(super) const LEAD: &str = "\
Start `dblock lead NAME -- CMD` on each machine. One of them leads: it holds the
lock NAME and runs its CMD; the others wait. If the leader ends, or its machine
dies, another one starts its CMD, in the second case when the ttl has ended.

dblock campaigns again after each end of CMD, whatever its exit code. It first
releases the lock and pauses, so that another machine may lead: for 1 s, and
each time for twice as long, up to 1 min, if CMD ran for less than 10 s. After
a loss of the lock it campaigns again at once. To give up the leadership, let
CMD end.

The lock is lost if it cannot be renewed (the database is away, dblock is
stopped, the machine is suspended), or if it is released by force or by its
ticket. Then the process group of CMD gets TERM, and KILL after the grace, both
before the lease ends and another machine can lead. After a release by force or
by ticket another one may lead already. So the ttl must be more than twice the
grace.

Signals are forwarded to CMD. After TERM, INT or QUIT dblock waits for the end
of CMD, releases the lock, and ends with 128+n; so it does if CMD is ended by a
signal that was forwarded. Other signals end nothing unless CMD does: HUP
reaches a server that reads its configuration again. While dblock waits to lead,
a signal ends it at once. CMD gets the terminal only when it uses it.

CMD runs as in `dblock run`: the same environment (DBLOCK_TOKEN is the term),
process group, and end if dblock is killed. Its processes in the background
must end with it.

See who leads with `dblock show NAME`, or `dblock show NAME --json`: holder,
token and acquired_at, if the state is \"held\".

Exit codes:
  128+n  ended by signal n
  69     the database refuses: a wrong password, a missing table or right. An
         outage is waited for
  2      usage, a bad URL, a bad setting, or the lock is held by an outer run
  126    CMD cannot be run
  127    CMD was not found

Examples:
  dblock lead scheduler -- ./scheduler
  dblock lead --ttl 10s --holder \"$HOSTNAME\" beat -- celery -A app beat
  dblock show scheduler --json | jq -r 'select(.state==\"held\").holder'";

pub(super) const ACQUIRE: &str = "\
The ticket is the only output on stdout. If it cannot be written, the lock is
released again. If one command is enough, use `dblock run`: it renews the lock,
notices its loss, and releases it at the end.

Nothing renews this lock in the background. When the ttl ends, another client
can have the lock, and the script is not notified. Run `dblock renew` in time,
and before each step that must not run beside another holder: it ends with 76 if
it is too late. If a script crashes, other clients wait until its ttl ends or
the lock is released by force. So the default ttl is 10 minutes here, not the 30
seconds of `run`.

Any process that has the ticket can renew, release or resume the lock, on any
machine that uses the same database: `renew`, `release`, `run --ticket`, or the
library. All users of a machine can see arguments; `--ticket -` reads the ticket
from stdin instead.

A wait covers a database that is away, as in `dblock run`. `-E 0` is refused:
the script would run on without the lock, and with an empty ticket.

--json prints one object: ticket, name, token, grant, holder, expires_at (RFC
3339 UTC, by the clock of the database) and free_in (seconds). The last two are
null for an infinite ttl.

Exit codes:
  0   acquired
  75  another client has the lock; -E sets another code, but not 0
  1   the ticket could not be printed; the lock is released again
  69  the database cannot be reached, refuses, or is blocked
  2   usage, a bad URL, a bad setting

Examples:
  TICKET=$(dblock acquire deploy -w 5m --ttl 20m) || exit
  trap 'dblock release deploy --ticket \"$TICKET\"' EXIT
  ./build.sh
  dblock renew deploy --ticket \"$TICKET\" || exit
  ./publish.sh";

pub(super) const RENEW: &str = "\
The lock is held for the ttl from now on. A lease that lasts longer already is
not shortened.

Exit codes:
  0   renewed
  76  the ticket is dead: the lease has expired, the lock was released or
      resumed, or another client has had it since; nothing was changed
  69  the database cannot be reached, or refuses
  2   usage, a bad URL, a bad setting

Examples:
  dblock renew deploy --ticket \"$TICKET\"
  dblock renew deploy --ticket \"$TICKET\" --ttl 1h
  printf '%s\\n' \"$TICKET\" | dblock renew deploy --ticket -
  dblock run deploy -- sh -c './one && dblock renew deploy --ttl 2h && ./two'";

pub(super) const RELEASE: &str = "\
Give either --ticket or --force. The variable DBLOCK_TICKET is not read here.

With --force, the holder is not asked. It works on until its next renewal, after
a third of its ttl at most, and then reports the loss; on PostgreSQL, unless it
is connected through a pooler, at once if its renewals are more than 5 s apart.
Make sure first that it is dead or stopped.

Exit codes:
  0   released; with --force also if the lock was free already
  75  with --force: an open transaction, fenced or on a guarded table, keeps the
      row locked; the message names its session. Try again later
  76  the ticket is dead: the lock was released or resumed, or another client
      has had it since; nothing was changed
  69  the database cannot be reached, or refuses
  2   usage, a bad URL, a bad setting

Examples:
  dblock release deploy --ticket \"$TICKET\"
  printf '%s\\n' \"$TICKET\" | dblock release deploy --ticket -
  dblock release nightly --force";

pub(super) const LIST: &str = "\
A lock is held, resting (released with --at-least; no client can acquire it
yet), expired (its holder did not renew it; the next caller gets it) or free.
Each holder that shares a lock has a line of its own, with the state shared; one
that waits until they have released is waiting. Each permit of a semaphore has a
line, too; a semaphore with the limit 0 is paused. In a narrow terminal, columns
are left out and the last one is cut; `dblock show NAME` prints everything.

--json prints for each lock: name, state, holder (or the last one), token,
grant, held_for and free_in (seconds), acquired_at, renewed_at, expires_at (RFC
3339 UTC, by the clock of the database) and metadata (what the holder says about
itself). A value that does not apply, or has no end, is null. A holder that
shares the lock is \"held\" there, and has the field shared; one that waits has
waits_for; a permit has slot, permits and limit.

Examples:
  dblock list
  dblock list --all
  dblock list --json | jq -r '.[] | select(.held_for > 3600) | .name'";

pub(super) const LIMIT: &str = "\
The limit is kept in the database and takes precedence over --limit of every
caller, at its next try. Holders above a lowered limit keep their permits until
they end. A limit of 0 pauses the semaphore: no permit is granted.

Exit codes:
  0   set
  69  the database cannot be reached, or refuses
  2   usage, a bad URL, a bad setting

Examples:
  dblock limit api 5
  dblock limit api 0       # pause
  dblock limit api none    # the callers' own limits count again";

pub(super) const GUARD: &str = "\
From then on the database itself refuses every INSERT, UPDATE and DELETE of that
table, and on PostgreSQL every TRUNCATE, in a transaction that does not hold the
lock: from psql, an admin page or a program in any language. Under the lock:

  dblock run --pgoptions ledger -- psql -f invoices.sql

gives the grant to every program on libpq. Others show it in their transaction:

  PostgreSQL      SELECT set_config('database_locks.ticket', TICKET, true)
  MySQL, MariaDB  SET @database_locks_ticket = TICKET

with DBLOCK_TICKET or DBLOCK_GRANT as TICKET. The fences of the Rust and Python
libraries do that. A second `dblock guard` of the same table changes nothing,
and covers the partitions that were added meanwhile. `dblock doctor` checks all
guards. If it reports one of another version, after an upgrade, run `dblock
guard` again: on PostgreSQL as the role that owns the trigger function.

It takes the right to create triggers on the table. It is a safety device and no
access control: the owner of the table can remove it.

Exit codes:
  0   guarded, or listed
  69  the database cannot be reached, or refuses: there is no such table, or it
      cannot be guarded
  75  transactions that use the table kept it busy for 30 s; try again later
  2   usage, a bad URL, a bad setting

Examples:
  dblock guard invoices --lock ledger
  dblock guard 'shop.\"Order lines\"' --lock orders
  dblock guard                # all guarded tables";

pub(super) const UNGUARD: &str = "\
Exit codes:
  0   it is not guarded any more, or was not
  69  the database cannot be reached, or refuses
  75  transactions that use the table kept it busy for 30 s; try again later
  2   usage, a bad URL, a bad setting

Examples:
  dblock unguard invoices";

pub(super) const SHOW: &str = "\
The fields of --json are those of `dblock list --json`.

Exit codes:
  0   shown
  1   the table has no row of that lock: it was never acquired, or was pruned
  69  the database cannot be reached, or refuses
  2   usage, a bad URL, a bad setting

Examples:
  dblock show nightly
  dblock show nightly --json | jq .free_in";

pub(super) const PRUNE: &str = "\
A released lock leaves its row behind, and names that contain dates or customers
leave many. Deleting a row changes nothing about the lock: its tokens go on
growing if it is acquired again. But it also deletes the time of the latest run:
with `run --once-per`, give more than the period. The row of a lock that is held
or rests is never deleted.

Examples:
  dblock prune --older-than 30d
  dblock prune --older-than 1d --include-legacy";

pub(super) const INIT: &str = "\
Running it again changes nothing. It needs the right to create tables; other
commands need to read, insert and update, and `prune` to delete. A table that
django-database-locks 0.5 has made gets the columns that it lacks, and both can
use it from then on. A missing SQLite file is created; `run` and `acquire`
create it too.

Examples:
  DATABASE_LOCKS_URL=postgres://admin:password@db.example/app dblock init
  dblock --table ops.locks init";

pub(super) const COMPLETIONS: &str = "\
Examples:
  dir=~/.local/share/bash-completion/completions; mkdir -p $dir
  dblock completions bash > $dir/dblock

  mkdir -p ~/.zfunc      (and `fpath+=~/.zfunc` before compinit in ~/.zshrc)
  dblock completions zsh > ~/.zfunc/_dblock

  dblock completions fish > ~/.config/fish/completions/dblock.fish";

pub(super) const MAN: &str = "\
Examples:
  dblock man run | man -l -
  dir=~/.local/share/man/man1; mkdir -p $dir
  dblock man > $dir/dblock.1; dblock man run > $dir/dblock-run.1";

pub(super) const HELP: &str = "\
Examples:
  dblock help
  dblock help run";

pub(super) const DOCTOR: &str = "\
It checks the connection, the rights of this user, the table, the clock,
durability, replicas, timeouts and the locks themselves. It changes nothing and
needs no special rights: a check that this user has no right to is `unseen`, and
is no finding. Each line of the report begins with one of these words.

  ok       the check found no problem
  unseen   the check was not possible; the line says why
  error    locks do not work, or a promise is not kept; `fix` says what to do
  warning  locks work, with a risk or a cost; `fix` says what to do
  ignored  a finding that --ignore leaves out

Exit codes:
  0   no error was found; with --strict, no warning either
  1   an error was found; with --strict, or a warning
  69  the database cannot be reached or refuses: it is read-only, too old, or a
      node that is cut off from its cluster
  2   usage, a bad URL, a bad setting

Examples:
  dblock doctor
  dblock doctor --strict --ignore no-delete
  dblock doctor --json | jq -r '.findings[] | .id'";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_line_is_longer_than_80_characters() {
        let all = [
            DBLOCK,
            RUN,
            LEAD,
            ACQUIRE,
            RENEW,
            RELEASE,
            LIST,
            LIMIT,
            GUARD,
            UNGUARD,
            SHOW,
            PRUNE,
            INIT,
            COMPLETIONS,
            MAN,
            HELP,
            DOCTOR,
        ];
        for line in all.iter().flat_map(|text| text.lines()) {
            assert!(line.chars().count() <= 80, "{line}");
        }
    }
}
