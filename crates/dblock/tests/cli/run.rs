//! `dblock run`: what it ends with, what it passes on, and that it excludes.

use std::fs::File;
use std::os::unix::fs::PermissionsExt;
use std::time::Duration;

use crate::support::{Lab, SOON};
use testkit::time;

#[test]
fn it_ends_with_the_exit_code_of_the_command() {
    let lab = Lab::new();
    assert_eq!(lab.run(["run", "job", "--", "true"]).code(), 0);
    for code in [1, 3, 75, 76, 255] {
        let script = format!("exit {code}");
        let done = lab.run(["run", "job", "--", "sh", "-c", &script]);
        assert_eq!((done.code(), &*done.err), (code, ""));
    }
}

#[test]
fn a_command_that_a_signal_ended_is_told_as_128_more() {
    let lab = Lab::new();
    for (signal, code) in [("TERM", 143), ("KILL", 137), ("INT", 130), ("USR1", 138)] {
        let script = format!("kill -{signal} $$");
        // What the tests are run by may ignore some signals, and so would the command.
        let env = ["env", "--default-signal"];
        let words = [&["run", "job", "--"][..], &env, &["sh", "-c", &script]].concat();
        let done = lab.run(words);
        assert_eq!((done.code(), &*done.err), (code, ""));
    }
    // A real-time signal, which not every library knows.
    assert_eq!(
        lab.run(["run", "job", "--", "sh", "-c", "kill -40 $$"])
            .code(),
        168
    );
}

#[test]
fn the_words_after_the_command_are_the_commands_own() {
    let lab = Lab::new();
    let printed = "-n\n--ttl\n--\n--help\n";
    let after_dashes = [
        "run", "-n", "job", "--", "printf", r"%s\n", "-n", "--ttl", "--", "--help",
    ];
    assert_eq!(lab.run(after_dashes).out, printed);
    let without_dashes = [
        "run", "job", "-n", "printf", r"%s\n", "-n", "--ttl", "--", "--help",
    ];
    assert_eq!(lab.run(without_dashes).out, printed);
}

#[test]
fn the_streams_of_the_command_are_untouched() {
    let lab = Lab::new();
    // All bytes, no text, more than a pipe holds.
    let mut state = 0x2545_f491_4f6c_dd1d_u64;
    let random = std::iter::repeat_with(|| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 24) as u8
    });
    let bytes: Vec<u8> = random.take(1 << 20).collect();
    std::fs::write(lab.path("in"), &bytes).unwrap();
    let mut child = lab
        .dblock(["run", "job", "--", "tee", "/dev/stderr"])
        .stdin(File::open(lab.path("in")).unwrap())
        .stdout(File::create(lab.path("out")).unwrap())
        .stderr(File::create(lab.path("err")).unwrap())
        .spawn()
        .unwrap();
    assert!(child.wait().unwrap().success());
    assert!(
        std::fs::read(lab.path("out")).unwrap() == bytes,
        "stdout differs"
    );
    assert!(
        std::fs::read(lab.path("err")).unwrap() == bytes,
        "stderr differs"
    );
}

#[test]
fn the_command_is_told_what_it_holds() {
    let lab = Lab::new();
    let script = r#"printf '%s\n' "$DBLOCK_NAME" "$DBLOCK_TOKEN" "$DBLOCK_GRANT" "$DBLOCK_HOLDER" \
        "$DBLOCK_TICKET""#;
    let told = || {
        let done = lab.run(["run", "--holder", "me", "a job/é", "--", "sh", "-c", script]);
        done.out.lines().map(str::to_owned).collect::<Vec<_>>()
    };
    let (first, second) = (told(), told());
    assert_eq!((&*first[0], &*first[3]), ("a job/é", "me"));
    assert_eq!(
        first[4],
        format!("{}.{}.a%20job%2F%C3%A9", first[1], first[2])
    );
    assert_eq!(first[2].len(), 32);
    let token = |told: &[String]| told[1].parse::<i64>().expect("a number");
    assert!(token(&second) > token(&first), "tokens grow");
}

#[test]
fn the_environment_is_as_it_was_but_for_the_locks_own_words() {
    let lab = Lab::new();
    let url = format!("sqlite://{}", lab.path("own.sqlite3").display());
    let vars = |done: crate::support::Done| {
        let mut vars: Vec<String> = done
            .out
            .lines()
            .filter(|line| !line.starts_with("DBLOCK_") && !line.starts_with("_="))
            .map(str::to_owned)
            .collect();
        vars.sort();
        vars
    };
    let plain = vars(lab.start(&mut lab.command("env")).end());
    let given = vars(lab.run(["--url", &url, "run", "job", "--", "env"]));
    assert_eq!(
        given, plain,
        "a URL that was given as an argument stays there"
    );
    let mut inherited = lab.dblock(["run", "job", "--", "env"]);
    let inherited = vars(lab.start(inherited.env("DATABASE_LOCKS_URL", &url)).end());
    assert!(inherited.contains(&format!("DATABASE_LOCKS_URL={url}")));
    assert_eq!(inherited.len(), plain.len() + 1);
}

#[test]
fn without_a_url_the_file_is_for_its_owner_only() {
    let lab = Lab::new();
    lab.run(["run", "job", "--", "true"]);
    let mode = |path: &str| lab.path(path).metadata().unwrap().permissions().mode() & 0o777;
    assert_eq!(mode("state"), 0o700);
    assert_eq!(mode("state/dblock"), 0o700);
    assert_eq!(mode("state/dblock/locks.sqlite3"), 0o600);
}

#[test]
fn two_at_once_exclude_each_other() {
    let lab = Lab::new();
    let script = "n=$(cat count 2>/dev/null || echo 0); sleep 0.02; echo $((n + 1)) > count";
    let all: Vec<_> = (0..12)
        .map(|_| lab.start(&mut lab.dblock(["run", "job", "--", "sh", "-c", script])))
        .collect();
    for one in all {
        assert_eq!(one.end().code(), 0);
    }
    assert_eq!(lab.read("count").trim(), "12");
    testkit::promise("P1", "sqlite");
}

#[test]
fn a_lock_that_somebody_has_is_75_or_what_one_asks_for() {
    let lab = Lab::new();
    let holder = lab.start_run(&["--holder", "the holder"], "job", "BEGUN; exec sleep 1000");
    let said = lab
        .run(["run", "-n", "job", "--", "touch", "ran"])
        .refused(75)
        .to_owned();
    assert!(said.contains("held by the holder for "), "{said}");
    assert!(said.contains("-w 5m"), "what to do next: {said}");
    lab.run(["run", "-n", "-E", "9", "job", "--", "touch", "ran"])
        .refused(9);
    // No failure, and so no mail from cron.
    let skipped = lab.run(["run", "-n", "-E", "0", "job", "--", "touch", "ran"]);
    assert_eq!((skipped.code(), &*skipped.err), (0, ""), "{skipped:?}");
    assert!(!lab.path("ran").exists());
    // Another name is another lock.
    assert_eq!(lab.run(["run", "-n", "job ", "--", "true"]).code(), 0);
    drop(holder);
}

#[test]
fn a_wait_is_kept_to() {
    let lab = Lab::new();
    let _holder = lab.start_run(&[], "job", "BEGUN; exec sleep 1000");
    let began = time::now();
    let done = lab.run(["run", "-w", "700ms", "-E", "7", "job", "--", "true"]);
    let waited = began.elapsed();
    assert!(
        done.refused(7)
            .contains("gave up after 700ms: lock `job` is held by "),
        "{done:?}"
    );
    assert!(waited >= Duration::from_millis(650), "{waited:?}");
    assert!(waited < SOON, "{waited:?}");
}

#[test]
fn a_waiter_gets_the_lock_when_the_command_of_the_other_has_ended() {
    let lab = Lab::new();
    let script = "BEGUN; while [ ! -e go ]; do sleep 0.02; done; echo first >> order";
    let first = lab.start_run(&[], "job", script);
    let second = lab.dblock([
        "run",
        "-w",
        "1m",
        "job",
        "--",
        "sh",
        "-c",
        "echo second >> order",
    ]);
    let mut second = lab.start(&mut { second });
    time::sleep(Duration::from_millis(300));
    assert!(!second.has_ended());
    lab.touch("go");
    assert_eq!(first.end().code(), 0);
    assert_eq!(second.end().code(), 0);
    assert_eq!(lab.read("order"), "first\nsecond\n");
}

#[test]
fn a_command_that_cannot_be_run_is_126_or_127_and_leaves_nothing_held() {
    let lab = Lab::new();
    let said = lab
        .run(["run", "job", "--", "no-such-command"])
        .refused(127)
        .to_owned();
    assert!(said.contains("`no-such-command` is not there"), "{said}");
    lab.touch("not-executable");
    let said = lab
        .run(["run", "job", "--", "./not-executable"])
        .refused(126)
        .to_owned();
    assert!(said.contains("cannot be run: Permission denied"), "{said}");
    assert!(!lab.is_held("job"));
}

#[test]
fn bad_settings_are_2_and_say_what_is_allowed() {
    let lab = Lab::new();
    let said = |args: &[&str]| lab.run(args).refused(2).to_owned();
    let grace = said(&[
        "run", "--ttl", "10s", "--grace", "5s", "job", "--", "touch", "ran",
    ]);
    assert!(
        grace.contains("--ttl is 10s") && grace.ends_with("say --grace 2s\n"),
        "{grace}"
    );
    assert!(said(&["run", "--ttl", "soon", "job", "--", "touch", "ran"]).contains("500ms, 30s"));
    let short = said(&[
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
    assert!(said(&["run", "", "--", "touch", "ran"]).contains("1 to 255 characters"));
    assert!(
        said(&["run", "--holder", "", "job", "--", "touch", "ran"]).contains("--holder is empty")
    );
    assert!(said(&["--table", "a b", "run", "job", "--", "touch", "ran"]).contains("--table"));
    assert!(said(&["run", "job"]).contains("<CMD>"));
    assert!(!lab.path("ran").exists());
    // Without a TERM there is no grace to be kept.
    assert_eq!(
        lab.run([
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
        lab.run(["run", "--ttl", "inf", "job", "--", "true"]).code(),
        0
    );
}

#[test]
fn a_database_that_is_not_there_is_69_and_a_bad_url_is_2() {
    let lab = Lab::new();
    let run = |url: &str| lab.run(["--url", url, "run", "-n", "job", "--", "touch", "ran"]);
    let missing = format!("sqlite://{}/missing/locks.sqlite3", lab.path("").display());
    assert!(run(&missing).refused(69).contains("make its folder first"));
    // A port that nobody listens to.
    let unreachable = "postgres://user:hunter2@127.0.0.1:1/db";
    assert!(run(unreachable).refused(69).contains("cannot be reached"));
    for bad in [
        "",
        "nonsense",
        "redis://user:hunter2@host/",
        "postgres://u:hunter2@h:x/db",
    ] {
        assert!(run(bad).refused(2).contains("DATABASE_LOCKS_URL"), "{bad}");
        assert!(!run(bad).err.contains("hunter2"), "{bad}");
    }
    assert!(!run(unreachable).err.contains("hunter2"));
    // It would exclude nobody.
    assert!(
        run("memory:")
            .refused(2)
            .contains("exclude no other process")
    );
    let mistaken = lab.run([unreachable, "run", "job"]);
    assert!(!mistaken.refused(2).contains("hunter2"), "{mistaken:?}");
    assert!(!lab.path("ran").exists());
}

#[test]
fn a_missing_table_is_69_and_names_init() {
    let lab = Lab::new();
    lab.run(["init"]);
    let done = lab.run(["--table", "other", "run", "job", "--", "true"]);
    assert!(done.refused(69).contains("dblock init"), "{done:?}");
    // The driver's own message has the whole statement in it.
    let schema = lab.run(["--table", "ops.locks", "init"]);
    let said = schema.refused(69);
    assert!(
        said.contains("NAME alone") && !said.contains("CREATE"),
        "{said}"
    );
    assert_eq!(lab.run(["--table", "other", "init"]).code(), 0);
    assert_eq!(
        lab.run(["--table", "other", "run", "job", "--", "true"])
            .code(),
        0
    );
}
