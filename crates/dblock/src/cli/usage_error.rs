//! Turns an error of clap into a failure: its message on one line, or the help that was asked for.

use std::ffi::OsString;

use clap::CommandFactory as _;
use clap::error::ErrorKind;

use super::commands::Cli;
use crate::exit::Failure;
use crate::output;

pub(super) fn to_failure(error: clap::Error, arguments: &[OsString]) -> Failure {
    match error.kind() {
        ErrorKind::DisplayHelp | ErrorKind::DisplayVersion => {
            match output::help(&rendered(&error, output::stdout_has_colours())) {
                Ok(()) => Failure::new(0, ""),
                Err(unprinted) => unprinted,
            }
        }
        ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand => {
            output::help_on_stderr(&rendered(&error, output::stderr_has_colours()));
            Failure::usage("")
        }
        kind => {
            let command = command_of(arguments);
            let form = match kind {
                // In `dblock run -- CMD` the NAME is missing, and clap reports CMD.
                ErrorKind::MissingRequiredArgument if command == "dblock run" => {
                    ": the form is `dblock run NAME -- CMD`"
                }
                ErrorKind::MissingRequiredArgument if command == "dblock lead" => {
                    ": the form is `dblock lead NAME -- CMD`"
                }
                _ => "",
            };
            let line = on_one_line(&error.to_string());
            Failure::usage(format!("{line}{form}; see `{command} --help`"))
        }
    }
}

/// The message of clap without its usage and its tips for values that look like options.
fn on_one_line(text: &str) -> String {
    let before = |text: &str, end: &str| text.split(end).next().unwrap_or_default().to_owned();
    let text = before(text, "\n\nUsage:");
    let text = before(&text, "\n\nFor more information");
    let text = before(&text, "\n  tip: to pass ");
    let line = text.split_whitespace().collect::<Vec<_>>().join(" ");
    let line = line.strip_prefix("error: ").unwrap_or(&line);
    // Other tips of clap follow as sentences of their own.
    let line = line.replace(" tip: ", ": ");
    match line.split_once(" [possible values: ") {
        Some((message, values)) => {
            // After the list clap may guess which value was meant.
            format!("{message}: must be one of {}", before(values, "]"))
        }
        None => line,
    }
}

fn rendered(help: &clap::Error, colours: bool) -> String {
    match colours {
        true => help.render().ansi().to_string(),
        false => help.render().to_string(),
    }
}

/// The command whose help explains the error.
fn command_of(arguments: &[OsString]) -> String {
    let cli = Cli::command();
    let mut words = arguments.iter().filter_map(|argument| argument.to_str());
    match words.find_map(|word| cli.find_subcommand(word)) {
        Some(command) => format!("dblock {}", command.get_name()),
        None => "dblock".to_owned(),
    }
}
