//! Completions and manual pages: made from the words of `--help`, and read by those they are for.

use std::process::Command;

use crate::support::Lab;

/// All of them, as `--help` lists them.
fn commands(lab: &Lab) -> Vec<String> {
    let help = lab.run(["--help"]).out;
    let listed = help.split("Commands:\n").nth(1).expect("commands");
    let listed = listed.split("\n\n").next().unwrap_or_default();
    // What a line has no room for stands below, further in.
    let words = listed
        .lines()
        .filter(|line| !line.starts_with("   "))
        .filter_map(|line| line.split_whitespace().next());
    words
        .filter(|word| *word != "help")
        .map(str::to_owned)
        .collect()
}

/// Let it read the file, if it is there.
#[allow(clippy::print_stderr, reason = "for whoever wonders what was tested")]
fn reads(lab: &Lab, program: &str, args: &[&str], file: &str) {
    if Command::new(program).arg("--version").output().is_err() {
        eprintln!("skipped: no {program}");
        return;
    }
    let done = lab.start(lab.command(program).args(args).arg(file)).end();
    assert_eq!(
        (done.code(), &*done.err),
        (0, ""),
        "{program} {args:?}: {}",
        done.out
    );
}

#[test]
fn every_shell_can_read_its_completions() {
    let lab = Lab::new();
    for shell in ["bash", "zsh", "fish", "elvish", "powershell"] {
        let done = lab.run(["completions", shell]);
        assert_eq!((done.code(), &*done.err), (0, ""), "{shell}");
        for word in commands(&lab) {
            assert!(done.out.contains(&word), "{shell}: {word}");
        }
        assert!(done.out.contains("older-than"), "{shell}");
        std::fs::write(lab.path(shell), &done.out).unwrap();
    }
    for shell in ["bash", "zsh", "fish"] {
        reads(&lab, shell, &["-n"], shell);
    }
    assert!(lab.run(["completions", "tcsh"]).refused(2).contains("fish"));
}

#[test]
fn a_shell_completes_the_commands_and_their_options() {
    let lab = Lab::new();
    std::fs::write(lab.path("script"), lab.run(["completions", "bash"]).out).unwrap();
    let complete = |words: &str, last: &str| {
        let ask = format!(
            ". ./script; COMP_WORDS=({words} '{last}'); COMP_CWORD=$((${{#COMP_WORDS[@]}} - 1))
             _dblock dblock '{last}' \"${{COMP_WORDS[COMP_CWORD - 1]}}\"; printf '%s\\n' \"${{COMPREPLY[@]}}\""
        );
        lab.start(lab.command("bash").args(["-c", &ask])).end().out
    };
    assert_eq!(complete("dblock", "acq"), "acquire\n");
    assert_eq!(complete("dblock prune", "--old"), "--older-than\n");
    assert!(complete("dblock run --on-lost", "").contains("term"));
}

#[test]
fn there_is_a_manual_page_of_the_whole_and_of_each_command() {
    let lab = Lab::new();
    let whole = lab.run(["man"]);
    assert!(whole.out.contains(".TH dblock 1 "), "{whole:?}");
    std::fs::write(lab.path("dblock.1"), &whole.out).unwrap();
    for command in commands(&lab) {
        assert!(
            whole.out.contains(&format!(r"dblock\-{command}(1)")),
            "{command}"
        );
        let page = lab.run(["man", &command]);
        assert_eq!((page.code(), &*page.err), (0, ""), "{command}");
        assert!(
            page.out.contains(&format!(".TH dblock-{command} 1 ")),
            "{command}: {}",
            page.out
        );
        assert!(page.out.contains(".SH EXAMPLES"), "{command}");
        std::fs::write(lab.path("page"), &page.out).unwrap();
        // All warnings: a macro that is unknown, a bad escape.
        reads(
            &lab,
            "groff",
            &["-man", "-Tutf8", "-Kutf8", "-ww", "-z"],
            "page",
        );
    }
    reads(
        &lab,
        "groff",
        &["-man", "-Tutf8", "-Kutf8", "-ww", "-z"],
        "dblock.1",
    );
    assert!(lab.run(["man", "nope"]).refused(2).contains("--help"));
}

/// A manual page fills its lines, and would make one paragraph of all of them.
#[test]
fn examples_stay_one_a_line_in_the_manual() {
    let lab = Lab::new();
    std::fs::write(lab.path("page"), lab.run(["man", "run"]).out).unwrap();
    if Command::new("man").arg("--version").output().is_err() {
        return;
    }
    let mut man = lab.command("man");
    let shown = lab
        .start(man.args(["-l", "page"]).env("MANPAGER", "cat"))
        .end()
        .out;
    for line in [
        "dblock run deploy -- make deploy",
        r#"printf '%s\n' "$TICKET" | dblock run deploy --ticket - -- make deploy"#,
    ] {
        assert!(
            shown.lines().any(|shown| shown.trim() == line),
            "{line}: {shown}"
        );
    }
}

#[test]
fn every_command_has_help_with_examples() {
    let lab = Lab::new();
    let all = commands(&lab);
    assert!(all.len() >= 10, "{all:?}");
    for command in all {
        let help = lab.run([&*command, "--help"]).out;
        assert!(help.contains("Examples:\n"), "{command}: {help}");
        assert!(
            help.contains("completions")
                || help.contains(&format!("dblock {command}"))
                || help.contains("init"),
            "{command}: {help}"
        );
        assert!(
            help.lines().all(|line| line.chars().count() <= 105),
            "{command}"
        );
    }
}

#[test]
fn a_typing_error_is_told_with_what_was_meant() {
    let lab = Lab::new();
    for (args, meant) in [
        (&["aquire", "job"][..], "'acquire'; see `dblock --help`"),
        (
            &["run", "--tll", "3", "job", "--", "true"],
            "'--ttl'; see `dblock run --help`",
        ),
        (
            &["prune", "--older", "3d"],
            "'--older-than'; see `dblock prune --help`",
        ),
        (
            &["acquire", "job", "--no-wiat"],
            "'--no-wait'; see `dblock acquire --help`",
        ),
    ] {
        let done = lab.run(args);
        assert!(done.refused(2).contains(meant), "{done:?}");
    }
}
