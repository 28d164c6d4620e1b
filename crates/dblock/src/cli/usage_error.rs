//! What clap has against the words, on one line.

use std::ffi::OsString;

use clap::CommandFactory as _;
use clap::error::ErrorKind;

use super::words::Cli;
use crate::exit::Failure;
use crate::output;

pub(super) fn refused(error: clap::Error, words: &[OsString]) -> Failure {
    match error.kind() {
        ErrorKind::DisplayHelp | ErrorKind::DisplayVersion => {
            match output::help(&styled(&error, output::on_stdout()), false) {
                Ok(()) => Failure::new(0, ""),
                Err(unprinted) => unprinted,
            }
        }
        ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand => {
            match output::help(&styled(&error, output::on_stderr()), true) {
                Ok(()) => Failure::usage(""),
                Err(unprinted) => unprinted,
            }
        }
        _ => {
            // What it says is of several lines, with the whole usage below.
            let text = error.to_string();
            let text = text.split("\n\nUsage:").next().unwrap_or_default();
            let text = text
                .split("\n\nFor more information")
                .next()
                .unwrap_or_default();
            // Advice that is right only for a word that looks like an option.
            let text = text.split("\n  tip: to pass ").next().unwrap_or_default();
            let said: Vec<&str> = text.split_whitespace().collect();
            let line = said.join(" ");
            let line = line.strip_prefix("error: ").unwrap_or(&line);
            // clap puts its advice below, as a sentence of its own.
            let line = line.replace(" tip: ", ": ");
            let line = match line.split_once(" [possible values: ") {
                Some((said, values)) => {
                    // Behind them clap may guess at the one that was meant.
                    let values = values.split(']').next().unwrap_or_default();
                    format!("{said}: must be one of {values}")
                }
                None => line,
            };
            let form = match error.kind() {
                // `dblock run -- CMD` lacks NAME, and clap would have it that CMD is missing.
                ErrorKind::MissingRequiredArgument if command_of(words) == "dblock run" => {
                    ": it is `dblock run NAME -- CMD`"
                }
                _ => "",
            };
            Failure::usage(format!("{line}{form}; see `{} --help`", command_of(words)))
        }
    }
}

fn styled(help: &clap::Error, colours: bool) -> String {
    match colours {
        true => help.render().ansi().to_string(),
        false => help.render().to_string(),
    }
}

/// The command whose help is the one to read.
fn command_of(words: &[OsString]) -> String {
    let cli = Cli::command();
    let mut words = words.iter().filter_map(|word| word.to_str());
    match words.find_map(|word| cli.find_subcommand(word)) {
        Some(command) => format!("dblock {}", command.get_name()),
        None => "dblock".to_owned(),
    }
}
