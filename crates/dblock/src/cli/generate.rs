//! Completion scripts and manual pages, generated from the definitions that `--help` shows.

use std::io;

use clap::Command;
use clap_complete::Shell;
use clap_mangen::Man;

/// The completion script for a shell.
pub(crate) fn completions(mut dblock: Command, shell: Shell) -> String {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut dblock, "dblock", &mut script);
    String::from_utf8_lossy(&script).into_owned()
}

/// The manual page of `dblock`, or of one command; `None` if there is no such command.
pub(crate) fn man(mut dblock: Command, name: Option<&str>) -> Option<String> {
    dblock.build();
    let command = match name {
        Some(name) => dblock.find_subcommand(name)?.clone(),
        None => dblock,
    };
    let mut page = Vec::new();
    // Writing to memory does not fail.
    render(command, &mut page).ok()?;
    Some(String::from_utf8_lossy(&page).into_owned())
}

fn render(command: Command, page: &mut Vec<u8>) -> io::Result<()> {
    let after_help = command.get_after_help().map(ToString::to_string);
    let is_main = command.has_subcommands();
    let name = command.get_display_name().unwrap_or("dblock").to_owned();
    let version = env!("CARGO_PKG_VERSION");
    let man = Man::new(command);
    // clap_mangen omits an empty date, and the next argument takes its place.
    let title = format!(".TH {name} 1 \"\" \"dblock {version}\" \"database-locks\"\n");
    page.extend(title.into_bytes());
    man.render_name_section(page)?;
    man.render_synopsis_section(page)?;
    man.render_description_section(page)?;
    man.render_options_section(page)?;
    if is_main {
        man.render_subcommands_section(page)?;
    }
    page.extend(sections(&after_help.unwrap_or_default()).into_bytes());
    match is_main {
        true => man.render_version_section(page),
        false => Ok(()),
    }
}

/// The text after the options as sections. Its lines are not filled: they are examples and tables.
fn sections(text: &str) -> String {
    let mut roff = String::new();
    let mut in_section = false;
    for line in text.lines() {
        match line
            .strip_suffix(':')
            .filter(|heading| !heading.starts_with(' '))
        {
            Some(heading) => {
                close(&mut roff, in_section);
                roff.push_str(&format!(".SH {}\n.nf\n", escaped(&heading.to_uppercase())));
                in_section = true;
            }
            None => {
                if !in_section {
                    roff.push_str(".SH NOTES\n.nf\n");
                    in_section = true;
                }
                roff.push_str(&escaped(line));
                roff.push('\n');
            }
        }
    }
    close(&mut roff, in_section);
    roff
}

fn close(roff: &mut String, in_section: bool) {
    if in_section {
        roff.push_str(".fi\n");
    }
}

/// A line in which roff finds no request and no escape.
fn escaped(line: &str) -> String {
    let line = line.replace('\\', "\\e").replace('-', "\\-");
    match line.starts_with(['.', '\'']) {
        true => format!("\\&{line}"),
        false => line,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_and_escapes_of_roff_are_escaped() {
        assert_eq!(escaped(".nf"), "\\&.nf");
        assert_eq!(escaped("'x' \\n --ttl"), "\\&'x' \\en \\-\\-ttl");
    }

    #[test]
    fn a_heading_begins_a_section_and_lines_are_not_filled() {
        assert_eq!(
            sections("One\n  two:\nExamples:\n  run  x"),
            ".SH NOTES\n.nf\nOne\n  two:\n.fi\n.SH EXAMPLES\n.nf\n  run  x\n.fi\n"
        );
    }
}
