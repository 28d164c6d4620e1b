//! What `--help` says below the options of each command; manual pages say it as well.
//!
//! No line is longer than a terminal of 80 columns has room for: clap would break it, and with it
//! the tables and examples.

pub(super) const WHOLE: &str = "\
Examples:
  dblock run nightly -- ./report.sh           wait for the lock, run the report
  dblock run -n nightly -- ./report.sh        skip it if another client has it
  dblock run -n -E 0 nightly -- ./report.sh   the same, and no failure
  dblock list                                 who holds what
  dblock release nightly --force              if its holder is known to be dead
  dblock doctor                               what is wrong with the database
  dblock help run                             all about one command

Without a URL the locks are kept in an SQLite file,
$XDG_STATE_HOME/dblock/locks.sqlite3 or ~/.local/state/dblock/locks.sqlite3:
they exclude the processes of this user on this machine. With the URL of a
database server they exclude all clients of the same table; make that once, with
`dblock init`.

Messages go to standard error, what was asked for to standard output. While a
lock is waited for or held, one line says when the database is away, and one
when it answers again. On a terminal a wait of more than a second is reported,
with who holds the lock. -v reports every wait and who holds the lock; -q only
errors.

Exit codes:
  0      done
  1      show: no such lock; doctor: an error was found; the output could not be
         written (a closed pipe excepted)
  2      usage, a bad URL, a bad setting
  69     the database cannot be reached, refuses, or is blocked
  75     another client has the lock (run, acquire; -E for another code)
  76     the lock was lost and CMD was stopped (run), or the ticket is dead
  126    CMD cannot be run (run)
  127    CMD is not there (run)
  128+n  signal n has ended it
  In all other cases `run` ends with the exit code of CMD.

Environment:
  DATABASE_LOCKS_URL  the database, unless --url or --url-file is given; better
                      than --url for one with a password: every user of a
                      machine can see the arguments of a process
  DATABASE_LOCKS_URL_FILE
                      a file with the URL
  DATABASE_LOCKS_TABLE
                      the table, unless --table is given
  PGPASSWORD, PGPASSFILE, PGSERVICE, PGHOST, PGUSER, ..., MYSQL_PWD
                      what the URL leaves out, as the database's own clients
                      take it; so are ~/.pgpass, ~/.pg_service.conf, ~/.my.cnf
  XDG_STATE_HOME      where the file is kept without a URL
  NO_COLOR            if it is set, no colours in a terminal";

pub(super) const RUN: &str = "\
CMD runs in a process group of its own, with its standard input, output and
error untouched. TERM, INT, HUP, QUIT, USR1, USR2 and the like that are sent to
dblock go on to that group, and the lock is freed after CMD has ended, not
before. A signal that was ignored when dblock started (nohup) stays ignored.

The lock is a lease: it is renewed while CMD runs. If it cannot be, because the
database is away, dblock was stopped (Ctrl-Z, SIGSTOP) or the machine suspended
for longer than the ttl, or the lock was released by force, then CMD is stopped,
and dblock ends with 76. The whole group gets TERM, and KILL after the grace,
before the lease ends and another client can have the lock: hence the ttl must
be more than twice the grace. By default the grace is 5 s, and a quarter of a
ttl below 20 s.

The ttl for the longest outage of the database that CMD is to survive:
1.5 x (outage + grace + 5 s). With the defaults, 30 s and 5 s, an outage of 11 s
costs nothing, and TERM comes 13 s after the beginning of a longer one at the
earliest.

The lock is free when CMD has ended, even if processes that CMD left in the
background (sh -c 'work &') still run: let CMD wait for them (`wait` in sh).

If dblock itself is killed with -9, CMD is ended too (Linux); processes that CMD
has started may survive, and so may a CMD that changes its user (sudo). The lock
is free when the ttl ends.

On a cluster with several primaries (Galera, Group Replication) no clock says
that a lease has ended: it is watched for as long as it lasts. Where its holder
looks dead, -n and -w go on until that is over, one ttl at most, so that the
next run of a job that has crashed gets the lock.

The wait (-w; by default without limit) covers the database too: while it is
down, starts up, or has no connection or no disk space left, it is tried again.
With -n that is 69, within 7 s where the table is blocked or packets get lost.
A refusal (a wrong password, a missing table or right) ends
with 69 at once. If no holder is known, because a backup or another program has
the table locked, -w waits for that as well, then ends with 69; -E does not
change it.

A `dblock run` or `acquire` under CMD of a lock that a `dblock run` around it
holds is refused with 2: it would wait for its own end.

CMD may give the lock back before it ends, with `dblock release` and its ticket:
it goes on without being stopped, and others can have the lock.

Durations: 500ms, 30s, 5m, 2h, 1d, or bare seconds (30, 1.5), up to 10 years;
for --ttl and --wait also `inf`, without end.

Exit codes:
  CMD's  CMD has run
  128+n  signal n has ended CMD, or dblock before CMD was started
  75     another client has the lock; -E for another code
  76     the lock was lost and CMD was stopped, or the ticket is dead
  69     the database cannot be reached, refuses, or is blocked
  2      usage, a bad URL, a bad setting, a lock that an outer run holds
  126    CMD cannot be run
  127    CMD is not there

Environment of CMD:
  DBLOCK_NAME    NAME
  DBLOCK_TOKEN   a number that grows with each grant of the lock: store it with
                 what CMD writes, and refuse a smaller one
  DBLOCK_GRANT   the random id of this grant
  DBLOCK_GRANTS  that id, and those of the runs around this one
  DBLOCK_HOLDER  who holds it, as `dblock list` shows it
  DBLOCK_TICKET  all it takes to release this lock, or to go on with it: keep it
                 to yourself

Examples:
  dblock run deploy -- make deploy
  dblock run -w 10m --ttl 1m deploy -- make deploy
  dblock run --ttl 5s job -- ./job
  dblock run -n backup --meta why=weekly -- sh -c 'pg_dump app > app.sql'
  dblock run a -- sh -c './x && dblock release a --ticket \"$DBLOCK_TICKET\"; ./y'
  printf '%s\\n' \"$TICKET\" | dblock run deploy --ticket - -- make deploy";

pub(super) const ACQUIRE: &str = "\
Prints the ticket, and nothing else, on standard output. If that is closed or
cannot be written, the lock is released again. Where one command will do,
`dblock run` is better: it renews the lock, notices when it is lost, and frees
it when it is killed.

The wait covers a database that is away, as with `dblock run`. `-E 0` is
refused: the script would run on without the lock, and with an empty ticket.

A lock acquired so is not renewed by itself. When the ttl ends, another client
can have the lock, and the script is not told: renew in time, and before a step
that must not run beside another one. `renew` ends with 76 if it is too late.
With a long ttl, other clients wait that long for a script that has crashed, or
until the lock is released by force. Hence the default of 10 minutes, and not
the 30 seconds of `run`.

The ticket goes on with the lock anywhere: `renew`, `release` and `run --ticket`
on any machine that uses the same database, or the library. A process that reads
it can release the lock. All users of a machine can read arguments: `--ticket -`
reads it from standard input instead.

--json prints one object: ticket, name, token, grant, holder, expires_at (RFC
3339 UTC, by the clock of the database) and free_in (seconds); the last two are
null for a ttl without end.

Exit codes:
  0   acquired
  75  another client has the lock; -E for another code, but 0
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
The lock is held for the ttl from now on, or longer if it was before: renewing
never shortens.

Exit codes:
  0   renewed
  76  the ticket is dead: the lease has expired, or the lock was released or
      resumed, or another client has had it since; nothing is changed then
  69  the database cannot be reached, or refuses
  2   usage, a bad URL, a bad setting

Examples:
  dblock renew deploy --ticket \"$TICKET\"
  dblock renew deploy --ticket \"$TICKET\" --ttl 1h
  printf '%s\\n' \"$TICKET\" | dblock renew deploy --ticket -
  dblock run deploy -- sh -c './one && dblock renew deploy --ttl 2h && ./two'";

pub(super) const RELEASE: &str = "\
One of --ticket and --force must be given: a ticket in the environment
(DBLOCK_TICKET) is not used by itself.

By force a lock is taken from its holder, which goes on with its work until its
next renewal (a third of its ttl) tells it: make sure first that it is dead, or
stopped.

Exit codes:
  0   released, or, with --force, free already
  75  with --force: an open transaction holds it off; try again later
  76  the ticket is dead: the lock was released or resumed, or another client
      has had it since; nothing is changed then
  69  the database cannot be reached, or refuses
  2   usage, a bad URL, a bad setting

Examples:
  dblock release deploy --ticket \"$TICKET\"
  printf '%s\\n' \"$TICKET\" | dblock release deploy --ticket -
  dblock release nightly --force";

pub(super) const LIST: &str = "\
States: held; expired (its holder did not renew it, the next caller gets it);
free. In a terminal that is too narrow columns are left out, and the last one is
cut: `dblock show NAME` has it all.

Of each lock --json has: name, state, holder (or the last one), token, grant,
held_for and free_in (seconds; null where there is none, or no end),
acquired_at, renewed_at, expires_at (RFC 3339 UTC, by the clock of the
database), metadata (what the holder says of itself).

Examples:
  dblock list
  dblock list --all
  dblock list --json | jq -r '.[] | select(.held_for > 3600) | .name'";

pub(super) const SHOW: &str = "\
Examples:
  dblock show nightly
  dblock show nightly --json | jq .free_in";

pub(super) const PRUNE: &str = "\
A lock leaves a row behind when it is released, and names that contain dates or
customers leave many. Deleting them changes nothing about the locks: tokens
go on growing if such a lock is used again. What is held is never deleted.

Examples:
  dblock prune --older-than 30d
  dblock prune --older-than 1d --include-legacy";

pub(super) const INIT: &str = "\
Needs the right to create tables; all other commands need to read, insert and
update (`prune`: to delete). A table of django-database-locks 0.5 gets what it
lacks and goes on working with it. An SQLite file that is missing is made; `run`
and `acquire` make it too.

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
It looks at the connection, the rights of this user, the table, the clock,
durability, replicas, timeouts and the locks themselves. It changes nothing and
needs no special rights: what this user may not see is `unseen`, and no finding.
As an alert it ends with 1 for errors only; --strict counts warnings too, and
--ignore leaves a finding out, as `no-delete` where another user prunes.

  ok       is as it should be
  unseen   could not be looked at, and why
  error    locks cannot be used, or a promise is not kept; `fix` says what to do
  warning  locks work, and could do better; `fix` says how
  ignored  found, and left out by --ignore

Exit codes:
  0   no error was found; with --strict, no warning either
  1   an error was found; with --strict, or a warning
  69  the database cannot be reached, or is refused: a read-only one, one that
      is too old, a node that is cut off from its cluster
  2   usage, a bad URL, a bad setting

Examples:
  dblock doctor
  dblock doctor --strict --ignore no-delete
  dblock doctor --json | jq -r '.findings[] | .id'";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_line_is_too_long_for_a_terminal() {
        let all = [
            WHOLE,
            RUN,
            ACQUIRE,
            RENEW,
            RELEASE,
            LIST,
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
