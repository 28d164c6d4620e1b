//! Where the processor time of one process goes that acquires and releases: a flame graph, by `perf`.
//!
//! It shows what the client computes, and nothing of the time in which it waits: that is most of a
//! cycle, and the appendix counts its system calls.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::Path;
use std::process::{Command, Stdio};

use testkit::server::find_binary;

use crate::report::digits;
use crate::servers::Servers;
use crate::svg::escaped;
use crate::{say, subject};

/// How long each engine is profiled, in milliseconds.
const LENGTH: &str = "5000";
/// Samples a second; no multiple of what else is done so many times a second.
const FREQUENCY: &str = "1999";

const WIDTH: f64 = 1200.0;
const ROW: f64 = 17.0;
/// What is narrower cannot be seen.
const NARROWEST: f64 = 0.6;

/// Profile cycles on each engine, and write an SVG for each.
///
/// # Errors
///
/// What is missing for it, or what `perf` said.
pub(crate) fn run(folder: &Path) -> Result<(), String> {
    let perf = find_binary("perf", &[])
        .ok_or("there is no `perf`: install it (Debian: linux-perf), and try again")?;
    std::fs::create_dir_all(folder).map_err(|why| format!("{}: {why}", folder.display()))?;
    let program = std::env::current_exe().map_err(|why| why.to_string())?;
    let servers = Servers::start();
    for engine in servers.engines() {
        drop(subject::connected(
            &crate::worker::current_thread(),
            &engine.url,
        ));
        let data = servers.files.join(&format!("{}.perf", engine.name));
        let recorded = Command::new(&perf)
            .args(["record", "--quiet", "-e", "cpu-clock", "-F", FREQUENCY])
            .args(["--call-graph", "fp", "-o"])
            .arg(&data)
            .arg("--")
            .arg(&program)
            .args(["worker", "profile", &engine.url, LENGTH])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .status();
        if !recorded.is_ok_and(|status| status.success()) {
            return Err("`perf record` failed: it may want root, or a lower \
                /proc/sys/kernel/perf_event_paranoid"
                .to_owned());
        }
        let told = Command::new(&perf)
            .args(["script", "-F", "comm,ip,sym", "-i"])
            .arg(&data)
            .stderr(Stdio::null())
            .output()
            .map_err(|why| format!("perf script: {why}"))?;
        let root = fold(&String::from_utf8_lossy(&told.stdout));
        if root.samples == 0 {
            return Err(format!("{}: `perf` took no samples", engine.name));
        }
        let file = folder.join(format!("flame-{}.svg", engine.name.to_lowercase()));
        std::fs::write(&file, draw(&root, engine.name))
            .map_err(|why| format!("{}: {why}", file.display()))?;
        say(&format!("{} samples: {}", root.samples, file.display()));
    }
    Ok(())
}

/// A function as it was called by the one above it.
#[derive(Debug, Default)]
struct Frame {
    samples: u64,
    called: BTreeMap<String, Frame>,
}

/// The stacks of `perf script`, a line a frame, innermost first, an empty line after each.
fn fold(text: &str) -> Frame {
    let mut root = Frame::default();
    for stack in text.split("\n\n") {
        let mut lines = stack.lines().filter(|line| !line.trim().is_empty());
        let Some(thread) = lines.next() else { continue };
        let mut names: Vec<String> = lines
            .map(|line| {
                let (_, symbol) = line.trim().split_once(' ').unwrap_or(("", "?"));
                without_hash(symbol.trim()).to_owned()
            })
            .collect();
        names.push(thread.trim().to_owned());
        root.samples += 1;
        let mut at = &mut root;
        for name in names.into_iter().rev() {
            at = at.called.entry(name).or_default();
            at.samples += 1;
        }
    }
    root
}

/// A symbol without the hash that the compiler adds.
fn without_hash(symbol: &str) -> &str {
    match symbol.rsplit_once("::h") {
        Some((name, hash)) if hash.len() == 16 && hash.chars().all(|c| c.is_ascii_hexdigit()) => {
            name
        }
        _ => symbol,
    }
}

fn depth(frame: &Frame) -> usize {
    frame
        .called
        .values()
        .map(|called| 1 + depth(called))
        .max()
        .unwrap_or(0)
}

fn draw(root: &Frame, engine: &str) -> String {
    let height = 60.0 + ROW * depth(root) as f64;
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {height}\" \
         font-family=\"sans-serif\" font-size=\"11\">\n\
         <rect width=\"100%\" height=\"100%\" fill=\"#ffffff\"/>\n\
         <text x=\"8\" y=\"20\" font-size=\"15\" font-weight=\"bold\">Processor time of acquire + release on \
         {}, blocking: {} samples</text>\n\
         <text x=\"8\" y=\"38\">orange: this library · blue: tokio and drivers · grey: the rest. Waiting is not \
         in it. Point at a frame for its name.</text>\n",
        escaped(engine),
        root.samples
    );
    rows(root, root.samples, 0.0, height - ROW - 4.0, &mut svg);
    svg.push_str("</svg>\n");
    svg
}

fn rows(frame: &Frame, all: u64, left: f64, top: f64, svg: &mut String) {
    let mut x = left;
    for (name, called) in &frame.called {
        let width = WIDTH * called.samples as f64 / all as f64;
        if width >= NARROWEST {
            let colour = match name {
                _ if name.contains("database_locks") => "#f2a65a",
                _ if ["tokio", "mysql", "sqlite", "postgres"]
                    .iter()
                    .any(|part| name.contains(part)) =>
                {
                    "#8fc1e3"
                }
                _ => "#d0d0d0",
            };
            let share = digits(100.0 * called.samples as f64 / all as f64);
            // As much of it as there is room for.
            let shown: String = name.chars().take((width / 6.2) as usize).collect();
            let _ = writeln!(
                svg,
                "<g><title>{}: {share} %</title><rect x=\"{x:.1}\" y=\"{top:.1}\" width=\"{width:.1}\" \
                 height=\"16\" fill=\"{colour}\" stroke=\"#ffffff\" stroke-width=\"0.5\"/>\
                 <text x=\"{:.1}\" y=\"{:.1}\">{}</text></g>",
                escaped(name),
                x + 2.0,
                top + 12.0,
                escaped(if shown.chars().count() > 2 {
                    &shown
                } else {
                    ""
                })
            );
            rows(called, all, x, top - ROW, svg);
        }
        x += width;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SCRIPT: &str = "bench \n\
        \t    55d0 core::inner::h0123456789abcdef\n\
        \t    55d1 database_locks::lock::acquire\n\n\
        bench \n\
        \t    55d1 database_locks::lock::acquire\n\n\
        tokio-rt \n\
        \t    77aa [unknown]\n\n";

    #[test]
    fn stacks_are_counted_from_the_outside_in() {
        let root = fold(SCRIPT);
        assert_eq!(root.samples, 3);
        let acquire = &root.called["bench"].called["database_locks::lock::acquire"];
        assert_eq!(
            (acquire.samples, acquire.called["core::inner"].samples),
            (2, 1)
        );
        assert_eq!(depth(&root), 3);
    }

    #[test]
    fn a_frame_is_as_wide_as_its_share() {
        let svg = draw(&fold(SCRIPT), "SQLite");
        assert!(svg.contains("<title>database_locks::lock::acquire: 66.7 %</title>"));
        assert!(svg.contains("width=\"800.0\"") && svg.contains("width=\"400.0\""));
    }
}
