//! `dblock run`: exit codes, arguments, streams, environment, and mutual exclusion.

use std::fs::File;
use std::os::unix::fs::PermissionsExt;
use std::time::Duration;

use crate::support::{Sandbox, TIMEOUT};
use testkit::time;

#[test]
fn run_ends_with_the_exit_code_of_the_command() {
    let sandbox = Sandbox::new();
    assert_eq!(sandbox.run(["run", "job", "--", "true"]).code(), 0);
    for code in [1, 3, 75, 76, 255] {
        let script = format!("exit {code}");
        let done = sandbox.run(["run", "job", "--", "sh", "-c", &script]);
        assert_eq!((done.code(), &*done.err), (code, ""));
    }
}

#[test]
fn a_command_ended_by_signal_n_gives_the_exit_code_128_plus_n() {
    let sandbox = Sandbox::new();
    for (signal, code) in [("TERM", 143), ("KILL", 137), ("INT", 130), ("USR1", 138)] {
        let script = format!("kill -{signal} $$");
        // The test runner may ignore some signals, and the command would inherit that.
        let env = ["env", "--default-signal"];
        let words = [&["run", "job", "--"][..], &env, &["sh", "-c", &script]].concat();
        let done = sandbox.run(words);
        assert_eq!((done.code(), &*done.err), (code, ""));
    }
    // A real-time signal, which has no name in nix.
    assert_eq!(
        sandbox
            .run(["run", "job", "--", "sh", "-c", "kill -40 $$"])
            .code(),
        168
    );
}

#[test]
fn arguments_after_the_command_belong_to_the_command() {
    let sandbox = Sandbox::new();
    let printed = "-n\n--ttl\n--\n--help\n";
    let after_dashes = [
        "run", "-n", "job", "--", "printf", r"%s\n", "-n", "--ttl", "--", "--help",
    ];
    assert_eq!(sandbox.run(after_dashes).out, printed);
    // Words before the first `--` are names.
    let without_dashes = [
        "run", "job", "-n", "printf", r"%s\n", "-n", "--ttl", "--help",
    ];
    assert_eq!(sandbox.run(without_dashes).out, "-n\n--ttl\n--help\n");
}

#[test]
fn the_streams_of_the_command_are_untouched() {
    let sandbox = Sandbox::new();
    // Random bytes, more than a pipe buffers.
    let mut state = 0x2545_f491_4f6c_dd1d_u64;
    let random = std::iter::repeat_with(|| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 24) as u8
    });
    let bytes: Vec<u8> = random.take(1 << 20).collect();
    std::fs::write(sandbox.path("in"), &bytes).unwrap();
    let mut child = sandbox
        .dblock(["run", "job", "--", "tee", "/dev/stderr"])
        .stdin(File::open(sandbox.path("in")).unwrap())
        .stdout(File::create(sandbox.path("out")).unwrap())
        .stderr(File::create(sandbox.path("err")).unwrap())
        .spawn()
        .unwrap();
    assert!(child.wait().unwrap().success());
    assert!(
        std::fs::read(sandbox.path("out")).unwrap() == bytes,
        "stdout differs"
    );
    assert!(
        std::fs::read(sandbox.path("err")).unwrap() == bytes,
        "stderr differs"
    );
}

#[test]
fn the_command_finds_its_grant_in_the_environment() {
    let sandbox = Sandbox::new();
    let script = r#"printf '%s\n' "$DBLOCK_NAME" "$DBLOCK_TOKEN" "$DBLOCK_GRANT" "$DBLOCK_HOLDER" \
        "$DBLOCK_TICKET""#;
    let environment = || {
        let done = sandbox.run(["run", "--holder", "me", "a job/é", "--", "sh", "-c", script]);
        done.out.lines().map(str::to_owned).collect::<Vec<_>>()
    };
    let (first, second) = (environment(), environment());
    assert_eq!((&*first[0], &*first[3]), ("a job/é", "me"));
    assert_eq!(
        first[4],
        format!("{}.{}.a%20job%2F%C3%A9", first[1], first[2])
    );
    assert_eq!(first[2].len(), 32);
    let token = |environment: &[String]| environment[1].parse::<i64>().expect("a number");
    assert!(token(&second) > token(&first), "tokens grow");
}

#[test]
fn the_command_inherits_the_environment_and_only_dblock_variables_are_added() {
    let sandbox = Sandbox::new();
    let url = format!("sqlite://{}", sandbox.path("own.sqlite3").display());
    let vars = |done: crate::support::Finished| {
        let mut vars: Vec<String> = done
            .out
            .lines()
            .filter(|line| !line.starts_with("DBLOCK_") && !line.starts_with("_="))
            .map(str::to_owned)
            .collect();
        vars.sort();
        vars
    };
    let plain = vars(sandbox.start(&mut sandbox.command("env")).end());
    let given = vars(sandbox.run(["--url", &url, "run", "job", "--", "env"]));
    assert_eq!(
        given, plain,
        "a URL that was given as an argument stays there"
    );
    let mut inherited = sandbox.dblock(["run", "job", "--", "env"]);
    let inherited = vars(
        sandbox
            .start(inherited.env("DATABASE_LOCKS_URL", &url))
            .end(),
    );
    assert!(inherited.contains(&format!("DATABASE_LOCKS_URL={url}")));
    assert_eq!(inherited.len(), plain.len() + 1);
}

#[test]
fn the_default_file_is_for_its_owner_only() {
    let sandbox = Sandbox::new();
    sandbox.run(["run", "job", "--", "true"]);
    let mode = |path: &str| sandbox.path(path).metadata().unwrap().permissions().mode() & 0o777;
    assert_eq!(mode("state"), 0o700);
    assert_eq!(mode("state/dblock"), 0o700);
    assert_eq!(mode("state/dblock/locks.sqlite3"), 0o600);
}

#[test]
fn concurrent_runs_exclude_each_other() {
    let sandbox = Sandbox::new();
    let script = "n=$(cat count 2>/dev/null || echo 0); sleep 0.02; echo $((n + 1)) > count";
    let all: Vec<_> = (0..12)
        .map(|_| sandbox.start(&mut sandbox.dblock(["run", "job", "--", "sh", "-c", script])))
        .collect();
    for one in all {
        assert_eq!(one.end().code(), 0);
    }
    assert_eq!(sandbox.read("count").trim(), "12");
    testkit::promise("P1", "sqlite");
}

#[test]
fn a_held_lock_ends_with_75_or_the_code_of_conflict_exit_code() {
    let sandbox = Sandbox::new();
    let holder = sandbox.start_run(&["--holder", "the holder"], "job", "BEGUN; exec sleep 1000");
    let message = sandbox
        .run(["run", "-n", "job", "--", "touch", "ran"])
        .only_line(75)
        .to_owned();
    assert!(message.contains("held by the holder for "), "{message}");
    assert!(message.contains("-w 5m"), "what to do next: {message}");
    sandbox
        .run(["run", "-n", "-E", "9", "job", "--", "touch", "ran"])
        .only_line(9);
    // No message, so that cron sends no mail.
    let skipped = sandbox.run(["run", "-n", "-E", "0", "job", "--", "touch", "ran"]);
    assert_eq!((skipped.code(), &*skipped.err), (0, ""), "{skipped:?}");
    assert!(!sandbox.path("ran").exists());
    // The name with a space at its end is another lock.
    assert_eq!(sandbox.run(["run", "-n", "job ", "--", "true"]).code(), 0);
    drop(holder);
}

#[test]
fn a_wait_ends_after_its_limit() {
    let sandbox = Sandbox::new();
    let _holder = sandbox.start_run(&[], "job", "BEGUN; exec sleep 1000");
    let began = time::now();
    let done = sandbox.run(["run", "-w", "3s", "-E", "7", "job", "--", "true"]);
    let waited = began.elapsed();
    assert!(
        done.only_line(7)
            .contains("gave up after 3s: lock `job` is held by "),
        "{done:?}"
    );
    assert!(waited >= Duration::from_millis(2_900), "{waited:?}");
    assert!(waited < TIMEOUT, "{waited:?}");
}

#[test]
fn a_waiter_gets_the_lock_when_the_command_of_the_holder_has_ended() {
    let sandbox = Sandbox::new();
    let script = "BEGUN; while [ ! -e go ]; do sleep 0.02; done; echo first >> order";
    let first = sandbox.start_run(&[], "job", script);
    let second = sandbox.dblock([
        "run",
        "-w",
        "1m",
        "job",
        "--",
        "sh",
        "-c",
        "echo second >> order",
    ]);
    let mut second = sandbox.start(&mut { second });
    time::sleep(Duration::from_millis(300));
    assert!(!second.has_ended());
    sandbox.touch("go");
    assert_eq!(first.end().code(), 0);
    assert_eq!(second.end().code(), 0);
    assert_eq!(sandbox.read("order"), "first\nsecond\n");
}

#[test]
fn a_command_that_cannot_be_run_ends_with_126_or_127_and_leaves_the_lock_free() {
    let sandbox = Sandbox::new();
    let message = sandbox
        .run(["run", "job", "--", "no-such-command"])
        .only_line(127)
        .to_owned();
    assert!(
        message.contains("`no-such-command` was not found"),
        "{message}"
    );
    sandbox.touch("not-executable");
    let message = sandbox
        .run(["run", "job", "--", "./not-executable"])
        .only_line(126)
        .to_owned();
    assert!(
        message.contains("cannot be run: Permission denied"),
        "{message}"
    );
    assert!(!sandbox.is_held("job"));
}

/// A typo in a crontab must not use up the period, and needs no turn of the lock.
#[test]
fn a_command_that_cannot_be_run_is_found_out_before_the_lock_is_acquired() {
    let sandbox = Sandbox::new();
    sandbox.touch("not-executable");
    for (cmd, code) in [("no-such-command", 127), ("./not-executable", 126)] {
        let done = sandbox.run(["run", "--once-per", "1h", "job", "--", cmd]);
        done.only_line(code);
    }
    assert!(!sandbox.database().exists());
    let ran = sandbox.run(["run", "--once-per", "1h", "job", "--", "touch", "ran"]);
    assert_eq!(ran.code(), 0, "{ran:?}");
    assert!(sandbox.path("ran").exists());
    // While another client holds the lock.
    let holder = sandbox.start_run(&[], "other", "BEGUN; sleep 60");
    let done = sandbox.run(["run", "other", "--", "no-such-command"]);
    done.only_line(127);
    drop(holder);
}

#[test]
fn a_bad_setting_ends_with_2_and_the_message_says_what_is_allowed() {
    let sandbox = Sandbox::new();
    let message = |args: &[&str]| sandbox.run(args).only_line(2).to_owned();
    let grace = message(&[
        "run", "--ttl", "10s", "--grace", "5s", "job", "--", "touch", "ran",
    ]);
    assert!(
        grace.contains("--ttl is 10s") && grace.ends_with("say --grace 2s\n"),
        "{grace}"
    );
    assert!(message(&["run", "--ttl", "soon", "job", "--", "touch", "ran"]).contains("500ms, 30s"));
    let short = message(&[
        "run",
        "--ttl",
        "50ms",
        "--on-lost",
        "kill",
        "job",
        "--",
        "touch",
        "ran",
    ]);
    assert!(
        short.contains("'50ms' for '--ttl <DURATION>': must be 100ms to 10 years"),
        "{short}"
    );
    assert!(message(&["run", "", "--", "touch", "ran"]).contains("1 to 255 characters"));
    assert!(
        message(&["run", "--holder", "", "job", "--", "touch", "ran"])
            .contains("--holder is empty")
    );
    assert!(message(&["--table", "a b", "run", "job", "--", "touch", "ran"]).contains("--table"));
    assert!(message(&["run", "job"]).contains("<CMD>"));
    assert!(!sandbox.path("ran").exists());
    // Without TERM there is no grace.
    assert_eq!(
        sandbox
            .run([
                "run",
                "--ttl",
                "9s",
                "--on-lost",
                "kill",
                "job",
                "--",
                "true"
            ])
            .code(),
        0
    );
    assert_eq!(
        sandbox
            .run(["run", "--ttl", "inf", "job", "--", "true"])
            .code(),
        0
    );
}

#[test]
fn a_missing_database_ends_with_69_and_a_bad_url_with_2() {
    let sandbox = Sandbox::new();
    let run = |url: &str| sandbox.run(["--url", url, "run", "-n", "job", "--", "touch", "ran"]);
    let missing = format!(
        "sqlite://{}/missing/locks.sqlite3",
        sandbox.path("").display()
    );
    assert!(
        run(&missing)
            .only_line(69)
            .contains("make its folder first")
    );
    // No server listens on this port.
    let unreachable = "postgres://user:hunter2@127.0.0.1:1/db";
    assert!(run(unreachable).only_line(69).contains("cannot be reached"));
    for bad in [
        "",
        "nonsense",
        "redis://user:hunter2@host/",
        "postgres://u:hunter2@h:x/db",
    ] {
        assert!(
            run(bad).only_line(2).contains("DATABASE_LOCKS_URL"),
            "{bad}"
        );
        assert!(!run(bad).err.contains("hunter2"), "{bad}");
    }
    assert!(!run(unreachable).err.contains("hunter2"));
    // Locks in memory exclude no other process.
    assert!(
        run("memory:")
            .only_line(2)
            .contains("exclude no other process")
    );
    let mistaken = sandbox.run([unreachable, "run", "job"]);
    assert!(!mistaken.only_line(2).contains("hunter2"), "{mistaken:?}");
    assert!(!sandbox.path("ran").exists());
}

#[test]
fn a_missing_table_ends_with_69_and_the_message_names_init() {
    let sandbox = Sandbox::new();
    sandbox.run(["init"]);
    let done = sandbox.run(["--table", "other", "run", "job", "--", "true"]);
    assert!(done.only_line(69).contains("dblock init"), "{done:?}");
    // The message of the driver contains the whole statement.
    let schema = sandbox.run(["--table", "ops.locks", "init"]);
    let message = schema.only_line(69);
    assert!(
        message.contains("NAME alone") && !message.contains("CREATE"),
        "{message}"
    );
    assert_eq!(sandbox.run(["--table", "other", "init"]).code(), 0);
    assert_eq!(
        sandbox
            .run(["--table", "other", "run", "job", "--", "true"])
            .code(),
        0
    );
}
