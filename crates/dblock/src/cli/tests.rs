//! Command lines, and what they are parsed to.

use std::time::Duration;

use clap::CommandFactory as _;
use database_locks::Ttl;

use super::commands::Cli;
use super::parse::parse;
use super::task::{Invocation, RunArgs, Task, Verbosity};
use crate::exit::Failure;

fn parse_line(line: &str) -> Result<Invocation, Failure> {
    parse(line.split(' ').map(Into::into).collect())
}

fn run_args(line: &str) -> RunArgs {
    match parse_line(line).map(|invocation| invocation.task) {
        Ok(Task::Run(args)) => args,
        other => panic!("{other:?}"),
    }
}

fn usage_error(line: &str) -> String {
    let failure = parse_line(line).unwrap_err();
    assert_eq!(failure.code, 2, "{failure:?}");
    failure.message
}

#[test]
fn the_definitions_of_all_commands_are_consistent() {
    Cli::command().debug_assert();
}

#[test]
fn words_after_cmd_belong_to_cmd() {
    for line in [
        "dblock run -n job -- cmd -n --ttl 1 -- x --",
        "dblock run job -n -- cmd -n --ttl 1 -- x --",
        "dblock run -n -- job cmd -n --ttl 1 -- x --",
    ] {
        let args = run_args(line);
        assert_eq!(args.lock.wait, Some(Duration::ZERO), "{line}");
        assert_eq!(
            args.command,
            ["cmd", "-n", "--ttl", "1", "--", "x", "--"],
            "{line}"
        );
        assert_eq!(
            args.lock.ttl,
            Ttl::Finite(Duration::from_secs(30)),
            "{line}"
        );
    }
}

#[test]
fn without_a_separator_the_second_word_is_cmd() {
    for line in ["dblock run -n job cmd -n x", "dblock run job -n cmd -n x"] {
        let args = run_args(line);
        assert_eq!(args.lock.wait, Some(Duration::ZERO), "{line}");
        assert_eq!(args.command, ["cmd", "-n", "x"], "{line}");
        assert!(args.lock.others.is_empty(), "{line}");
    }
}

#[test]
fn the_words_before_the_separator_are_names_each_once_and_in_order() {
    for line in [
        "dblock run b a -- cmd -- x",
        "dblock run -w 5 b a b -- cmd -- x",
        "dblock run b a b a -w 5 -- cmd -- x",
        "dblock -v run b -w 5 a -- cmd -- x",
    ] {
        let args = run_args(line);
        let names: Vec<&str> = args.lock.names().map(|name| name.as_str()).collect();
        assert_eq!(names, ["b", "a"], "{line}");
        assert_eq!(args.command, ["cmd", "--", "x"], "{line}");
    }
    assert!(run_args("dblock run j j -- c").lock.others.is_empty());
    // Options of CMD before the separator are no options of dblock.
    assert!(usage_error("dblock run job grep --count x -- file").contains("--count"));
    for option in [
        "--ticket 1.2.a",
        "--limit 2",
        "--at-least 1s",
        "--once-per 1h",
    ] {
        let (name, _) = option.split_once(' ').unwrap();
        assert_eq!(
            usage_error(&format!("dblock run a b {option} -- c")),
            format!("{name} is for one lock, and `b` is a second one: leave it out")
        );
    }
}

#[test]
fn a_wait_is_unlimited_unless_it_is_given() {
    assert_eq!(run_args("dblock run j -- c").lock.wait, None);
    assert_eq!(run_args("dblock run -w inf j -- c").lock.wait, None);
    assert_eq!(
        run_args("dblock run -w 1.5 j -- c").lock.wait,
        Some(Duration::from_millis(1500))
    );
    assert_eq!(
        run_args("dblock run -w 0 j -- c").lock.wait,
        Some(Duration::ZERO)
    );
}

#[test]
fn a_duration_out_of_bounds_is_refused_and_the_message_states_the_bounds() {
    for bad in ["0", "99ms", "3653d", "10000000000d"] {
        let message = usage_error(&format!("dblock run --ttl {bad} j -- c"));
        assert!(
            message.contains(&format!(
                "'{bad}' for '--ttl <DURATION>': must be 100ms to 10 years"
            )),
            "{message}"
        );
    }
    let rejected = |option: &str, value: &str| {
        let command = if option == "prune --older-than" {
            ""
        } else {
            " j -- c"
        };
        usage_error(&format!("dblock {option} {value}{command}"))
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
            let message = rejected(option, bad);
            assert!(
                message.contains(&format!("'{bad}' for '--")),
                "{option}: {message}"
            );
            assert!(
                message.contains("must be a number with ms"),
                "{option}: {message}"
            );
        }
    }
    for option in limited {
        let message = rejected(option, "10000000000d");
        assert!(
            message.contains("must be at most 10 years"),
            "{option}: {message}"
        );
    }
    for option in &limited[1..] {
        let message = rejected(option, "inf");
        assert!(
            message.contains("must be a number with ms"),
            "{option}: {message}"
        );
    }
    assert_eq!(
        run_args("dblock run --ttl 3652d j -- c").lock.ttl,
        Ttl::Finite(Duration::from_secs(3652 * 86_400))
    );
}

#[test]
fn a_name_may_begin_with_a_dash() {
    for line in [
        "dblock run -n -- -j -- c -- x",
        "dblock run -n -- -j c -- x",
    ] {
        let args = run_args(line);
        assert_eq!(args.lock.name.as_str(), "-j", "{line}");
        assert_eq!(args.command, ["c", "--", "x"], "{line}");
    }
}

#[test]
fn a_missing_name_is_not_reported_as_a_missing_command() {
    let message = usage_error("dblock run -- make");
    assert!(
        message.contains("the form is `dblock run NAME -- CMD`"),
        "{message}"
    );
    assert!(!usage_error("dblock prune").contains("NAME"));
}

#[test]
fn the_message_of_an_unknown_value_lists_the_allowed_ones() {
    for meant in ["TERM", "tern"] {
        let message = usage_error(&format!("dblock run --on-lost {meant} j -- c"));
        assert!(
            message.contains("': must be one of term, kill, ignore; see"),
            "{message}"
        );
    }
}

#[test]
fn the_default_grace_shrinks_with_the_ttl() {
    let grace = |ttl: &str| run_args(&format!("dblock run --ttl {ttl} j -- c")).grace();
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
    let given = run_args("dblock run --ttl 5s --grace 4s j -- c").grace();
    assert_eq!(given, Duration::from_secs(4));
}

#[test]
fn acquire_refuses_exit_code_0_for_a_held_lock() {
    let message = usage_error("dblock acquire -n -E 0 j");
    assert!(
        message.contains("without the lock") && message.contains("|| exit 0"),
        "{message}"
    );
    assert_eq!(
        run_args("dblock run -n -E 0 j -- c")
            .lock
            .conflict_exit_code,
        0
    );
}

#[test]
fn old_names_of_options_are_accepted() {
    for option in ["--holder", "--owner"] {
        let args = run_args(&format!("dblock run {option} me j -- c"));
        assert_eq!(args.lock.holder.as_deref(), Some("me"), "{option}");
    }
    for option in ["--include-legacy", "--include-unknown"] {
        let invocation = parse_line(&format!("dblock prune --older-than 1d {option}"));
        let task = invocation.map(|invocation| invocation.task);
        assert!(
            matches!(task, Ok(Task::Prune(args)) if args.include_legacy),
            "{option}"
        );
    }
}

#[test]
fn verbose_and_quiet_exclude_each_other() {
    let verbosity = |line: &str| parse_line(line).ok().map(|parsed| parsed.verbosity);
    assert_eq!(verbosity("dblock list"), Some(Verbosity::Normal));
    assert_eq!(
        verbosity("dblock -v run j -- c -q"),
        Some(Verbosity::Verbose)
    );
    assert_eq!(verbosity("dblock run j -q -- c"), Some(Verbosity::Quiet));
    assert!(usage_error("dblock -q -v list").contains("cannot be used with"));
}

#[test]
fn there_is_no_grace_without_term() {
    assert_eq!(
        run_args("dblock run j -- c").grace(),
        Duration::from_secs(5)
    );
    assert_eq!(
        run_args("dblock run --on-lost kill j -- c").grace(),
        Duration::ZERO
    );
}

#[test]
fn a_usage_error_is_one_line_that_states_what_is_allowed() {
    let message = usage_error("dblock run --ttl soon j -- c");
    assert!(
        message.contains("'soon' for '--ttl <DURATION>': must be a number with ms"),
        "{message}"
    );
    for bad in ["256", "-1", "x"] {
        let message = usage_error(&format!("dblock run -E {bad} j -- c"));
        assert!(
            message.contains("must be a number from 0 to 255"),
            "{message}"
        );
    }
    assert!(usage_error("dblock run --meta x j -- c").contains("KEY=VALUE"));
    assert!(usage_error("dblock run j").contains("<CMD>"));
    assert!(usage_error("dblock run -n -w 3 j -- c").contains("cannot be used with"));
    for line in [
        usage_error("dblock run"),
        usage_error("dblock nope"),
        usage_error("dblock list --nope"),
    ] {
        assert!(!line.contains('\n') && line.contains("--help"), "{line}");
    }
    assert!(usage_error("dblock release j").contains("--force"));
}
