//! What is made from the same words as `--help`: completions and manual pages.

use std::io;

use clap::Command;
use clap_complete::Shell;
use clap_mangen::Man;

/// A script for that shell.
pub(crate) fn completions(mut dblock: Command, shell: Shell) -> String {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut dblock, "dblock", &mut script);
    String::from_utf8_lossy(&script).into_owned()
}

/// The manual page of the whole, or of one command; none where there is no such command.
pub(crate) fn man(mut dblock: Command, name: Option<&str>) -> Option<String> {
    dblock.build();
    let command = match name {
        Some(name) => dblock.find_subcommand(name)?.clone(),
        None => dblock,
    };
    let mut page = Vec::new();
    // It goes into memory, which takes it.
    page_of(command, &mut page).ok()?;
    Some(String::from_utf8_lossy(&page).into_owned())
}

fn page_of(command: Command, page: &mut Vec<u8>) -> io::Result<()> {
    let more = command.get_after_help().map(ToString::to_string);
    let is_whole = command.has_subcommands();
    let name = command.get_display_name().unwrap_or("dblock").to_owned();
    let version = env!("CARGO_PKG_VERSION");
    let man = Man::new(command);
    // Its own title leaves out the date in a way that takes the next word for it.
    let title = format!(".TH {name} 1 \"\" \"dblock {version}\" \"database-locks\"\n");
    page.extend(title.into_bytes());
    man.render_name_section(page)?;
    man.render_synopsis_section(page)?;
    man.render_description_section(page)?;
    man.render_options_section(page)?;
    if is_whole {
        man.render_subcommands_section(page)?;
    }
    page.extend(sections(&more.unwrap_or_default()).into_bytes());
    match is_whole {
        true => man.render_version_section(page),
        false => Ok(()),
    }
}

/// The text below the options, with its lines left as they are: they are examples and tables.
fn sections(text: &str) -> String {
    let mut roff = String::new();
    let mut in_section = false;
    for line in text.lines() {
        match line.strip_suffix(':').filter(|head| !head.starts_with(' ')) {
            Some(head) => {
                close(&mut roff, in_section);
                roff.push_str(&format!(".SH {}\n.nf\n", escaped(&head.to_uppercase())));
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

/// A line that roff takes as it is.
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
    fn what_roff_would_read_as_its_own_is_escaped() {
        assert_eq!(escaped(".nf"), "\\&.nf");
        assert_eq!(escaped("'x' \\n --ttl"), "\\&'x' \\en \\-\\-ttl");
    }

    #[test]
    fn a_head_begins_a_section_and_lines_stay_as_they_are() {
        assert_eq!(
            sections("One\n  two:\nExamples:\n  run  x"),
            ".SH NOTES\n.nf\nOne\n  two:\n.fi\n.SH EXAMPLES\n.nf\n  run  x\n.fi\n"
        );
    }
}
