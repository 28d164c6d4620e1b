//! Completion scripts and manual pages: complete, and accepted by the programs that read them.

use std::process::Command;

use crate::support::Sandbox;

/// The commands that `--help` lists.
fn commands(sandbox: &Sandbox) -> Vec<String> {
    let help = sandbox.run(["--help"]).out;
    let listed = help.split("Commands:\n").nth(1).expect("commands");
    let listed = listed.split("\n\n").next().unwrap_or_default();
    // A description that does not fit continues on the next line, with more indentation.
    let words = listed
        .lines()
        .filter(|line| !line.starts_with("   "))
        .filter_map(|line| line.split_whitespace().next());
    words
        .filter(|word| *word != "help")
        .map(str::to_owned)
        .collect()
}

/// Asserts that a program accepts the file; skipped if it is not installed.
#[allow(clippy::print_stderr, reason = "shows what was not tested")]
fn accepts(sandbox: &Sandbox, program: &str, args: &[&str], file: &str) {
    if Command::new(program).arg("--version").output().is_err() {
        eprintln!("skipped: no {program}");
        return;
    }
    let done = sandbox
        .start(sandbox.command(program).args(args).arg(file))
        .end();
    assert_eq!(
        (done.code(), &*done.err),
        (0, ""),
        "{program} {args:?}: {}",
        done.out
    );
}

#[test]
fn every_shell_accepts_its_completion_script() {
    let sandbox = Sandbox::new();
    for shell in ["bash", "zsh", "fish", "elvish", "powershell"] {
        let done = sandbox.run(["completions", shell]);
        assert_eq!((done.code(), &*done.err), (0, ""), "{shell}");
        for word in commands(&sandbox) {
            assert!(done.out.contains(&word), "{shell}: {word}");
        }
        assert!(done.out.contains("older-than"), "{shell}");
        std::fs::write(sandbox.path(shell), &done.out).unwrap();
    }
    for shell in ["bash", "zsh", "fish"] {
        accepts(&sandbox, shell, &["-n"], shell);
    }
    assert!(
        sandbox
            .run(["completions", "tcsh"])
            .only_line(2)
            .contains("fish")
    );
}

#[test]
fn a_shell_completes_the_commands_and_their_options() {
    let sandbox = Sandbox::new();
    std::fs::write(
        sandbox.path("script"),
        sandbox.run(["completions", "bash"]).out,
    )
    .unwrap();
    let complete = |words: &str, last: &str| {
        let ask = format!(
            ". ./script; COMP_WORDS=({words} '{last}'); COMP_CWORD=$((${{#COMP_WORDS[@]}} - 1))
             _dblock dblock '{last}' \"${{COMP_WORDS[COMP_CWORD - 1]}}\"; printf '%s\\n' \"${{COMPREPLY[@]}}\""
        );
        sandbox
            .start(sandbox.command("bash").args(["-c", &ask]))
            .end()
            .out
    };
    assert_eq!(complete("dblock", "acq"), "acquire\n");
    assert_eq!(complete("dblock prune", "--old"), "--older-than\n");
    assert!(complete("dblock run --on-lost", "").contains("term"));
}

#[test]
fn there_is_a_manual_page_for_dblock_and_for_each_command() {
    let sandbox = Sandbox::new();
    let whole = sandbox.run(["man"]);
    assert!(whole.out.contains(".TH dblock 1 "), "{whole:?}");
    std::fs::write(sandbox.path("dblock.1"), &whole.out).unwrap();
    for command in commands(&sandbox) {
        assert!(
            whole.out.contains(&format!(r"dblock\-{command}(1)")),
            "{command}"
        );
        let page = sandbox.run(["man", &command]);
        assert_eq!((page.code(), &*page.err), (0, ""), "{command}");
        assert!(
            page.out.contains(&format!(".TH dblock-{command} 1 ")),
            "{command}: {}",
            page.out
        );
        assert!(page.out.contains(".SH EXAMPLES"), "{command}");
        std::fs::write(sandbox.path("page"), &page.out).unwrap();
        // With all warnings: unknown macros, bad escapes.
        accepts(
            &sandbox,
            "groff",
            &["-man", "-Tutf8", "-Kutf8", "-ww", "-z"],
            "page",
        );
    }
    accepts(
        &sandbox,
        "groff",
        &["-man", "-Tutf8", "-Kutf8", "-ww", "-z"],
        "dblock.1",
    );
    assert!(sandbox.run(["man", "nope"]).only_line(2).contains("--help"));
}

/// By default roff fills lines, and would join the examples to one paragraph.
#[test]
fn the_manual_keeps_each_example_on_its_own_line() {
    let sandbox = Sandbox::new();
    std::fs::write(sandbox.path("page"), sandbox.run(["man", "run"]).out).unwrap();
    if Command::new("man").arg("--version").output().is_err() {
        return;
    }
    let mut man = sandbox.command("man");
    let shown = sandbox
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
    let sandbox = Sandbox::new();
    let all = commands(&sandbox);
    assert!(all.len() >= 10, "{all:?}");
    for command in all {
        let help = sandbox.run([&*command, "--help"]).out;
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
fn a_misspelled_word_is_refused_with_a_suggestion() {
    let sandbox = Sandbox::new();
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
        let done = sandbox.run(args);
        assert!(done.only_line(2).contains(meant), "{done:?}");
    }
}
