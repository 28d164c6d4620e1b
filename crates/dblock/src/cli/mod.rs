//! From words to typed options; nothing outside sees clap.

mod help;
mod refusal;
mod task;
mod values;
mod words;

use std::ffi::OsString;

use clap::{CommandFactory as _, Parser as _};

use self::refusal::refused;
pub(crate) use self::task::{
    Checkup, DEFAULT_HAND_TTL, Detail, Invocation, Job, OnLost, Task, Wish,
};
use self::words::{Cli, Words};
use crate::exit::Failure;
use crate::pages;
use crate::place::Place;
use crate::ticket::TicketFrom;

/// Read the words of the command line.
///
/// # Errors
///
/// Help and version end the program as well, with 0; they have been printed then.
pub(crate) fn read() -> Result<Invocation, Failure> {
    parse(std::env::args_os().collect())
}

fn parse(words: Vec<OsString>) -> Result<Invocation, Failure> {
    let Cli {
        url,
        url_file,
        table,
        verbose,
        quiet,
        command,
    } = Cli::try_parse_from(&words).map_err(|error| refused(error, &words))?;
    let detail = match (verbose, quiet) {
        (true, _) => Detail::Verbose,
        (_, true) => Detail::Quiet,
        _ => Detail::Usual,
    };
    Ok(Invocation {
        place: Place::new(url, url_file, table, |name| std::env::var_os(name))?,
        detail,
        task: task(command)?,
    })
}

fn task(command: Words) -> Result<Task, Failure> {
    Ok(match command {
        Words::Run(run) => Task::Run(Job {
            wish: run.wish.of(run.name, run.ttl),
            ticket: run.ticket.map(TicketFrom::words),
            command: without_dashes(run.command),
            on_lost: run.on_lost,
            grace: run.grace,
        }),
        Words::Acquire {
            name,
            ttl,
            wish,
            json,
        } => Task::Acquire {
            wish: with_a_failure(wish.of(name, ttl.unwrap_or(DEFAULT_HAND_TTL.into())))?,
            json,
        },
        Words::Renew { name, ticket, ttl } => Task::Renew {
            name,
            ticket: ticket.map_or(TicketFrom::Variable, TicketFrom::words),
            ttl,
        },
        Words::Release {
            name, force: true, ..
        } => Task::Force { name },
        Words::Release {
            name,
            ticket: Some(ticket),
            ..
        } => Task::Release {
            name,
            ticket: TicketFrom::words(ticket),
        },
        Words::Release { name, .. } => {
            return Err(Failure::usage(format!(
                "lock `{name}` is not released: give --ticket, or --force if its holder is dead"
            )));
        }
        Words::List { all, json } => Task::List { all, json },
        Words::Show { name, json } => Task::Show { name, json },
        Words::Init => Task::Init,
        Words::Prune {
            older_than,
            include_legacy,
        } => Task::Prune {
            idle: older_than,
            legacy: include_legacy,
        },
        Words::Completions { shell } => Task::Print(pages::completions(Cli::command(), shell)),
        Words::Man { command } => {
            let page = pages::man(Cli::command(), command.as_deref());
            Task::Print(page.ok_or_else(|| no_command(command))?)
        }
        Words::Help { command } => return Err(help(command)),
        Words::Doctor {
            json,
            strict,
            ignore,
        } => Task::Doctor(Checkup {
            json,
            strict,
            ignored: ignore,
        }),
    })
}

/// CMD of `run -- -NAME -- CMD`, where the first `--` is for the sake of NAME.
fn without_dashes(mut command: Vec<OsString>) -> Vec<OsString> {
    if command.len() > 1 && command[0] == "--" {
        command.remove(0);
    }
    command
}

/// Prints what `dblock COMMAND --help` prints.
fn help(command: Option<String>) -> Failure {
    if let Some(name) = &command
        && Cli::command().find_subcommand(name).is_none()
    {
        return no_command(command);
    }
    let words = ["dblock".to_owned()].into_iter().chain(command);
    let words: Vec<OsString> = words.chain(["--help".to_owned()]).map(Into::into).collect();
    match Cli::try_parse_from(&words) {
        Err(help) => refused(help, &words),
        Ok(_) => Failure::usage("there is no help"),
    }
}

fn no_command(name: Option<String>) -> Failure {
    let name = name.unwrap_or_default();
    Failure::usage(format!(
        "there is no command `{name}`; see `dblock --help` for all"
    ))
}

/// `acquire` with an exit code of 0 for a busy lock would let the script go on without the lock, and
/// with an empty ticket.
fn with_a_failure(wish: Wish) -> Result<Wish, Failure> {
    match wish.busy_exit {
        0 => Err(Failure::usage(
            "-E 0 would let the script run on without the lock: leave it out, and have the script \
             end where `dblock acquire` ends with 75, as in `TICKET=$(dblock acquire -n NAME) || exit 0`",
        )),
        _ => Ok(wish),
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use database_locks::Ttl;

    use super::*;

    fn job(words: &str) -> Job {
        match parse(words.split(' ').map(Into::into).collect()).map(|read| read.task) {
            Ok(Task::Run(job)) => job,
            other => panic!("{other:?}"),
        }
    }

    fn refusal(words: &str) -> String {
        let failure = parse(words.split(' ').map(Into::into).collect()).unwrap_err();
        assert_eq!(failure.code, 2, "{failure:?}");
        failure.said
    }

    #[test]
    fn the_grammar_holds_together() {
        Cli::command().debug_assert();
    }

    #[test]
    fn what_comes_after_the_command_belongs_to_the_command() {
        for words in [
            "dblock run -n job -- cmd -n --ttl 1 -- x --",
            "dblock run job -n -- cmd -n --ttl 1 -- x --",
            "dblock run -n job cmd -n --ttl 1 -- x --",
            "dblock run job -n cmd -n --ttl 1 -- x --",
        ] {
            let job = job(words);
            assert_eq!(job.wish.wait, Some(Duration::ZERO), "{words}");
            assert_eq!(
                job.command,
                ["cmd", "-n", "--ttl", "1", "--", "x", "--"],
                "{words}"
            );
            assert_eq!(
                job.wish.ttl,
                Ttl::Finite(Duration::from_secs(30)),
                "{words}"
            );
        }
    }

    #[test]
    fn a_wait_may_be_none_some_or_without_end() {
        assert_eq!(job("dblock run j -- c").wish.wait, None);
        assert_eq!(job("dblock run -w inf j -- c").wish.wait, None);
        assert_eq!(
            job("dblock run -w 1.5 j -- c").wish.wait,
            Some(Duration::from_millis(1500))
        );
        assert_eq!(
            job("dblock run -w 0 j -- c").wish.wait,
            Some(Duration::ZERO)
        );
    }

    #[test]
    fn a_length_that_makes_no_sense_is_refused_by_its_rule() {
        for bad in ["0", "99ms", "3653d", "10000000000d"] {
            let said = refusal(&format!("dblock run --ttl {bad} j -- c"));
            assert!(
                said.contains(&format!(
                    "'{bad}' for '--ttl <DURATION>': must be 100ms to 10 years"
                )),
                "{said}"
            );
        }
        let refused = |option: &str, value: &str| {
            let command = if option == "prune --older-than" {
                ""
            } else {
                " j -- c"
            };
            refusal(&format!("dblock {option} {value}{command}"))
        };
        let limited = ["run --wait", "run --grace", "prune --older-than"];
        for option in limited.iter().chain(&["run --ttl"]) {
            for bad in [
                "-5",
                "-5s",
                "1ns",
                "1w",
                "99999999999999999999999d",
                "nan",
                "",
            ] {
                let said = refused(option, bad);
                assert!(
                    said.contains(&format!("'{bad}' for '--")),
                    "{option}: {said}"
                );
                assert!(
                    said.contains("must be a number with ms"),
                    "{option}: {said}"
                );
            }
        }
        for option in limited {
            let said = refused(option, "10000000000d");
            assert!(
                said.contains("must be at most 10 years"),
                "{option}: {said}"
            );
        }
        for option in &limited[1..] {
            let said = refused(option, "inf");
            assert!(
                said.contains("must be a number with ms"),
                "{option}: {said}"
            );
        }
        assert_eq!(
            job("dblock run --ttl 3652d j -- c").wish.ttl,
            Ttl::Finite(Duration::from_secs(3652 * 86_400))
        );
    }

    #[test]
    fn a_name_may_begin_with_a_dash() {
        for words in [
            "dblock run -n -- -j -- c -- x",
            "dblock run -n -- -j c -- x",
        ] {
            let job = job(words);
            assert_eq!(job.wish.name.as_str(), "-j", "{words}");
            assert_eq!(job.command, ["c", "--", "x"], "{words}");
        }
    }

    #[test]
    fn a_missing_name_is_not_told_as_a_missing_command() {
        let said = refusal("dblock run -- make");
        assert!(said.contains("it is `dblock run NAME -- CMD`"), "{said}");
        assert!(!refusal("dblock prune").contains("NAME"));
    }

    #[test]
    fn words_to_choose_from_are_listed() {
        for meant in ["TERM", "tern"] {
            let said = refusal(&format!("dblock run --on-lost {meant} j -- c"));
            assert!(
                said.contains("': must be one of term, kill, ignore; see"),
                "{said}"
            );
        }
    }

    #[test]
    fn the_usual_grace_shrinks_with_the_ttl() {
        let grace = |ttl: &str| job(&format!("dblock run --ttl {ttl} j -- c")).grace();
        for (ttl, ms) in [
            ("30s", 5000),
            ("20s", 5000),
            ("10s", 2500),
            ("5s", 1250),
            ("100ms", 25),
            ("inf", 5000),
        ] {
            assert_eq!(grace(ttl), Duration::from_millis(ms), "{ttl}");
        }
        let said = job("dblock run --ttl 5s --grace 4s j -- c").grace();
        assert_eq!(said, Duration::from_secs(4), "what was said counts");
    }

    #[test]
    fn acquire_may_not_end_with_0_without_the_lock() {
        let said = refusal("dblock acquire -n -E 0 j");
        assert!(
            said.contains("without the lock") && said.contains("|| exit 0"),
            "{said}"
        );
        assert_eq!(job("dblock run -n -E 0 j -- c").wish.busy_exit, 0);
    }

    #[test]
    fn options_are_taken_by_their_old_names_too() {
        for option in ["--holder", "--owner"] {
            let job = job(&format!("dblock run {option} me j -- c"));
            assert_eq!(job.wish.holder.as_deref(), Some("me"), "{option}");
        }
        for option in ["--include-legacy", "--include-unknown"] {
            let words = format!("dblock prune --older-than 1d {option}");
            let read = parse(words.split(' ').map(Into::into).collect());
            assert!(
                matches!(
                    read.map(|read| read.task),
                    Ok(Task::Prune { legacy: true, .. })
                ),
                "{option}"
            );
        }
    }

    #[test]
    fn more_and_less_detail_exclude_each_other() {
        let detail = |words: &str| {
            parse(words.split(' ').map(Into::into).collect())
                .map(|read| read.detail)
                .ok()
        };
        assert_eq!(detail("dblock list"), Some(Detail::Usual));
        assert_eq!(detail("dblock -v run j -- c -q"), Some(Detail::Verbose));
        assert_eq!(detail("dblock run j -q -- c"), Some(Detail::Quiet));
        assert!(refusal("dblock -q -v list").contains("cannot be used with"));
    }

    #[test]
    fn without_a_term_there_is_no_grace() {
        assert_eq!(job("dblock run j -- c").grace(), Duration::from_secs(5));
        assert_eq!(
            job("dblock run --on-lost kill j -- c").grace(),
            Duration::ZERO
        );
    }

    #[test]
    fn a_refusal_is_one_line_that_says_what_is_allowed() {
        let said = refusal("dblock run --ttl soon j -- c");
        assert!(
            said.contains("'soon' for '--ttl <DURATION>': must be a number with ms"),
            "{said}"
        );
        for bad in ["256", "-1", "x"] {
            let said = refusal(&format!("dblock run -E {bad} j -- c"));
            assert!(said.contains("must be a number from 0 to 255"), "{said}");
        }
        assert!(refusal("dblock run --meta x j -- c").contains("KEY=VALUE"));
        assert!(refusal("dblock run j").contains("<CMD>"));
        assert!(refusal("dblock run -n -w 3 j -- c").contains("cannot be used with"));
        for line in [
            refusal("dblock run"),
            refusal("dblock nope"),
            refusal("dblock list --nope"),
        ] {
            assert!(!line.contains('\n') && line.contains("--help"), "{line}");
        }
        assert!(refusal("dblock release j").contains("--force"));
    }
}
